//! The CPUs of the machine, from sysfs: which share a core, a cache, a node, how fast they are, and
//! which one the scheduler thread takes.
//!
//! Kernels, architectures and containers differ in what they tell. What a machine need not have,
//! such as nodes, frequencies or two kinds of cores, is flat where it is not told. But where a file
//! is missing that all kernels have, or one makes no sense or contradicts another, nothing of it is
//! believed: all CPUs count as alike, and [`Topology::warning`] says why. Scheduling then still
//! works, only without regard to distance.
//!
//! # Isolated CPUs
//! No kernel attaches a sched_ext scheduler while `isolcpus=` keeps CPUs out of the scheduling
//! domains, as `isolcpus=CPUS` and `isolcpus=domain,CPUS` do ("Not compatible with isolcpus= domain
//! isolation" in `kernel/sched/ext.c`). So [`Topology::isolated`] serves the message that says so,
//! and the choice of a CPU on a kernel that would. What works instead is `nohz_full=CPUS`, alone or
//! with `isolcpus=nohz,managed_irq,CPUS`: no tick, and no interrupt of a managed queue. The
//! scheduler thread takes the last of these CPUs, and other tasks stay away because the kernel side
//! sends none there while the thread is awake.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::abi::MAX_CPUS;
use crate::idle::{CpuPlace, RANKS};

/// The capacity of the fastest CPU, as in the kernel (`SCHED_CAPACITY_SCALE`).
const FULL: u32 = 1024;

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The first CPU of its core.
    pub core: u32,
    /// The first CPU under its last-level cache.
    pub llc: u32,
    /// Its NUMA node.
    pub node: u32,
    /// Its speed, where 1024 is that of the fastest.
    pub capacity: u32,
}

/// What the scheduler needs to know about the CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The bound of CPU numbers.
    pub nr_cpus: u32,
    /// The CPUs below it. One that does not run shares nothing with any other.
    pub cpus: Vec<Cpu>,
    /// Those that run, in ascending order.
    pub online: Vec<u32>,
    /// Those that the boot command line keeps out of the scheduling domains; see the module.
    pub isolated: Vec<u32>,
    /// Those that the boot command line spares the tick (`nohz_full=`).
    pub tickless: Vec<u32>,
    /// Those built for efficiency rather than speed; empty where all are alike.
    pub efficient: Vec<u32>,
    /// Those that the user prefers; empty if all are alike to him.
    pub preferred: Vec<u32>,
    /// Why all CPUs count as alike, in one line, if that is for want of something better.
    pub warning: Option<String>,
}

impl Topology {
    /// Reads that of this machine.
    ///
    /// # Errors
    /// As [`read_from`](Self::read_from).
    pub fn read() -> Result<Self> {
        Self::read_from(Path::new("/sys/devices"))
    }

    /// Reads it below another root than `/sys/devices`.
    ///
    /// # Errors
    /// Only when there are more than [`MAX_CPUS`] CPUs. What cannot be read is made up, with a
    /// [`warning`](Self::warning).
    pub fn read_from(devices: &Path) -> Result<Self> {
        let sysfs = Sysfs { devices };
        let topology = sysfs.topology().unwrap_or_else(|fault| sysfs.flat(&fault));
        if topology.nr_cpus as usize > MAX_CPUS {
            bail!(
                "this machine has {} CPUs, more than the {MAX_CPUS} this build supports",
                topology.nr_cpus
            );
        }
        Ok(topology)
    }

    /// The CPUs as the search for an idle one wants them.
    pub fn places(&self) -> Vec<CpuPlace> {
        let ranks = ranks(&self.cpus, &self.efficient);
        let place = |(number, (cpu, rank)): (usize, (&Cpu, u8))| CpuPlace {
            node: cpu.node as u16,
            llc: cpu.llc as u16,
            core: cpu.core as u16,
            rank: match self.preferred.is_empty() || self.preferred.contains(&(number as u32)) {
                true => rank,
                false => RANKS as u8 - 1,
            },
        };
        let ranked = self.cpus.iter().zip(ranks);
        ranked.enumerate().map(place).collect()
    }

