//! `scx_metronome doctor`: what of this machine is in the scheduler's way, and how to change it.
//!
//! Each check looks at files below a root, so that it can be tried on a tree of a machine that is
//! not there.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use scx_metronome_core::preflight::{self, Obstacle};
use scx_metronome_core::topology::{Reach, Topology};
use serde::Serialize;

use super::limited::limited_groups;
use super::output;

mod live;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tree;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, but could work better.
    Advice,
    /// It does not work.
    Fatal,
}

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    verdict: Verdict,
    found: String,
    /// Empty if all is well.
    fix: String,
}

impl Finding {
    fn ok(found: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            found: found.into(),
            fix: String::new(),
        }
    }

    fn advice(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Advice,
            found: found.into(),
            fix: fix.into(),
        }
    }

    fn fatal(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fatal,
            ..Self::advice(found, fix)
        }
    }

    fn of(result: Result<(), Obstacle>, well: impl Into<String>) -> Self {
        match result {
            Ok(()) => Self::ok(well),
            Err(Obstacle { found, fix }) => Self::fatal(found, fix),
        }
    }
}

/// A check's name, and what it says.
#[derive(Clone, Debug, Serialize)]
struct Row {
    check: &'static str,
    #[serde(flatten)]
    finding: Finding,
}

type Check = fn(&Machine) -> Finding;

const CHECKS: [(&str, Check); 16] = [
    ("kernel", kernel),
    ("kernel config", kernel_config),
    ("BTF", btf),
    ("loaded scheduler", loaded_scheduler),
    ("CPUs", cpus),
    ("isolated CPU", isolated_cpu),
    ("interrupts", interrupts),
    ("memory lock", memory_lock),
    ("open files", open_files),
    ("compaction", compaction),
    ("NUMA balancing", numa_balancing),
    ("huge pages", huge_pages),
    ("governor", governor),
    ("pid namespace", pid_namespace),
    ("CPU limits", cpu_limits),
    ("autogroup", autogroup),
];

/// Prints the table; the status is 1 if something is fatal.
pub(crate) fn examine(live: bool, json: bool) -> ExitCode {
    // What libbpf complains of is told in the table.
    libbpf_rs::set_print(None);
    let machine = Machine::new(Path::new("/"));
    let mut rows = rows(&machine);
    if live {
        rows.push(Row {
            check: "sound",
            finding: live::sound(&machine),
        });
    }
    output::line(match json {
        true => serde_json::to_string_pretty(&rows).unwrap_or_default(),
        false => table(&rows),
    });
    match rows.iter().any(|row| row.finding.verdict == Verdict::Fatal) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn rows(machine: &Machine) -> Vec<Row> {
    let row = |(check, look): (&'static str, Check)| Row {
        check,
        finding: look(machine),
    };
    CHECKS.map(row).into()
}

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for Row { check, finding } in rows {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Advice => "advice",
            Verdict::Fatal => "FATAL",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{verdict:<7}{check:<17} {}", finding.found);
        if !finding.fix.is_empty() {
            let _ = writeln!(text, "{:<25}-> {}", "", finding.fix);
        }
    }
    text.trim_end().to_owned()
}

/// The files of a machine.
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn read(&self, file: impl AsRef<Path>) -> Option<String> {
        let text = fs::read_to_string(self.root.join(file)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Names in a directory.
    fn list(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(directory));
        let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
        let names = entries.into_iter().flatten().flatten().filter_map(name);
        names.collect()
    }

    /// What follows a word at the beginning of a line.
    fn field(&self, file: &str, word: &str) -> Option<String> {
        let text = self.read(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(word))?;
        Some(line.trim().to_owned())
    }

    fn topology(&self) -> anyhow::Result<Topology> {
        Topology::read_from(&self.root.join("sys/devices"))
    }

    /// The CPU that the scheduler thread would take.
    fn agent_cpu(&self) -> anyhow::Result<u32> {
        let topology = self.topology()?;
        let everywhere = Reach {
            affinity: topology.online.clone(),
            cpuset: topology.online.clone(),
        };
        Ok(topology.pick_agent_cpu(None, &everywhere)?.cpu)
    }
}

fn kernel(machine: &Machine) -> Finding {
    let release = machine.read("proc/sys/kernel/osrelease");
    let well = format!("{} has sched_ext", release.unwrap_or_default());
    Finding::of(preflight::kernel(&machine.root), well)
}

