//! What the command says where it cannot run: on this very machine.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::{Command, Output};

fn metronome(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scx_metronome"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn wrong_arguments_are_status_2_with_the_reason() {
    for (args, reason) in [
        (&["--slice-us", "0"][..], "0 is not in 100..=1000000"),
        (&["--timeout-ms", "30001"], "30001 is not in 1..=30000"),
        (&["--stats", "never"], "not a number"),
        (&["--stats", "0"], "must be between"),
        (&["surplus"], "unexpected argument"),
    ] {
        let output = metronome(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr.contains(reason), "{args:?}: {stderr}");
    }
}

#[test]
fn version_and_help_are_told() {
    let version = metronome(&["--version"]);
    assert!(version.status.success());
    assert_eq!(
        String::from_utf8_lossy(&version.stdout).trim(),
        concat!("scx_metronome ", env!("CARGO_PKG_VERSION"))
    );
    let help = String::from_utf8(metronome(&["--help"]).stdout).unwrap();
    for option in [
        "--cpu",
        "--slice-us",
        "--partial",
        "--stats",
        "--exit-dump-len",
        "--timeout-ms",
    ] {
        assert!(help.contains(option), "{option}: {help}");
    }
}

#[test]
fn without_privilege_or_sched_ext_one_line_says_what_to_do() {
    if std::fs::exists("/sys/kernel/sched_ext").unwrap() {
        // It would start. tests/kernel.rs has this case with sched_ext hidden.
        return;
    }
    let output = metronome(&[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("has no sched_ext") || stderr.contains("needs root"),
        "{stderr}"
    );
}

/// The names that follow `start`: of small letters and hyphens.
fn names(text: &str, start: &str) -> BTreeSet<String> {
    text.split(start)
        .skip(1)
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-');
            rest[..end.unwrap_or(rest.len())].to_owned()
        })
        .collect()
}

#[test]
fn the_readme_has_each_option_and_each_target_of_make_and_no_other() {
    let readme = include_str!("../README.md");

    let rows = |begin: &str| {
        let table = readme.lines().skip_while(|line| !line.starts_with(begin));
        let rows: Vec<_> = table.take_while(|line| line.starts_with('|')).collect();
        rows.join("\n")
    };
    let help = String::from_utf8(metronome(&["--help"]).stdout).unwrap();
    let mut options = names(&help, " --");
    assert!(options.remove("help") && options.remove("version"));
    assert_eq!(names(&rows("| Option |").replace('`', " "), " --"), options);

    let makefile = include_str!("../Makefile");
    let targets = makefile.lines().filter_map(|line| line.split_once(": "));
    let described = targets.filter(|(_, rest)| rest.contains("## "));
    let mut targets: BTreeSet<_> = described.map(|(name, _)| name.to_owned()).collect();
    assert!(targets.remove("help"));
    assert_eq!(names(&rows("| | in `make test` |"), "`make "), targets);
}
