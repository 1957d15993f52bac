//! What a scheduler's own process costs, read from /proc while a load runs.
//!
//! Context switches of the whole system stand for scheduled tasks: every scheduler has them, and
//! they are counted by the kernel, not by the scheduler. What the BPF programs of a scheduler cost
//! is time of the tasks that they run for, not of its process; it is read from the programs' own
//! statistics, or else schedulers that do all their work there would seem to cost nothing.

use crate::figure::Figure;
use anyhow::{Context, Result};
use loads::clock::{now, seconds};
use std::collections::BTreeMap;
use std::fs;

/// The counts at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// When, ns.
    pub(crate) at: u64,
    /// CPU time of all threads, ns.
    pub(crate) cpu: u64,
    /// Time in its BPF programs, ns.
    pub(crate) bpf: u64,
    /// Page faults, minor and major.
    pub(crate) faults: u64,
    /// Context switches of the system.
    pub(crate) switches: u64,
}

impl Reading {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn take(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        let system = fs::read_to_string("/proc/stat")?;
        Ok(Self {
            at: now(),
            cpu: cpu_time(pid),
            bpf: bpf_time(pid),
            faults: faults(&stat).context("/proc/*/stat is not as expected")?,
            switches: switches(&system).context("/proc/stat has no ctxt")?,
        })
    }

    /// The figures of the time since `before`, with `syscalls` system calls of the process in it.
    #[must_use]
    pub(crate) fn since(&self, before: &Self, syscalls: Option<f64>) -> BTreeMap<Figure, f64> {
        let elapsed = (self.at - before.at) as f64;
        let switches = ((self.switches - before.switches) as f64).max(1.0);
        // Threads that have ended take their time with them.
        let cpu = self.cpu.saturating_sub(before.cpu) as f64;
        let bpf = self.bpf.saturating_sub(before.bpf) as f64;
        let faults = self.faults.saturating_sub(before.faults) as f64;
        let mut figures = BTreeMap::from([
            (Figure::Cpu, cpu / 1e6 / (switches / 1e3)),
            (Figure::Bpf, bpf / 1e6 / (switches / 1e3)),
            (Figure::Percent, cpu * 100.0 / elapsed),
            (Figure::Faults, faults / seconds(self.at - before.at)),
            (Figure::Switches, switches),
        ]);
        if let Some(syscalls) = syscalls {
            figures.insert(Figure::Syscalls, syscalls / switches);
        }
        figures
    }
}

/// Resident memory of `pid` in MiB.
#[must_use]
pub(crate) fn resident(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Of all threads; `schedstat` has nanoseconds, where `stat` has hundredths of a second.
fn cpu_time(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads
        .filter_map(|thread| {
            first_number(&fs::read_to_string(thread.path().join("schedstat")).ok()?)
        })
        .sum()
}

/// Of the programs that the process holds open; 0 unless kernel.bpf_stats_enabled is set.
fn bpf_time(pid: u32) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let programs: BTreeMap<u64, u64> = files
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|file| program_time(&fs::read_to_string(file.path()).ok()?))
        .collect();
    programs.values().sum()
}

/// The id and the time of a BPF program, if this is what /proc/*/fdinfo says of one.
fn program_time(fdinfo: &str) -> Option<(u64, u64)> {
    let value = |key| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(key))?;
        first_number(line)
    };
    Some((value("prog_id:")?, value("run_time_ns:")?))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Minor and major faults: the eighth and the tenth field after the name, which may hold spaces
/// (proc_pid_stat(5)).
fn faults(stat: &str) -> Option<u64> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(field(7)? + field(9)?)
}

fn switches(stat: &str) -> Option<u64> {
    first_number(stat.lines().find_map(|line| line.strip_prefix("ctxt "))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 5 3 2 10 20 0 0 20 0";
        assert_eq!(faults(stat), Some(103));
        assert_eq!(faults("7 (a)"), None);
        assert_eq!(switches("cpu 1 2\nctxt 99\nbtime 1\n"), Some(99));
        let fdinfo = "pos:\t0\nprog_id:\t12\nrun_time_ns:\t345\nrun_cnt:\t2\n";
        assert_eq!(program_time(fdinfo), Some((12, 345)));
        assert_eq!(program_time("pos:\t0\n"), None);
    }

    #[test]
    fn costs_are_for_a_thousand_switches() {
        let before = Reading::default();
        let after = Reading {
            at: 2_000_000_000,
            cpu: 500_000_000,
            bpf: 100_000_000,
            faults: 10,
            switches: 50_000,
        };
        let figures = after.since(&before, Some(25_000.0));
        let get = |figure| figures.get(&figure).copied();
        assert_eq!(
            (get(Figure::Cpu), get(Figure::Bpf)),
            (Some(10.0), Some(2.0))
        );
        assert_eq!(
            (get(Figure::Percent), get(Figure::Faults)),
            (Some(25.0), Some(5.0))
        );
        assert_eq!(get(Figure::Syscalls), Some(0.5));
        assert!(!after.since(&before, None).contains_key(&Figure::Syscalls));
    }

    #[test]
    fn this_process_can_be_read() -> Result<()> {
        let reading = Reading::take(std::process::id())?;
        assert!(reading.cpu > 0 && reading.faults > 0 && reading.switches > 0);
        assert!(resident(std::process::id()).is_some_and(|mib| mib > 0.1));
        Ok(())
    }
}