/// What sched_ext depends on is there if it is: only what can be missing beside it, and what speaks
/// for a kernel without.
fn kernel_config(machine: &Machine) -> Finding {
    let release = machine
        .read("proc/sys/kernel/osrelease")
        .unwrap_or_default();
    let places = [
        format!("boot/config-{release}"),
        format!("lib/modules/{release}/config"),
    ];
    let Some(config) = places.iter().find_map(|place| machine.read(place)) else {
        return Finding::ok("not told here (no /boot/config-*)");
    };
    let lacks = |option: &&str| !config.lines().any(|line| line == format!("{option}=y"));
    let needed = [
        "CONFIG_SCHED_CLASS_EXT",
        "CONFIG_BPF_SYSCALL",
        "CONFIG_BPF_JIT",
        "CONFIG_DEBUG_INFO_BTF",
    ];
    let missing: Vec<_> = needed.into_iter().filter(lacks).collect();
    match missing.is_empty() {
        true => Finding::ok(format!("has {}", needed.join(", "))),
        false => Finding::fatal(
            format!("lacks {}", missing.join(", ")),
            "boot a kernel that was built with them",
        ),
    }
}

fn btf(machine: &Machine) -> Finding {
    let well = "describes all functions that are called, correctly";
    Finding::of(preflight::functions(&machine.root), well)
}

fn loaded_scheduler(machine: &Machine) -> Finding {
    match preflight::loaded(&machine.root) {
        None => Finding::ok("none"),
        Some((name, state)) if name.starts_with("metronome") => {
            Finding::ok(format!("{name}, {state}"))
        }
        Some((name, state)) => Finding::fatal(
            format!("{name} ({state})"),
            "stop it: systemctl stop scx_loader scx, or end its process",
        ),
    }
}

fn cpus(machine: &Machine) -> Finding {
    let topology = match machine.topology() {
        Ok(topology) => topology,
        Err(error) => return Finding::fatal(format!("{error:#}"), "use a smaller machine"),
    };
    match (topology.online.len(), topology.warning) {
        (0..=1, _) => Finding::fatal(
            "only one is online",
            "the scheduler thread needs one and the tasks another",
        ),
        (_, Some(warning)) => Finding::advice(warning, "tell the makers of this kernel"),
        (online, _) => Finding::ok(format!("{online} online")),
    }
}

fn isolated_cpu(machine: &Machine) -> Finding {
    let list = |name| {
        let list = machine.read(format!("sys/devices/system/cpu/{name}"));
        // "(null)" is how the kernel prints that there are none.
        list.filter(|list| !list.is_empty() && list != "(null)")
    };
    const BOOT: &str = "boot with nohz_full=N isolcpus=nohz,managed_irq,N rcu_nocbs=N";
    match (list("isolated"), list("nohz_full")) {
        (Some(cpus), _) => Finding::fatal(
            format!(
                "{cpus}, from all tasks: no kernel loads a sched_ext scheduler beside isolcpus={cpus}"
            ),
            BOOT,
        ),
        (None, Some(cpus)) => Finding::ok(format!("{cpus} without a tick")),
        (None, None) => Finding::advice(
            "none: the scheduler thread shares its CPU with kernel threads and interrupts",
            format!("for the last microseconds {BOOT}"),
        ),
    }
}

/// Interrupts that have a CPU to themselves cannot be told from others by their affinity: only
/// where they go counts.
fn interrupts(machine: &Machine) -> Finding {
    let Ok(cpu) = machine.agent_cpu() else {
        return Finding::ok("not looked at: it is not clear which CPU is the scheduler's");
    };
    let goes_there = |irq: &String| {
        let list = machine.read(format!("proc/irq/{irq}/effective_affinity_list"));
        list.is_some_and(|list| list == cpu.to_string())
    };
    let mut irqs = machine.list("proc/irq");
    irqs.retain(goes_there);
    irqs.sort_by_key(|irq| irq.parse::<u32>().unwrap_or(u32::MAX));
    match irqs.is_empty() {
        true => Finding::ok(format!("none goes to CPU {cpu}, the scheduler's")),
        false => Finding::advice(
            format!(
                "{} go to CPU {cpu}, the scheduler's: {}",
                irqs.len(),
                irqs.join(" ")
            ),
            "write other CPUs to /proc/irq/N/smp_affinity_list, or give irqbalance a banned CPU",
        ),
    }
}

