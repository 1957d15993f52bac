//! What is made of the sysfs trees of machines of all kinds, sound and broken.
//!
//! The trees in `tests/topology` are not copies of machines that were at hand: they are written by
//! hand. Which CPUs, cores, caches, nodes and clocks there are is that of the machine named in the
//! first line of each, as its maker describes it; which files say so, and how they number things,
//! is that of the kernel (`drivers/base/{topology,cacheinfo,node,cpu,arch_topology}.c`,
//! `drivers/cpufreq`, `cpu_core` and `cpu_atom` of `arch/x86/events/intel`). Real trees are read by
//! tests on real kernels, in machines of one and two caches. A line is a file below `/sys/devices`
//! and its content; a list of numbers in brackets stands for as many files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use scx_metronome_core::idle::{CpuMap, CpuSet};
use scx_metronome_core::topology::{Reach, Topology};

/// The files of a machine, by their paths.
#[derive(Clone)]
struct Tree(BTreeMap<String, String>);

impl Tree {
    fn of(machine: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/topology");
        let text = fs::read_to_string(path.join(machine)).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let files = lines.flat_map(|line| {
            let (path, content) = line.split_once(':').unwrap();
            let content = format!("{}\n", content.trim());
            unfold(path)
                .into_iter()
                .map(move |path| (path, content.clone()))
        });
        Self(files.collect())
    }

    fn with(mut self, path: &str, content: &str) -> Self {
        self.0.insert(path.into(), format!("{content}\n"));
        self
    }

    fn unpack(&self) -> Directory {
        let directory = Directory::new();
        for (path, content) in &self.0 {
            directory.write(path, content);
        }
        directory
    }

    fn read(&self) -> Topology {
        self.unpack().read().unwrap()
    }
}

/// "cpu[0-1]/x" is "cpu0/x" and "cpu1/x".
fn unfold(path: &str) -> Vec<String> {
    let Some((before, (list, after))) = path
        .split_once('[')
        .map(|(before, rest)| (before, rest.split_once(']').unwrap()))
    else {
        return vec![path.to_owned()];
    };
    let number = |text: &str| text.parse::<u32>().unwrap();
    let numbers = list.split(',').flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        number(first)..=number(last)
    });
    numbers
        .flat_map(|number| unfold(&format!("{before}{number}{after}")))
        .collect()
}

/// Gone when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "sysfs-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self) -> anyhow::Result<Topology> {
        Topology::read_from(&self.0)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn everywhere(topology: &Topology) -> Reach {
    let all: Vec<u32> = (0..topology.nr_cpus).collect();
    Reach {
        affinity: all.clone(),
        cpuset: all,
    }
}

fn agent(topology: &Topology) -> String {
    let agent = topology.pick_agent_cpu(None, &everywhere(topology));
    agent.unwrap().to_string()
}

/// Which CPU a task from `prev` gets, one CPU after the other, while only `idle` ones are.
fn order(topology: &Topology, prev: i32, idle: &[u32]) -> Vec<u32> {
    let map = CpuMap::new(&topology.places());
    let all = CpuSet::below(topology.nr_cpus);
    let mut set = CpuSet::default();
    idle.iter().for_each(|cpu| set.insert(*cpu));
    let next = || {
        let cpu = map.pick(prev, &set, &all)?;
        set.remove(cpu);
        Some(cpu)
    };
    std::iter::from_fn(next).collect()
}

/// How many different values there are.
fn distinct(values: impl Iterator<Item = u32>) -> usize {
    values.collect::<std::collections::BTreeSet<_>>().len()
}

/// Nodes, last-level caches, and cores of the CPUs that run.
fn counts(topology: &Topology) -> (usize, usize, usize) {
    let online = || {
        topology
            .online
            .iter()
            .map(|cpu| topology.cpus[*cpu as usize])
    };
    (
        distinct(online().map(|cpu| cpu.node)),
        distinct(online().map(|cpu| cpu.llc)),
        distinct(online().map(|cpu| cpu.core)),
    )
}

#[test]
fn preferred_cpus_come_first_and_one_that_is_not_there_is_refused() {
    let mut topology = Tree::of("laptop").read();
    let error = topology.prefer(&[3, 99]).unwrap_err().to_string();
    assert!(
        error.contains("CPU 99") && error.contains("online are 0-15"),
        "{error}"
    );
    assert_eq!(order(&topology, 0, &[0, 9, 12])[0], 0);
    topology.prefer(&[8, 9, 10, 11]).unwrap();
    assert_eq!(order(&topology, 0, &[2, 9, 12])[0], 9);
}

