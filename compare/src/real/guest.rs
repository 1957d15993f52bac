//! What the guest has of the programs that people run, told to `vm/run`.

use super::{PRESENTED, SOURCES};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The packages that hold them, for `vm/programs`.
const PACKAGES: [&str; 13] = [
    "chocolate-doom",
    "freedoom",
    "crispy-doom",
    "weston",
    "jackd2",
    "pipewire",
    "wireplumber",
    "x264",
    "tcc",
    "libc6-dev",
    "make",
    "python3-minimal",
    "rt-tests",
];

/// What `vm/run` is told so that the guest has all of it.
///
/// # Errors
/// The packages cannot be fetched, or there is no crate that has the sources.
pub(crate) fn arguments(repository: &Path, programs: &Path) -> Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = ["--mem", "4096", "--archive"].map(OsString::from).into();
    let mut fetch = Command::new(repository.join("vm/programs"));
    arguments.push(output(fetch.args(PACKAGES))?.trim().into());
    let mut add = |file: &Path, place: &str| {
        let mut both = file.as_os_str().to_owned();
        both.push(format!("={place}"));
        arguments.extend(["--add".into(), both]);
    };
    let library = programs.join("libpresented.so");
    if !library.exists() {
        bail!(
            "{} is not built: cargo build --release --workspace --bins --lib",
            library.display()
        );
    }
    add(&library, PRESENTED);
    for file in fs::read_dir(zlib(repository)?)? {
        let file = file?.path();
        if let Some(name) = file.file_name().and_then(|name| name.to_str())
            && (name.ends_with(".c") || name.ends_with(".h"))
        {
            add(&file, &format!("{SOURCES}/{name}"));
        }
    }
    Ok(arguments)
}

/// The packages and their versions; nothing if they have not been fetched.
pub(crate) fn versions(repository: &Path) -> String {
    let mut fetch = Command::new(repository.join("vm/programs"));
    let archive = output(fetch.args(PACKAGES)).unwrap_or_default();
    let list = fs::read_to_string(Path::new(archive.trim()).with_extension("versions"));
    let list = list.unwrap_or_default();
    list.lines().collect::<Vec<_>>().join("; ")
}

/// The copy of zlib in the crate of libbpf, which this project is built with.
fn zlib(repository: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--format-version", "1", "--locked", "--offline"]);
    // A build has fetched what this machine needs, and not what others would.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo.args(["--filter-platform", &platform]);
    let metadata: Value = serde_json::from_str(&output(cargo.current_dir(repository))?)?;
    let packages = metadata["packages"].as_array();
    let is_it = |package: &&Value| package["name"] == "libbpf-sys";
    let package = packages.and_then(|packages| packages.iter().find(is_it));
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let manifest = Path::new(manifest.context("libbpf-sys is not among the dependencies")?);
    Ok(manifest.with_file_name("zlib"))
}

/// What a program prints; what it says of its progress goes on to the terminal.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