    /// From now on these count as fast as they are, and all others as the slowest.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn prefer(&mut self, cpus: &[u32]) -> Result<()> {
        if let Some(cpu) = cpus.iter().find(|cpu| !self.online.contains(cpu)) {
            bail!(
                "CPU {cpu} cannot be preferred, it is not online: online are {}",
                format_list(&self.online)
            );
        }
        self.preferred = cpus.to_vec();
        Ok(())
    }

    /// The CPU for the scheduler thread: the one asked for; else, of those in reach, an isolated
    /// one; else one without a tick; else an efficient one; else the last.
    ///
    /// # Errors
    /// When the one asked for does not run or is out of reach, or when there is no second CPU for
    /// all other tasks.
    pub fn pick_agent_cpu(&self, wanted: Option<u32>, reach: &Reach) -> Result<AgentCpu> {
        if self.online.len() < 2 {
            bail!(
                "only one CPU is online: the scheduler thread needs one and the tasks at least one other"
            );
        }
        if let Some(cpu) = wanted {
            self.check_reach(cpu, reach)?;
            let why = Why::AskedFor;
            return Ok(AgentCpu { cpu, why });
        }
        let reachable = |cpu: &u32| self.check_reach(*cpu, reach).is_ok();
        let last_of = |cpus: &[u32], why| {
            let cpu = cpus.iter().copied().rfind(reachable)?;
            Some(AgentCpu { cpu, why })
        };
        let last = if self.online.iter().all(reachable) {
            Why::Last
        } else {
            Why::LastInReach
        };
        last_of(&self.isolated, Why::Isolated)
            .or_else(|| last_of(&self.tickless, Why::Tickless))
            .or_else(|| last_of(&self.efficient, Why::Efficient))
            .or_else(|| last_of(&self.online, last))
            .context("no CPU that is online is one that this process may use")
    }

    /// Whether the CPU runs and this process may use it.
    fn check_reach(&self, cpu: u32, reach: &Reach) -> Result<()> {
        if !self.online.contains(&cpu) {
            bail!(
                "CPU {cpu} does not exist or is offline: online are {}",
                format_list(&self.online)
            );
        }
        if !reach.cpuset.contains(&cpu) {
            bail!(
                "CPU {cpu} cannot be taken: the cpuset of this process has only {} (take one of these, or widen the cpuset: \
                 AllowedCPUs= in a systemd unit, --cpuset-cpus of a container)",
                format_list(&reach.cpuset)
            );
        }
        // Isolated CPUs are in no thread's affinity until it asks for them.
        if !reach.affinity.contains(&cpu) && !self.isolated.contains(&cpu) {
            bail!(
                "CPU {cpu} cannot be taken: this process was started with an affinity for {} only (take one of these, or \
                 start it without taskset or CPUAffinity=)",
                format_list(&reach.affinity)
            );
        }
        Ok(())
    }
}

/// The CPUs that this process may use, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Where it may run as it was started.
    pub affinity: Vec<u32>,
    /// Where its cpuset lets it go. All CPUs, if it has none of its own.
    pub cpuset: Vec<u32>,
}

/// The CPU of the scheduler thread, and why it is that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentCpu {
    /// Its number.
    pub cpu: u32,
    /// Why.
    pub why: Why,
}

/// Why a CPU is that of the scheduler thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was asked for.
    AskedFor,
    /// It is kept free of ordinary tasks.
    Isolated,
    /// No tick interrupts it.
    Tickless,
    /// It is no loss to tasks that are in a hurry.
    Efficient,
    /// Interrupts and old habits are on the first.
    Last,
    /// The same, of those that this process may use.
    LastInReach,
}

impl fmt::Display for AgentCpu {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Why::AskedFor => "as asked",
            Why::Isolated => "an isolated CPU",
            Why::Tickless => "a CPU without a tick",
            Why::Efficient => "an efficiency core",
            Why::Last => "the last CPU",
            Why::LastInReach => "the last CPU that this process may use",
        };
        write!(out, "CPU {} ({why})", self.cpu)
    }
}

