//! The peers: built once from their published crates, at the versions that
//! [`SCHEDULERS`](super::scheduler::SCHEDULERS) names.

use crate::scheduler::{Kind, Scheduler};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The compiler of their BPF parts: they need clang 16 or later.
const BPF_CLANG: &str = "clang-19";

/// Where peers are built and kept.
#[derive(Clone, Debug)]
pub(crate) struct Peers(pub PathBuf);

impl Peers {
    fn root(&self, name: &str, version: &str) -> PathBuf {
        self.0.join(format!("{name}-{version}"))
    }

    /// The program of a peer, if it is built.
    #[must_use]
    pub(crate) fn program(&self, scheduler: &Scheduler) -> Option<PathBuf> {
        let Kind::Peer(version) = scheduler.kind else {
            return None;
        };
        let program = self
            .root(scheduler.id, version)
            .join("bin")
            .join(scheduler.id);
        program.exists().then_some(program)
    }

    /// Why a peer is not built.
    #[must_use]
    pub(crate) fn failure(&self, scheduler: &Scheduler) -> String {
        let log = self.log(scheduler.id);
        match fs::read_to_string(&log) {
            Ok(text) => format!("does not build: {}", first_error(&text)),
            Err(_) => "is not built: run `make peers`".to_owned(),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.0.join("logs").join(format!("{name}.log"))
    }

    /// Builds those of `schedulers` that are peers and missing, one after the other, and tells how
    /// it goes. A peer that fails stops no other.
    ///
    /// # Errors
    /// The directory cannot be written, or cargo is missing.
    pub(crate) fn build(
        &self,
        schedulers: &[&Scheduler],
        mut progress: impl FnMut(&str),
    ) -> Result<()> {
        fs::create_dir_all(self.0.join("logs")).context("cannot make the peers' directory")?;
        for scheduler in schedulers {
            let Kind::Peer(version) = scheduler.kind else {
                continue;
            };
            if self.program(scheduler).is_some() {
                continue;
            }
            let name = scheduler.id;
            let start = Instant::now();
            let status = self.install(name, version, &mut progress)?;
            let seconds = start.elapsed().as_secs();
            if status.success() {
                progress(&format!("{name} {version}: built in {seconds} s"));
            } else {
                let log = self.log(name);
                progress(&format!(
                    "{name} {version}: {} (all of it in {})",
                    self.failure(scheduler),
                    log.display()
                ));
            }
        }
        Ok(())
    }

    fn install(
        &self,
        name: &str,
        version: &str,
        progress: &mut impl FnMut(&str),
    ) -> Result<ExitStatus> {
        let log = self.log(name);
        let file = File::create(&log)?;
        let mut command = Command::new("cargo");
        command.args(["install", "--locked", "--version", version, name, "--root"]);
        // Built apart from this workspace, and together: they share most of what they depend on.
        command
            .arg(self.root(name, version))
            .env("CARGO_TARGET_DIR", self.0.join("build"));
        command.env("BPF_CLANG", BPF_CLANG).env_remove("RUSTFLAGS");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let mut child = command.spawn().context("cannot start cargo")?;
        watch(&mut child, &log, &format!("{name} {version}"), progress)
    }
}

/// Waits for cargo, and tells every ten seconds what it is at.
fn watch(
    child: &mut Child,
    log: &Path,
    name: &str,
    progress: &mut impl FnMut(&str),
) -> Result<ExitStatus> {
    progress(&format!("{name}: building"));
    let (start, mut told) = (Instant::now(), 0);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        sleep(Duration::from_millis(200));
        let seconds = start.elapsed().as_secs();
        if seconds >= told + 10 {
            told = seconds;
            let text = fs::read_to_string(log).unwrap_or_default();
            let built = text
                .lines()
                .filter(|line| line.trim_start().starts_with("Compiling"))
                .count();
            let last = text.lines().last().unwrap_or("").trim();
            progress(&format!("{name}: {seconds} s, {built} crates; {last}"));
        }
    }
}

/// cargo's first error line with the one after it, or the last line of all.
fn first_error(log: &str) -> String {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = log.lines().last().unwrap_or("no output").trim().to_owned();
    match lines.find(|line| line.starts_with("error")) {
        Some(error) => format!("{error} {}", lines.next().unwrap_or(""))
            .trim_end()
            .to_owned(),
        None => last,
    }
}

/// A number for the contents of a file: another program, another number (FNV-1a).
///
/// # Errors
/// The file cannot be read.
pub(crate) fn fingerprint(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if bytes.is_empty() {
        bail!("{} is empty", file.display());
    }
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ok(format!("{hash:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_told() {
        let log = "   Compiling a\nerror: no clang\n  run it\nwarning: build failed\nerror: could not compile\n";
        assert_eq!(first_error(log), "error: no clang run it");
        assert_eq!(first_error("a\nb"), "b");
    }

    #[test]
    fn a_peer_that_is_missing_says_how_to_get_it() {
        let peers = Peers(PathBuf::from("/nonexistent"));
        let scheduler = Scheduler::find("scx_lavd");
        assert!(scheduler.is_some_and(|lavd| peers.program(lavd).is_none()));
        assert!(scheduler.is_some_and(|lavd| peers.failure(lavd).contains("make peers")));
    }
}