fn memory_lock(machine: &Machine) -> Finding {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let capabilities = machine
        .field("proc/self/status", "CapEff:")
        .unwrap_or_default();
    if u64::from_str_radix(&capabilities, 16).unwrap_or(0) & CAP_IPC_LOCK != 0 {
        return Finding::ok("CAP_IPC_LOCK: no limit");
    }
    let limit = machine
        .field("proc/self/limits", "Max locked memory")
        .unwrap_or_default();
    match limit.split_whitespace().next() {
        Some("unlimited") => Finding::ok("no limit"),
        Some(bytes) => Finding::advice(
            format!("limited to {bytes} bytes where a program asks"),
            "root has CAP_IPC_LOCK; elsewhere ulimit -l unlimited, in a unit LimitMEMLOCK=infinity",
        ),
        None => Finding::ok("not told here"),
    }
}

fn open_files(machine: &Machine) -> Finding {
    Finding::of(preflight::open_files(&machine.root), "enough")
}

/// Locked pages may be moved, too, and a thread that touches one on its way faults.
fn compaction(machine: &Machine) -> Finding {
    let read = |name: &str| machine.read(format!("proc/sys/vm/{name}"));
    if read("compact_unevictable_allowed").as_deref() == Some("1") {
        return Finding::advice(
            "moves locked pages: the scheduler thread may fault",
            "sysctl vm.compact_unevictable_allowed=0",
        );
    }
    match read("compaction_proactiveness").as_deref() {
        None | Some("0") => Finding::ok("leaves locked pages alone"),
        Some(_) => Finding::advice(
            "goes on in the background, with pauses for the threads that use the pages",
            "sysctl vm.compaction_proactiveness=0",
        ),
    }
}

fn cpu_limits(machine: &Machine) -> Finding {
    let groups = limited_groups(&machine.root);
    match &groups[..] {
        [] => Finding::ok("no control group has one"),
        [first, others @ ..] => Finding::advice(
            format!("cpu.max of {first} and {} others is not kept", others.len()),
            "limit by cpu.weight, which is",
        ),
    }
}

/// The kernel's autogroup makes a group of each session, where the CPU controller makes none.
fn autogroup(machine: &Machine) -> Finding {
    let read = |file: &str| machine.read(file).unwrap_or_default();
    if read("proc/sys/kernel/sched_autogroup_enabled") != "1" {
        return Finding::ok("off");
    }
    let controllers = read("sys/fs/cgroup/cgroup.subtree_control");
    match controllers.split_whitespace().any(|name| name == "cpu") {
        true => Finding::ok("without effect: control groups share the CPUs"),
        false => Finding::advice(
            "is not kept: a session has CPU time for each of its tasks",
            "share by control groups: echo +cpu > /sys/fs/cgroup/cgroup.subtree_control",
        ),
    }
}

fn numa_balancing(machine: &Machine) -> Finding {
    match machine.read("proc/sys/kernel/numa_balancing").as_deref() {
        None | Some("0") => Finding::ok("off"),
        Some(_) => Finding::advice(
            "on: it takes pages away to see which threads fault",
            "sysctl kernel.numa_balancing=0",
        ),
    }
}

fn huge_pages(machine: &Machine) -> Finding {
    let mode = machine.read("sys/kernel/mm/transparent_hugepage/enabled");
    match mode.as_deref() {
        Some(mode) if mode.contains("[always]") => Finding::advice(
            "always: khugepaged moves memory of programs that did not ask",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        _ => Finding::ok("only where a program asks"),
    }
}

/// The drivers that steer by a preference have a governor `powersave` that is none.
fn governor(machine: &Machine) -> Finding {
    let read = |file: &str| {
        let policy = machine.read(format!("sys/devices/system/cpu/cpufreq/policy0/{file}"));
        policy.unwrap_or_default()
    };
    let steers = !read("energy_performance_preference").is_empty();
    match read("scaling_governor").as_str() {
        "" => Finding::ok("none: the frequency is not the kernel's to choose"),
        "powersave" if !steers => Finding::advice(
            "powersave: the lowest frequency, always",
            "cpupower frequency-set -g schedutil, or performance",
        ),
        governor => Finding::ok(governor),
    }
}

fn pid_namespace(machine: &Machine) -> Finding {
    /// `PROC_PID_INIT_INO` of the kernel.
    const FIRST: &str = "pid:[4026531836]";
    let link = fs::read_link(machine.root.join("proc/self/ns/pid"));
    match link.ok().as_deref().and_then(Path::to_str) {
        None | Some(FIRST) => Finding::ok("the machine's own"),
        Some(_) => Finding::advice(
            "another than the machine's: thread ids in statistics are not those seen here",
            "run it outside the container, or with the host's pid namespace",
        ),
    }
}