/// The class of speed of each CPU: 0 is the fastest, and the next begins where CPUs are slower by
/// more than a fifth. One maker's CPUs differ by up to a tenth, its kinds of cores by a quarter or
/// more.
fn ranks(cpus: &[Cpu], efficient: &[u32]) -> Vec<u8> {
    let speed = |cpu: u32| {
        let capacity = cpus.get(cpu as usize).map_or(FULL, |cpu| cpu.capacity);
        (!efficient.contains(&cpu), capacity)
    };
    let mut sorted: Vec<u32> = (0..cpus.len() as u32).collect();
    sorted.sort_by_key(|cpu| std::cmp::Reverse(speed(*cpu)));
    let mut ranks = vec![0; cpus.len()];
    let mut rank = 0u8;
    let mut fastest = sorted.first().copied().map_or((true, FULL), speed);
    for cpu in sorted {
        let own = speed(cpu);
        if own.0 != fastest.0 || own.1 * 5 < fastest.1 * 4 {
            (rank, fastest) = (rank.saturating_add(1), own);
        }
        ranks[cpu as usize] = rank;
    }
    ranks
}

/// What is wrong with what sysfs says.
type Fault = String;

/// The tree below `/sys/devices`.
struct Sysfs<'a> {
    devices: &'a Path,
}

