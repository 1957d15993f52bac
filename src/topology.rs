//! The CPUs of the machine, from sysfs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::abi::MAX_CPUS;

/// What the scheduler needs to know about the CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The bound of CPU numbers.
    pub nr_cpus: u32,
    /// Those that run, in ascending order.
    pub online: Vec<u32>,
    /// Those that the boot command line keeps free of ordinary tasks.
    pub isolated: Vec<u32>,
    /// Those built for efficiency rather than speed; empty where all are alike.
    pub efficient: Vec<u32>,
}

impl Topology {
    /// Reads that of this machine.
    pub fn read() -> Result<Self> {
        Self::read_from(Path::new("/sys/devices"))
    }

    /// Reads it below another root than `/sys/devices`.
    pub fn read_from(devices: &Path) -> Result<Self> {
        let list = |file: &str| {
            let path = devices.join(file);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            parse_list(&text)
                .with_context(|| format!("{}: not a CPU list: {text:?}", path.display()))
        };
        let possible = list("system/cpu/possible")?;
        let nr_cpus = possible.last().map_or(0, |last| last + 1);
        if nr_cpus as usize > MAX_CPUS {
            bail!("this machine has {nr_cpus} CPUs, more than the {MAX_CPUS} this build supports");
        }
        Ok(Self {
            nr_cpus,
            online: list("system/cpu/online")?,
            // Absent on some kernels, and on machines with one kind of core.
            isolated: list("system/cpu/isolated").unwrap_or_default(),
            efficient: list("cpu_atom/cpus").unwrap_or_default(),
        })
    }

    /// The CPU for the scheduler thread: the one asked for; else an isolated one; else an efficient one; else the last.
    ///
    /// # Errors
    /// When the one asked for does not run, or when there is no second CPU for everybody else.
    pub fn pick_agent_cpu(&self, wanted: Option<u32>) -> Result<u32> {
        let is_online = |cpu: &&u32| self.online.contains(cpu);
        if self.online.len() < 2 {
            bail!(
                "only one CPU is online: the scheduler thread needs one and the tasks at least one other"
            );
        }
        if let Some(cpu) = wanted {
            if !self.online.contains(&cpu) {
                bail!(
                    "CPU {cpu} does not exist or is offline: online are {}",
                    format_list(&self.online)
                );
            }
            return Ok(cpu);
        }
        let last_of = |cpus: &[u32]| cpus.iter().rev().find(is_online).copied();
        last_of(&self.isolated)
            .or_else(|| last_of(&self.efficient))
            .or_else(|| last_of(&self.online))
            .context("no CPU is online")
    }
}

/// Parses "0-3,5,8-9".
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last > 1 << 16 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
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

    fn topology(online: &[u32], isolated: &[u32], efficient: &[u32]) -> Topology {
        Topology {
            nr_cpus: 8,
            online: online.into(),
            isolated: isolated.into(),
            efficient: efficient.into(),
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
        assert_eq!(parse_list("0-4294967295"), None);
        assert_eq!(format_list(&[0, 1, 2, 5, 8, 9]), "0-2,5,8-9");
    }

    #[test]
    fn the_scheduler_thread_prefers_isolated_then_efficient_then_the_last_cpu() {
        let pick = |topology: Topology| topology.pick_agent_cpu(None).ok();
        assert_eq!(pick(topology(&[0, 1, 2, 3], &[1, 6], &[2])), Some(1));
        assert_eq!(pick(topology(&[0, 1, 2, 3], &[6], &[2])), Some(2));
        assert_eq!(pick(topology(&[0, 1, 2, 3], &[], &[])), Some(3));
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_with_the_list_of_those_that_are() {
        let error = topology(&[0, 1, 3], &[], &[])
            .pick_agent_cpu(Some(2))
            .map_err(|error| error.to_string());
        assert_eq!(
            error,
            Err("CPU 2 does not exist or is offline: online are 0-1,3".into())
        );
        assert!(topology(&[0], &[], &[]).pick_agent_cpu(None).is_err());
    }
}
