//! Compiles BPF programs into Rust skeletons, for build scripts.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_cargo::SkeletonBuilder;

/// The first that compiles 64-bit enums and 32-bit atomics as the kernel's verifier wants them.
const OLDEST_CLANG: u32 = 16;
const NEWEST_CLANG: u32 = 40;

/// Compiles each of these sources into a skeleton of that name in `OUT_DIR`. Ends the build if that
/// is not possible.
pub(crate) fn build(programs: &[(&str, &str)]) {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    if let Err(message) = compile_all(programs) {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn compile_all(programs: &[(&str, &str)]) -> Result<(), String> {
    let clang = find_clang()?;
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?;
    let out = PathBuf::from(out);
    programs
        .iter()
        .try_for_each(|(source, skeleton)| compile(&clang, source, &out.join(skeleton)))
}

fn compile(clang: &str, source: &str, skeleton: &Path) -> Result<(), String> {
    SkeletonBuilder::new()
        .source(source)
        .clang(clang)
        .clang_args(clang_args())
        .build_and_generate(skeleton)
        .map_err(|error| format!("{source} does not compile: {error:#}"))
}

/// `-mcpu=v3` for 32-bit atomics. The path is where Debian keeps `asm/types.h`; elsewhere it does
/// not exist and does no harm.
fn clang_args() -> Vec<String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    vec![
        "-mcpu=v3".into(),
        "-Wall".into(),
        "-Wno-missing-declarations".into(),
        "-Werror".into(),
        format!("-I/usr/include/{arch}-linux-gnu"),
    ]
}

/// `CLANG` if it is set; else the newest `clang-NN`; else `clang`.
fn find_clang() -> Result<String, String> {
    if let Some(named) = env::var_os("CLANG") {
        let named = named.to_string_lossy().into_owned();
        return match version(&named) {
            Some(found) if found >= OLDEST_CLANG => Ok(named),
            Some(found) => Err(format!(
                "CLANG={named} is clang {found}, too old: needs {OLDEST_CLANG} or newer"
            )),
            None => Err(format!(
                "CLANG={named} does not run: set it to a clang {OLDEST_CLANG} or newer, or unset it"
            )),
        };
    }
    (OLDEST_CLANG..=NEWEST_CLANG)
        .rev()
        .map(|number| format!("clang-{number}"))
        .chain(["clang".to_owned()])
        .find(|name| version(name).is_some_and(|found| found >= OLDEST_CLANG))
        .ok_or_else(|| {
            format!(
                "no clang {OLDEST_CLANG} or newer found: install one (Debian: apt-get install clang-19; Fedora, Arch: \
                 clang), or name it with CLANG=..."
            )
        })
}

/// Reads the major number in "clang version 19.1.7".
fn version(clang: &str) -> Option<u32> {
    let output = Command::new(clang).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = text.split_once("clang version ")?;
    rest.split('.').next()?.parse().ok()
}