#[test]
fn a_laptop_with_two_kinds_of_cores() {
    let topology = Tree::of("laptop").read();
    assert_eq!(topology.warning, None);
    assert_eq!((topology.nr_cpus, counts(&topology)), (16, (1, 1, 12)));
    assert_eq!(topology.efficient, (8..16).collect::<Vec<_>>());
    assert_eq!(topology.cpus[0].capacity, 1024);
    assert_eq!(topology.cpus[15].capacity, 1024 * 34 / 47);
    assert_eq!(agent(&topology), "CPU 15 (an efficiency core)");
    // Whole fast cores, whole slow ones, and only then the second thread of a fast one.
    assert_eq!(order(&topology, 12, &[0, 1, 3, 9, 12]), [12, 0, 9, 1, 3]);
}

#[test]
fn a_desktop_with_two_caches_of_different_size() {
    let topology = Tree::of("desktop").read();
    assert_eq!(topology.warning, None);
    assert_eq!((topology.nr_cpus, counts(&topology)), (32, (1, 2, 16)));
    assert_eq!(topology.cpus[23].llc, 0);
    assert_eq!(topology.cpus[24].llc, 8);
    // The die with the large cache is clocked lower, but its cores are no efficiency cores.
    assert_eq!(topology.efficient, [] as [u32; 0]);
    assert_eq!(agent(&topology), "CPU 31 (the last CPU)");
    assert_eq!(
        order(&topology, 9, &[0, 16, 7, 8, 24, 30]),
        [8, 24, 30, 0, 7, 16]
    );
}

#[test]
fn a_server_with_two_sockets() {
    let topology = Tree::of("server").read();
    assert_eq!(topology.warning, None);
    assert_eq!((topology.nr_cpus, counts(&topology)), (128, (2, 2, 32)));
    assert_eq!(topology.online.len(), 64);
    assert_eq!(agent(&topology), "CPU 63 (the last CPU)");
    // Siblings are half the machine apart.
    assert_eq!(
        order(&topology, 17, &[0, 32, 40, 16, 31, 63]),
        [31, 16, 63, 0, 32, 40]
    );
}

#[test]
fn a_server_with_two_caches_in_each_node() {
    let mut tree = Tree::of("server");
    for (path, content) in &mut tree.0 {
        if let Some(rest) = path.strip_prefix("system/cpu/cpu")
            && let Some((cpu, "cache/index3/shared_cpu_list")) = rest.split_once('/')
        {
            let half = cpu.parse::<u32>().unwrap() % 32 / 8 * 8;
            *content = format!("{half}-{},{}-{}\n", half + 7, half + 32, half + 39);
        }
    }
    let topology = tree.read();
    assert_eq!(
        (topology.warning.as_deref(), counts(&topology)),
        (None, (2, 4, 32))
    );
    // Its own cache, the other of its node, the other node.
    assert_eq!(order(&topology, 25, &[1, 17, 31]), [31, 17, 1]);
}

#[test]
fn a_board_that_tells_capacities() {
    let topology = Tree::of("board").read();
    assert_eq!(topology.warning, None);
    assert_eq!(counts(&topology), (1, 1, 8));
    assert_eq!(topology.efficient, [0, 1, 2, 3]);
    assert_eq!(topology.cpus[3].capacity, 414);
    assert_eq!(agent(&topology), "CPU 3 (an efficiency core)");
    assert_eq!(order(&topology, 3, &[0, 4, 6]), [4, 6, 0]);
}

#[test]
fn a_machine_with_one_cpu_has_none_for_the_scheduler_thread() {
    let topology = Tree::of("single").read();
    assert_eq!((topology.nr_cpus, counts(&topology)), (1, (1, 1, 1)));
    assert_eq!(topology.warning, None);
    let picked = topology.pick_agent_cpu(None, &everywhere(&topology));
    let error = picked.unwrap_err().to_string();
    assert!(error.contains("only one CPU is online"), "{error}");
}

fn assert_flat(topology: &Topology) {
    let shapes = topology.cpus.iter().enumerate();
    for (number, cpu) in shapes {
        assert_eq!((cpu.core, cpu.llc), (number as u32, 0));
        assert_eq!((cpu.node, cpu.capacity), (0, 1024));
    }
    assert_eq!(topology.cpus.len(), topology.nr_cpus as usize);
    assert_eq!(topology.efficient, [] as [u32; 0]);
}

#[test]
fn a_broken_machine_is_flat_with_one_warning() {
    let topology = Tree::of("broken").read();
    assert_flat(&topology);
    assert_eq!((topology.nr_cpus, topology.online.len()), (4, 4));
    assert_eq!(
        topology.warning.as_deref(),
        Some(
            "treating all CPUs alike: /sys/devices does not describe them (system/cpu/cpu0: what it shares with CPUs \"0-1\" \
             contradicts itself)"
        )
    );
    assert_eq!(agent(&topology), "CPU 3 (an isolated CPU)");
    assert_eq!(order(&topology, 2, &[0, 1]), [0, 1]);
}

#[test]
fn without_sysfs_there_are_as_many_cpus_as_the_c_library_knows() {
    let topology = Tree(BTreeMap::new()).read();
    assert_flat(&topology);
    let known = std::thread::available_parallelism().unwrap().get();
    assert!(topology.nr_cpus as usize >= known);
    assert_eq!(topology.online.len(), topology.nr_cpus as usize);
    assert!(topology.warning.unwrap().contains("system/cpu/possible"));
}

