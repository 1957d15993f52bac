//! What the command says where it cannot run: on this very machine.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

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
        (&["surplus"], "unrecognized subcommand"),
        (&["--surplus"], "unexpected argument"),
        (&["--profile", "fast"], "possible values: gaming"),
        (&["--primary-domain", "3-1"], "list of CPUs"),
        (&["--monitor", "1", "--stats", "1"], "cannot be used with"),
        (&["set"], "required"),
        (&["set", "slice=2000"], "no parameter \"slice\""),
        (&["set", "slice-us=1"], "from 100 to 1000000"),
    ] {
        let output = metronome(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr.contains(reason), "{args:?}: {stderr}");
    }
}

/// The complaint has several lines, with the usage after the error.
#[test]
fn the_first_line_about_a_wrong_argument_is_the_error() {
    let output = metronome(&["--cpu", "first"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stdout, b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let first = stderr.lines().next().unwrap();
    assert!(
        first.starts_with("error: ") && first.contains("--cpu") && first.contains("first"),
        "{first}"
    );
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
        "--seccomp",
    ] {
        assert!(help.contains(option), "{option}: {help}");
    }
}

#[test]
fn without_privilege_or_sched_ext_one_line_says_what_to_do() {
    if fs::exists("/sys/kernel/sched_ext").unwrap() {
        // It would start. tests/kernel/ has this case with sched_ext hidden.
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

/// Runs the command with `--seccomp` where installing a filter ends with this error.
fn confined_in_vain(errno: i32) -> Output {
    let refuse = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_seccomp, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        TargetArch::try_from(ARCH).unwrap(),
    );
    let refuse: BpfProgram = refuse.unwrap().try_into().unwrap();
    let apply = move || apply_filter(&refuse).map_err(std::io::Error::other);
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx_metronome"));
    command.arg("--seccomp");
    // SAFETY: two system calls between fork and exec.
    unsafe { command.pre_exec(apply) }.output().unwrap()
}

#[test]
fn where_no_filter_can_be_installed_one_line_says_what_to_do() {
    for (errno, reason) in [
        (libc::ENOSYS, "CONFIG_SECCOMP_FILTER=y"),
        (libc::EPERM, "SystemCallFilter="),
    ] {
        let output = confined_in_vain(errno);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
    }
}

#[test]
fn confined_it_says_the_same_as_free() {
    if fs::exists("/sys/kernel/sched_ext").unwrap() {
        // It would start. tests/kernel/ has that.
        return;
    }
    assert_eq!(metronome(&["--seccomp"]).stderr, metronome(&[]).stderr);
}

#[test]
fn the_statistics_are_described_without_a_scheduler() {
    let output = metronome(&["--help-stats"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["queued", "faults", "slice_us", "cpus", "deadline"] {
        let described = |line: &str| line.trim().starts_with(name) && line.contains(" : ");
        assert!(text.lines().any(described), "{name}: {text}");
    }
}

#[test]
fn doctor_has_a_verdict_for_each_check_and_its_status_tells_of_fatal_ones() {
    let output = metronome(&["doctor", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 10);
    let fatal = rows.iter().any(|row| row["verdict"] == "fatal");
    assert_eq!(output.status.code(), Some(i32::from(fatal)));
    let table = String::from_utf8(metronome(&["doctor"]).stdout).unwrap();
    for row in rows {
        assert!(table.contains(row["check"].as_str().unwrap()), "{table}");
    }
}

#[test]
fn a_command_that_finds_no_scheduler_says_so_in_one_line() {
    if fs::exists("/var/run/scx/root/stats").unwrap() {
        return;
    }
    for args in [&["set", "slice-us=2000"][..], &["--monitor", "1"]] {
        let output = metronome(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("no scx_metronome runs here"), "{stderr}");
    }
}

#[test]
fn manual_and_completions_know_every_option() {
    let directory = std::env::temp_dir().join(format!("metronome-man-{}", std::process::id()));
    let output = metronome(&["generate", directory.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8(metronome(&["--help"]).stdout).unwrap();
    for file in [
        "scx_metronome.8",
        "scx_metronome.bash",
        "scx_metronome.fish",
        "_scx_metronome",
    ] {
        let text = fs::read_to_string(directory.join(file))
            .unwrap()
            .replace('\\', "");
        for option in names(&help, " --") {
            assert!(text.contains(&option), "{file}: {option}");
        }
    }
    fs::remove_dir_all(directory).unwrap();
}

/// As `systemd-analyze security` counts it: 0 exposes nothing, 10 everything.
#[test]
fn the_unit_exposes_little() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/scx_metronome.service");
    let analyze = Command::new("systemd-analyze")
        .args([
            "security",
            "--offline=true",
            "--threshold=20",
            "--no-pager",
            unit,
        ])
        .output();
    let Ok(output) = analyze else {
        // There is no systemd here.
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

/// Debian's file list of the package names what `make install` installs, but for its own
/// documentation.
#[test]
fn make_install_puts_everything_where_it_belongs() {
    let manifest = env!("CARGO_MANIFEST_DIR");
    let makefile = fs::read_to_string(format!("{manifest}/../Makefile")).unwrap();
    let package = fs::read_to_string(format!("{manifest}/Cargo.toml")).unwrap();
    for file in [
        "release/scx_metronome",
        "scx_metronome.8",
        "scx_metronome.bash",
        "scx_metronome.fish",
        "_scx_metronome",
        "scx_metronome.service",
        "scx_metronome.default",
    ] {
        assert!(makefile.contains(&format!("{file} $(DESTDIR)")), "{file}");
        assert!(package.contains(&format!("{file}\", \"")), "{file}");
    }
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
fn the_pages_have_each_option_and_each_target_of_make_and_no_other() {
    let using = include_str!("../../docs/USING.md");
    let contributing = include_str!("../../CONTRIBUTING.md");

    let rows = |page: &str, begin: &str| {
        let table = page.lines().skip_while(|line| !line.starts_with(begin));
        let rows: Vec<_> = table.take_while(|line| line.starts_with('|')).collect();
        rows.join("\n")
    };
    let help = String::from_utf8(metronome(&["--help"]).stdout).unwrap();
    let mut options = names(&help, " --");
    assert!(options.remove("help") && options.remove("version"));
    assert_eq!(
        names(&rows(using, "| Option |").replace('`', " "), " --"),
        options
    );

    let makefile = include_str!("../../Makefile");
    let targets = makefile.lines().filter_map(|line| line.split_once(": "));
    let described = targets.filter(|(_, rest)| rest.contains("## "));
    let mut targets: BTreeSet<_> = described.map(|(name, _)| name.to_owned()).collect();
    assert!(targets.remove("help"));
    assert_eq!(
        names(&rows(contributing, "| | in `make test` |"), "`make "),
        targets
    );
}

/// The commands of a page: its indented lines, without their comments.
fn commands(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("    "));
    let words = lines.map(|line| line.split(" # ").next().unwrap_or(line).split_whitespace());
    words.map(|words| words.filter(|word| *word != "sudo").collect())
}

#[test]
fn every_command_of_the_pages_is_there() {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let is_there = |path: &str| repo.join(path).exists();
    let makefile = include_str!("../../Makefile");
    let kernel_tests: String = fs::read_dir(repo.join("tests/kernel"))
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    let help = ["--help", "doctor --help", "set --help"]
        .map(|args| metronome(&args.split(' ').collect::<Vec<_>>()).stdout)
        .map(|text| String::from_utf8(text).unwrap())
        .concat();

    let pages = [
        include_str!("../../README.md"),
        include_str!("../../CONTRIBUTING.md"),
        include_str!("../../docs/TUNING.md"),
        include_str!("../../docs/USING.md"),
        include_str!("../../vm/README.md"),
        include_str!("../../fuzz/README.md"),
        include_str!("../../compare/README.md"),
    ];
    let mut checked = 0;
    for command in pages.iter().flat_map(|page| commands(page)) {
        let Some((program, args)) = command.split_first() else {
            continue;
        };
        let after = |flag: &str| {
            let at = args.iter().position(|arg| *arg == flag);
            at.and_then(|at| args.get(at + 1))
        };
        let ok = match *program {
            "make" => makefile.contains(&format!("\n{}: ", args.first().unwrap_or(&"help"))),
            "cargo" => {
                after("--test").is_none_or(|test| {
                    is_there(&format!("tests/{test}.rs")) || is_there(&format!("tests/{test}"))
                }) && after("--lib").is_none_or(|module| is_there(&format!("src/{module}.rs")))
            }
            "vm/test" => {
                let name = args.last().unwrap().rsplit(':').next().unwrap();
                is_there(program) && kernel_tests.contains(&format!("fn {name}"))
            }
            program if program.starts_with("vm/") => is_there(program),
            program if program.ends_with("scx_metronome") => args.iter().all(|arg| {
                let word = arg.split('=').next().unwrap();
                word.parse::<u64>().is_ok() || help.contains(word)
            }),
            _ => continue,
        };
        assert!(ok, "{command:?}");
        checked += 1;
    }
    assert!(checked > 20, "{checked} commands");
}