impl Sysfs<'_> {
    fn topology(&self) -> Result<Topology, Fault> {
        let possible = self.list("system/cpu/possible")?;
        let online = self.list("system/cpu/online")?;
        if online.is_empty() || !online.iter().all(|cpu| possible.contains(cpu)) {
            return Err("system/cpu/online: not a part of system/cpu/possible".into());
        }
        let isolated = self.list_if_any("system/cpu/isolated")?;
        let nr_cpus = possible.last().map_or(0, |last| last + 1);
        let cores = self.groups(&online, |cpu| self.siblings(cpu))?;
        let llcs = self.groups(&online, |cpu| self.last_level_cache(cpu))?;
        let mut cpus: Vec<Cpu> = (0..nr_cpus).map(alone).collect();
        for ((cpu, core), llc) in online.iter().zip(cores).zip(llcs) {
            cpus[*cpu as usize].core = core;
            cpus[*cpu as usize].llc = llc;
        }
        if let Some(torn) = torn_core(&cpus) {
            return Err(format!(
                "system/cpu/cpu{torn}/cache: does not hold its core"
            ));
        }
        self.find_nodes(&mut cpus, &online)?;
        self.find_capacities(&mut cpus, &online)?;
        let efficient = self.efficient(&cpus, &online)?;
        Ok(Topology {
            nr_cpus,
            cpus,
            online,
            isolated,
            tickless: self.tickless(),
            efficient,
            preferred: Vec::new(),
            warning: None,
        })
    }

    /// All CPUs alike, as many as anything tells of.
    fn flat(&self, fault: &str) -> Topology {
        let online = self.list("system/cpu/online").ok();
        let possible = self.list("system/cpu/possible").ok();
        let bound = |list: &Vec<u32>| list.last().map(|last| last + 1);
        let told = possible.iter().chain(&online).filter_map(bound).max();
        let nr_cpus = told.unwrap_or_else(configured_cpus);
        let online = online.filter(|online| !online.is_empty());
        let isolated = self.list_if_any("system/cpu/isolated").unwrap_or_default();
        Topology {
            nr_cpus,
            cpus: (0..nr_cpus)
                .map(|cpu| Cpu {
                    llc: 0,
                    ..alone(cpu)
                })
                .collect(),
            online: online.unwrap_or_else(|| (0..nr_cpus).collect()),
            isolated,
            tickless: self.tickless(),
            efficient: Vec::new(),
            preferred: Vec::new(),
            warning: Some(format!(
                "treating all CPUs alike: /sys/devices does not describe them ({fault})"
            )),
        }
    }

    /// Nothing depends on it, and where there are none some kernels write "(null)".
    fn tickless(&self) -> Vec<u32> {
        self.list_if_any("system/cpu/nohz_full").unwrap_or_default()
    }

    /// The CPUs of a core.
    fn siblings(&self, cpu: u32) -> Result<Vec<u32>, Fault> {
        let topology = format!("system/cpu/cpu{cpu}/topology");
        // The second is the name before 5.3.
        self.list(&format!("{topology}/core_cpus_list"))
            .or_else(|_| self.list(&format!("{topology}/thread_siblings_list")))
    }

    /// The CPUs under the last-level cache of one.
    fn last_level_cache(&self, cpu: u32) -> Result<Vec<u32>, Fault> {
        let mut last = None;
        for index in 0.. {
            let cache = format!("system/cpu/cpu{cpu}/cache/index{index}");
            let Some(level) = self.number(&format!("{cache}/level"))? else {
                break;
            };
            let is_for_data = self.text(&format!("{cache}/type"))? != "Instruction";
            if is_for_data && last.as_ref().is_none_or(|(highest, _)| level > *highest) {
                last = Some((level, cache));
            }
        }
        let Some((_, cache)) = last else {
            return Err(format!("system/cpu/cpu{cpu}/cache: says nothing"));
        };
        self.list(&format!("{cache}/shared_cpu_list"))
    }

    /// For each CPU the first of those that it shares something with, if all that share it agree.
    fn groups(
        &self,
        online: &[u32],
        sharing: impl Fn(u32) -> Result<Vec<u32>, Fault>,
    ) -> Result<Vec<u32>, Fault> {
        let mut lists = Vec::new();
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for cpu in online {
            let mut with = sharing(*cpu)?;
            with.retain(|other| online.binary_search(other).is_ok());
            let first = with.first().copied().unwrap_or(*cpu);
            groups.entry(first).or_default().push(*cpu);
            lists.push((*cpu, first, with));
        }
        let disagrees = |(_, first, with): &&(u32, u32, Vec<u32>)| groups.get(first) != Some(with);
        if let Some((cpu, _, with)) = lists.iter().find(disagrees) {
            return Err(format!(
                "system/cpu/cpu{cpu}: what it shares with CPUs {:?} contradicts itself",
                format_list(with)
            ));
        }
        Ok(lists.into_iter().map(|(_, first, _)| first).collect())
    }

    fn find_nodes(&self, cpus: &mut [Cpu], online: &[u32]) -> Result<(), Fault> {
        let mut homeless = online.to_vec();
        // A kernel without NUMA has one node and does not say so.
        for node in self.list_if_any("system/node/online")? {
            for cpu in self.list(&format!("system/node/node{node}/cpulist"))? {
                if let Some(entry) = cpus.get_mut(cpu as usize) {
                    entry.node = node;
                }
                homeless.retain(|other| *other != cpu);
            }
        }
        match homeless.first() {
            Some(cpu) if homeless.len() < online.len() => {
                Err(format!("system/node: CPU {cpu} is in none"))
            }
            _ => Ok(()),
        }
    }

    /// From the kernel's own figures if they differ, else from the highest frequencies. A CPU
    /// without a figure is fast.
    fn find_capacities(&self, cpus: &mut [Cpu], online: &[u32]) -> Result<(), Fault> {
        for file in ["cpu_capacity", "cpufreq/cpuinfo_max_freq"] {
            let figures: Vec<_> = online
                .iter()
                .map(|cpu| self.number(&format!("system/cpu/cpu{cpu}/{file}")))
                .collect::<Result<_, _>>()?;
            let highest = figures.iter().flatten().max().copied().unwrap_or_default();
            let differ = figures.iter().flatten().any(|figure| *figure != highest);
            if !differ {
                continue;
            }
            for (cpu, figure) in online.iter().zip(figures) {
                let capacity = figure.unwrap_or(highest) * u64::from(FULL) / highest;
                cpus[*cpu as usize].capacity = capacity as u32;
            }
            break;
        }
        Ok(())
    }

    /// As x86 says it; else the slowest class of several.
    fn efficient(&self, cpus: &[Cpu], online: &[u32]) -> Result<Vec<u32>, Fault> {
        let mut told = self.list_if_any("cpu_atom/cpus")?;
        told.extend(self.list_if_any("cpu_lowpower/cpus")?);
        if !told.is_empty() {
            told.sort_unstable();
            return Ok(told);
        }
        let ranks = ranks(cpus, &[]);
        let slowest = ranks.iter().max().copied().filter(|slowest| *slowest > 0);
        let is_slow = |cpu: &&u32| Some(ranks[**cpu as usize]) == slowest;
        Ok(online.iter().filter(is_slow).copied().collect())
    }

    /// The text of a file, without the newline.
    fn text(&self, file: &str) -> Result<String, Fault> {
        match fs::read_to_string(self.devices.join(file)) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(format!("{file}: {error}")),
        }
    }

    fn list(&self, file: &str) -> Result<Vec<u32>, Fault> {
        let text = self.text(file)?;
        parse_list(&text).ok_or_else(|| format!("{file}: not a CPU list: {}", excerpt(&text)))
    }

    /// An empty list if there is no such file.
    fn list_if_any(&self, file: &str) -> Result<Vec<u32>, Fault> {
        if self.is_absent(file) {
            return Ok(Vec::new());
        }
        self.list(file)
    }

    /// A number, if there is such a file. Those read here are unknown to the kernel where they are
    /// 0.
    fn number(&self, file: &str) -> Result<Option<u64>, Fault> {
        if self.is_absent(file) {
            return Ok(None);
        }
        let text = self.text(file)?;
        match text.parse::<u32>() {
            Ok(number) => Ok((number > 0).then_some(u64::from(number))),
            Err(_) => Err(format!("{file}: not a number: {}", excerpt(&text))),
        }
    }

    fn is_absent(&self, file: &str) -> bool {
        let found = fs::metadata(self.devices.join(file));
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

/// A CPU of which nothing is known.
fn alone(cpu: u32) -> Cpu {
    Cpu {
        core: cpu,
        llc: cpu,
        node: 0,
        capacity: FULL,
    }
}

/// A CPU whose core is not wholly under its cache.
fn torn_core(cpus: &[Cpu]) -> Option<usize> {
    cpus.iter().position(|cpu| {
        let first = cpus.get(cpu.core as usize);
        first.is_some_and(|first| first.llc != cpu.llc)
    })
}

/// What the C library makes of it where sysfs is silent; it asks elsewhere, too.
fn configured_cpus() -> u32 {
    // SAFETY: a plain library call.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
    u32::try_from(cpus).unwrap_or(1).max(1)
}

/// The beginning of what a file says, in one line.
fn excerpt(text: &str) -> String {
    let beginning: String = text.chars().take(32).collect();
    format!("{beginning:?}")
}

/// Parses "0-3,5,8-9" into ascending numbers; `None` if it is no such list.
pub fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last > 1 << 16 {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.is_sorted().then_some(cpus)
}

fn format_list(cpus: &[u32]) -> String {
    let texts = cpus.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => format!("{one}"),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(capacity: u32) -> Cpu {
        Cpu {
            capacity,
            ..alone(0)
        }
    }

    #[test]
    fn lists_are_parsed_and_written_as_the_kernel_does() {
        assert_eq!(
            parse_list("0-3,5,8-9\n"),
            Some([0, 1, 2, 3, 5, 8, 9].into())
        );
        assert_eq!(parse_list("\n"), Some(Vec::new()));
        assert_eq!(parse_list("0-x"), None);
        assert_eq!(parse_list("5,1"), None);
        assert_eq!(parse_list("0-4294967295"), None);
        assert_eq!(format_list(&[0, 1, 2, 5, 8, 9]), "0-2,5,8-9");
    }

    #[test]
    fn a_class_of_speed_ends_where_cpus_are_slower_by_a_fifth_or_of_another_kind() {
        let cpus = [1024, 900, 820, 819, 660, 400].map(cpu);
        assert_eq!(ranks(&cpus, &[]), [0, 0, 0, 1, 1, 2]);
        assert_eq!(ranks(&cpus, &[1]), [0, 3, 0, 1, 1, 2]);
        assert_eq!(ranks(&[], &[]), Vec::<u8>::new());
    }
}