#[test]
fn any_file_that_is_missing_or_garbage_leaves_a_whole_or_a_flat_topology() {
    let tree = Tree::of("laptop");
    let directory = tree.unpack();
    let whole = directory.read().unwrap();
    let mut flat = 0;
    // 99,999 CPUs are more than a list can have.
    let garbage = ["", "garbage\nand more", "99999", "0-15", "7-3", "0,2,1"];
    for (path, content) in &tree.0 {
        for garbage in [None].into_iter().chain(garbage.map(Some)) {
            match garbage {
                Some(garbage) => directory.write(path, garbage),
                None => fs::remove_file(directory.0.join(path)).unwrap(),
            };
            let topology = directory.read().unwrap();
            let case = format!("{path}: {garbage:?}");
            assert_eq!(topology.nr_cpus, 16, "{case}");
            assert_eq!(topology.places().len(), 16, "{case}");
            match &topology.warning {
                Some(warning) => {
                    assert_eq!(warning.lines().count(), 1, "{case}: {warning}");
                    assert_flat(&topology);
                    flat += 1;
                }
                None => assert_eq!(topology.online, whole.online, "{case}"),
            }
        }
        directory.write(path, content);
    }
    assert_eq!(directory.read().unwrap(), whole);
    assert!(flat > 100, "{flat}");
}

#[test]
fn more_cpus_than_this_build_supports_are_refused() {
    let tree = Tree::of("single").with("system/cpu/possible", "0-1024");
    let error = tree.unpack().read().unwrap_err().to_string();
    assert!(error.contains("1025 CPUs"), "{error}");
}

#[test]
fn the_scheduler_thread_takes_a_cpu_without_a_tick_unless_one_is_isolated() {
    let laptop = Tree::of("laptop").with("system/cpu/nohz_full", "1-2");
    assert_eq!(agent(&laptop.read()), "CPU 2 (a CPU without a tick)");
    let both = laptop.clone().with("system/cpu/isolated", "5");
    assert_eq!(agent(&both.read()), "CPU 5 (an isolated CPU)");
    let none = laptop.with("system/cpu/nohz_full", "(null)").read();
    assert_eq!(
        (agent(&none), none.warning),
        (agent(&Tree::of("laptop").read()), None)
    );
}

#[test]
fn the_scheduler_thread_takes_an_isolated_cpu_though_the_affinity_leaves_it_out() {
    let laptop = Tree::of("laptop").with("system/cpu/isolated", "6-7");
    let topology = laptop.read();
    let mut reach = everywhere(&topology);
    // What a boot with isolcpus=6-7 gives to each process.
    reach.affinity.retain(|cpu| ![6, 7].contains(cpu));
    let pick = |wanted, reach: &Reach| {
        let picked = topology.pick_agent_cpu(wanted, reach);
        picked
            .map(|agent| agent.to_string())
            .map_err(|error| error.to_string())
    };
    assert_eq!(pick(None, &reach).unwrap(), "CPU 7 (an isolated CPU)");
    assert_eq!(pick(Some(6), &reach).unwrap(), "CPU 6 (as asked)");
    // Not where the cpuset leaves it out, too.
    reach.cpuset.retain(|cpu| *cpu != 7);
    assert_eq!(pick(None, &reach).unwrap(), "CPU 6 (an isolated CPU)");
}

#[test]
fn the_scheduler_thread_stays_in_reach_and_the_error_says_whose_bounds_these_are() {
    let topology = Tree::of("laptop").read();
    let pick = |wanted, affinity: &[u32], cpuset: &[u32]| {
        let reach = Reach {
            affinity: affinity.into(),
            cpuset: cpuset.into(),
        };
        let picked = topology.pick_agent_cpu(wanted, &reach);
        picked
            .map(|agent| agent.to_string())
            .map_err(|error| error.to_string())
    };
    let all: Vec<u32> = (0..16).collect();
    let inside = &[0, 1, 2, 3, 9][..];
    assert_eq!(
        pick(None, inside, inside).unwrap(),
        "CPU 9 (an efficiency core)"
    );
    assert_eq!(
        pick(None, &inside[..4], &all).unwrap(),
        "CPU 3 (the last CPU that this process may use)"
    );
    let error = pick(Some(15), inside, inside).unwrap_err();
    assert!(
        error.starts_with("CPU 15 cannot be taken: the cpuset of this process has only 0-3,9"),
        "{error}"
    );
    let error = pick(Some(15), inside, &all).unwrap_err();
    assert!(
        error.starts_with(
            "CPU 15 cannot be taken: this process was started with an affinity for 0-3,9 only"
        ),
        "{error}"
    );
    let error = pick(Some(16), &all, &all).unwrap_err();
    assert_eq!(
        error,
        "CPU 16 does not exist or is offline: online are 0-15"
    );
}
