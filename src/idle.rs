//! Which idle CPU takes a task: the nearest to where its data is, found without asking the kernel.
//!
//! A task that moves wants its caches: its last CPU, else one under the same last-level cache, else
//! one of the same NUMA node. Among those it wants a core to itself, and on machines with two kinds
//! of cores a fast one. To ask the kernel costs a system call for each task; a sorted list of CPUs
//! for each CPU answers without one, but takes 2 MiB for 1,024 CPUs and is searched entry by entry.
//!
//! # Mechanism
//! All CPUs under one cache have the same preferences, but for themselves. So each level, which is
//! the CPUs under the cache, those of the node, or all, is kept once, as masks for words of 64
//! CPUs, those of the fast cores first. [`CpuMap::pick`] lays them over the words of idle CPUs; the
//! first bit left is the answer:
//!
//! 1. the previous CPU,
//! 2. under its last-level cache: a core of which all threads are idle, else any CPU,
//! 3. in its NUMA node: the same,
//! 4. anywhere: the same,
//!
//! each time a faster core before a slower one, and the lowest number among equals. Whether the
//! siblings of CPUs are idle is computed for a word at a time as well: their word is turned until
//! each bit lies upon its sibling's.
//!
//! # Claims
//! This module only finds. A claim is a pending kick, at one reading of the CPU's
//! `idle_seq`, see [`shared`](crate::shared). Only the scheduler thread notes kicks, so a claim is
//! a plain store, and it keeps none but its own decisions from meeting. The kernel side does not
//! hear of it. Its tasks are kept apart by the kernel, which takes a CPU out of its own masks of
//! idle ones with one atomic operation (`scx_idle_test_and_clear_cpu()`); but it may send a task
//! that wakes to a CPU that we have claimed in the same moment, and then one of the two waits.
//!
//! # Limits
//! A CPU that went idle a moment ago may be missed, one that got work a moment ago may be found.
//! Without a [`Topology`](CpuPlace) all CPUs are alike ([`CpuMap::flat`]).
#![deny(clippy::indexing_slicing)]

use heapless::Vec;

use crate::abi::MAX_CPUS;
use crate::task::QueuedTask;

/// Words of 64 CPUs.
const WORDS: usize = MAX_CPUS.div_ceil(64);

/// Classes of speed at most. Machines have one to three.
pub const RANKS: usize = 4;

/// A bit for each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSet([u64; WORDS]);

impl CpuSet {
    /// The CPUs numbered below `nr`.
    pub fn below(nr: u32) -> Self {
        let mut set = Self::default();
        for (word, first) in set.0.iter_mut().zip((0..).step_by(64)) {
            *word = match nr.saturating_sub(first) {
                0 => 0,
                some @ 1..64 => (1 << some) - 1,
                _ => u64::MAX,
            };
        }
        set
    }

    /// Whether `cpu` is in it.
    pub fn contains(&self, cpu: u32) -> bool {
        self.word(cpu as usize / 64) >> (cpu % 64) & 1 == 1
    }

    /// Puts `cpu` into it, unless there can be no such CPU.
    pub fn insert(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }

    /// Takes `cpu` out of it.
    pub fn remove(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut(cpu as usize / 64) {
            *word &= !(1 << (cpu % 64));
        }
    }

    /// The bits of CPUs `64 * at` and up; 0 beyond the last.
    pub(crate) fn word(&self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or_default()
    }

    /// Those bits, to write to.
    pub(crate) fn word_mut(&mut self, at: usize) -> Option<&mut u64> {
        self.0.get_mut(at)
    }
}

/// Where a CPU is. Equal numbers are the same thing; they need not be dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuPlace {
    /// Its NUMA node.
    pub node: u16,
    /// Its last-level cache. What is of two nodes counts as two.
    pub llc: u16,
    /// Its core, counted over the whole machine.
    pub core: u16,
    /// How fast it is: 0 is fastest. Those from [`RANKS`] on count as the slowest.
    pub rank: u8,
}

impl CpuPlace {
    fn rank(&self) -> usize {
        usize::from(self.rank).min(RANKS - 1)
    }
}

/// CPUs of one rank within one word. Packed: there are thousands.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(2))]
struct Part {
    mask: u64,
    word: u16,
}

/// Which parts make a level for a CPU.
#[derive(Clone, Copy, Debug, Default)]
struct Range {
    start: u16,
    end: u16,
}

impl Range {
    fn of<T>(self, parts: &[T]) -> &[T] {
        let range = usize::from(self.start)..usize::from(self.end);
        parts.get(range).unwrap_or_default()
    }
}

/// CPUs of one word whose next siblings lie in one word, each at the same distance.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(2))]
struct Siblings {
    mask: u64,
    /// Where the siblings are.
    from: u8,
    /// By how many bits their word is turned right to lie upon `mask`.
    turn: u8,
}

/// The preferences of all CPUs: 40 KiB, of which a machine with 16 CPUs uses a few cache lines.
#[derive(Clone, Debug)]
pub struct CpuMap {
    /// The levels of each CPU: under its cache, in its node.
    levels: Vec<[Range; 2], MAX_CPUS>,
    // A part has one CPU at least, and within a level all are of different CPUs: no more parts
    // than CPUs.
    llcs: Vec<Part, MAX_CPUS>,
    nodes: Vec<Part, MAX_CPUS>,
    everywhere: Vec<Part, { RANKS * WORDS }>,
    /// The same for siblings, in the order of their words: no more than CPUs. Empty if no core has
    /// two.
    siblings: Vec<Siblings, MAX_CPUS>,
    /// Those of each word.
    siblings_at: [Range; WORDS],
    /// Threads of a core, at most.
    threads: u32,
}

impl CpuMap {
    /// For CPUs that are all alike: the lowest number first.
    pub const fn flat() -> Self {
        Self {
            levels: Vec::new(),
            llcs: Vec::new(),
            nodes: Vec::new(),
            everywhere: Vec::new(),
            siblings: Vec::new(),
            siblings_at: [Range { start: 0, end: 0 }; WORDS],
            threads: 1,
        }
    }

    /// For CPUs 0, 1 and so on at these places, and others after them; those from [`MAX_CPUS`] on
    /// are ignored.
    pub fn new(places: &[CpuPlace]) -> Self {
        let mut map = Self::flat();
        map.set(places);
        map
    }

    /// The same, in place.
    pub(crate) fn set(&mut self, places: &[CpuPlace]) {
        let places = places.get(..MAX_CPUS).unwrap_or(places);
        self.levels.clear();
        self.llcs.clear();
        self.nodes.clear();
        self.everywhere.clear();
        for (cpu, own) in places.iter().enumerate() {
            let near = |other: &CpuPlace| (other.node, other.llc) == (own.node, own.llc);
            let in_node = |other: &CpuPlace| other.node == own.node;
            // Where others are that came before, there it has been made.
            let found = |same: &dyn Fn(&CpuPlace) -> bool, level: usize| {
                let first = places.iter().position(same).filter(|first| *first < cpu)?;
                self.levels.get(first)?.get(level).copied()
            };
            let (llc, node) = (found(&near, 0), found(&in_node, 1));
            let llc = llc.unwrap_or_else(|| add_level(&mut self.llcs, places, near));
            let node = node.unwrap_or_else(|| add_level(&mut self.nodes, places, in_node));
            let _ = self.levels.push([llc, node]);
        }
        add_level(&mut self.everywhere, places, |_| true);
        self.add_siblings(places);
    }

    fn add_siblings(&mut self, places: &[CpuPlace]) {
        self.threads = 1;
        self.siblings.clear();
        self.siblings_at = [Range::default(); WORDS];
        for (cpu, own) in places.iter().enumerate() {
            let mut core = (0..).zip(places).filter(|(_, at)| at.core == own.core);
            self.threads = self.threads.max(core.clone().count() as u32);
            let first = core.next();
            let next = core.find(|(other, _)| *other > cpu).or(first);
            let sibling = next.map_or(cpu, |(other, _)| other);
            self.add_sibling(cpu, sibling);
        }
        if self.threads == 1 {
            self.siblings.clear();
            self.siblings_at = [Range::default(); WORDS];
        }
    }

    /// CPUs come in ascending order.
    fn add_sibling(&mut self, cpu: usize, sibling: usize) {
        let new = Siblings {
            mask: 1 << (cpu % 64),
            from: (sibling / 64) as u8,
            turn: ((sibling + 64 - cpu % 64) % 64) as u8,
        };
        let end = self.siblings.len() as u16;
        let Some(range) = self.siblings_at.get_mut(cpu / 64) else {
            return;
        };
        if range.end == 0 {
            *range = Range { start: end, end };
        }
        let of_word = self.siblings.iter_mut().skip(usize::from(range.start));
        let mut alike = of_word.filter(|other| (other.from, other.turn) == (new.from, new.turn));
        if let Some(siblings) = alike.next() {
            siblings.mask |= new.mask;
        } else if self.siblings.push(new).is_ok() {
            range.end = end + 1;
        }
    }

    /// Of the CPUs that are `idle` and `allowed`, the best for a task that ran on `prev_cpu` last;
    /// a number that is no CPU's has no neighbours.
    ///
    /// # Cost
    /// No atomic operation. Two bits, if the previous CPU is idle. Else, for each 64 CPUs and class
    /// of speed of a level, two loads, until one is found that has idle CPUs, and on machines
    /// with siblings a few operations for each that has some.
    pub fn pick(&self, prev_cpu: i32, idle: &CpuSet, allowed: &CpuSet) -> Option<u32> {
        let prev = prev_cpu as u32;
        if idle.contains(prev) && allowed.contains(prev) {
            return Some(prev);
        }
        let almost;
        let cores = match self.threads {
            1 | 2 => idle,
            _ => {
                almost = self.almost_idle_cores(idle);
                &almost
            }
        };
        let first = |level| self.first(level, idle, cores, allowed);
        let [llc, node] = self.levels.get(prev as usize).copied().unwrap_or_default();
        first(llc.of(&self.llcs))
            .or_else(|| first(node.of(&self.nodes)))
            .or_else(|| first(&self.everywhere))
            .or_else(|| lowest(idle, allowed))
    }

    /// The first CPU of a level that is idle and allowed, and of an idle core if there is such a
    /// one.
    fn first(
        &self,
        level: &[Part],
        idle: &CpuSet,
        almost: &CpuSet,
        allowed: &CpuSet,
    ) -> Option<u32> {
        let mut any = None;
        for part in level {
            let at = usize::from(part.word);
            let bits = idle.word(at) & allowed.word(at) & part.mask;
            if bits == 0 {
                continue;
            }
            let number = |bits: u64| u32::from(part.word) * 64 + bits.trailing_zeros();
            if self.siblings.is_empty() {
                return Some(number(bits));
            }
            let whole = bits & self.with_next_sibling(at, almost);
            if whole != 0 {
                return Some(number(whole));
            }
            any = any.or_else(|| Some(number(bits)));
        }
        any
    }

    /// The CPUs that are idle along with their siblings but the last one.
    fn almost_idle_cores(&self, idle: &CpuSet) -> CpuSet {
        // After n rounds: it and the next n siblings are idle.
        let mut almost = *idle;
        for _ in 2..self.threads {
            let mut next = *idle;
            for (at, word) in next.0.iter_mut().enumerate() {
                *word &= self.with_next_sibling(at, &almost);
            }
            almost = next;
        }
        almost
    }

    /// Those of a word of CPUs whose next sibling is in a set.
    fn with_next_sibling(&self, at: usize, set: &CpuSet) -> u64 {
        let siblings = self.siblings_at.get(at).copied().unwrap_or_default();
        siblings.of(&self.siblings).iter().fold(0, |bits, next| {
            let theirs = set.word(usize::from(next.from));
            bits | next.mask & theirs.rotate_right(u32::from(next.turn))
        })
    }
}

/// The CPU of the lowest number in both sets.
fn lowest(idle: &CpuSet, allowed: &CpuSet) -> Option<u32> {
    (0..)
        .zip(&idle.0)
        .zip(&allowed.0)
        .find_map(|((at, idle), allowed)| {
            let bits = idle & allowed;
            (bits != 0).then(|| at * 64 + bits.trailing_zeros())
        })
}

/// Adds the parts of the CPUs that `belong` to a level.
fn add_level<const N: usize>(
    parts: &mut Vec<Part, N>,
    places: &[CpuPlace],
    belongs: impl Fn(&CpuPlace) -> bool,
) -> Range {
    let start = parts.len() as u16;
    for rank in 0..RANKS {
        for (word, places) in (0..).zip(places.chunks(64)) {
            let mask = (0..)
                .zip(places)
                .filter(|(_, place)| place.rank() == rank && belongs(place))
                .fold(0, |mask, (bit, _)| mask | 1u64 << bit);
            if mask != 0 {
                let _ = parts.push(Part { mask, word });
            }
        }
    }
    Range {
        start,
        end: parts.len() as u16,
    }
}

/// The tasks that the search may serve: those that may run on every CPU, as their last records
/// said. Of others we know too little.
///
/// A table of 16 KiB, by the lower bits of the thread id. A task that is forgotten for another is
/// one to ask the kernel about, no more. A thread id that has passed to another task is believed
/// until that one's first record; a decision for a CPU that it may not use is carried out elsewhere
/// by the kernel side.
#[derive(Debug)]
pub struct Unrestricted {
    pids: [i32; Self::SLOTS],
}

impl Default for Unrestricted {
    fn default() -> Self {
        Self {
            pids: [0; Self::SLOTS],
        }
    }
}

impl Unrestricted {
    const SLOTS: usize = 4096;

    /// Takes in what a record says; `nr_cpus` is the bound of CPU numbers.
    ///
    /// # Cost
    /// A load and, if it is news, a store.
    pub fn note(&mut self, task: &QueuedTask, nr_cpus: u32) {
        let Some(pid) = self.pids.get_mut(task.pid as usize % Self::SLOTS) else {
            return;
        };
        if u32::from(task.nr_cpus_allowed) >= nr_cpus {
            *pid = task.pid;
        } else if *pid == task.pid {
            *pid = 0;
        }
    }

    /// Whether a thread is known to be one.
    pub fn contains(&self, pid: i32) -> bool {
        pid > 0 && self.pids.get(pid as usize % Self::SLOTS) == Some(&pid)
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec as StdVec;

    fn set(cpus: impl IntoIterator<Item = u32>) -> CpuSet {
        let mut set = CpuSet::default();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }

    /// What the module says, word for word.
    fn naive(places: &[CpuPlace], prev: i32, idle: &CpuSet, allowed: &CpuSet) -> Option<u32> {
        let prev_place = places.get(prev as u32 as usize);
        let is_whole = |core: u16| {
            let mut threads = (0..).zip(places).filter(|(_, place)| place.core == core);
            threads.all(|(cpu, _)| idle.contains(cpu))
        };
        let distance = |place: &CpuPlace| match prev_place {
            Some(prev) if (prev.node, prev.llc) == (place.node, place.llc) => 0,
            Some(prev) if prev.node == place.node => 1,
            _ => 2,
        };
        (0..)
            .zip(places)
            .filter(|(cpu, _)| idle.contains(*cpu) && allowed.contains(*cpu))
            .min_by_key(|(cpu, place)| {
                let is_other = *cpu as i32 != prev;
                (
                    is_other,
                    distance(place),
                    !is_whole(place.core),
                    place.rank(),
                    *cpu,
                )
            })
            .map(|(cpu, _)| cpu)
    }

    /// Two nodes of 2 caches of 2 cores of 2 threads, siblings 8 apart; the second core under each
    /// cache is slow.
    fn server() -> [CpuPlace; 16] {
        core::array::from_fn(|cpu| {
            let core = cpu as u16 % 8;
            CpuPlace {
                node: core / 4,
                llc: core / 2,
                core,
                rank: core as u8 % 2,
            }
        })
    }

    #[test]
    fn the_order_of_preference() {
        let map = CpuMap::new(&server());
        let all = CpuSet::below(16);
        let mut idle = all;
        let mut order = StdVec::new();
        while let Some(cpu) = map.pick(1, &idle, &all) {
            idle.remove(cpu);
            order.push(cpu);
        }
        // Itself; the whole core under its cache; its sibling; whole cores of its node, fast ones
        // first, then their siblings; the other node.
        assert_eq!(
            order,
            [1, 0, 8, 9, 2, 3, 10, 11, 4, 6, 5, 7, 12, 14, 13, 15]
        );
    }

    #[test]
    fn a_cpu_that_does_not_exist_has_no_neighbours() {
        let map = CpuMap::new(&server());
        let all = CpuSet::below(16);
        for prev in [-1, 16, 1 << 20, i32::MIN, i32::MAX] {
            assert_eq!(map.pick(prev, &set([5, 6]), &all), Some(6), "{prev}");
        }
    }

    #[test]
    fn flat_is_by_number_and_whole_sizes_fit() {
        let map = CpuMap::flat();
        let all = CpuSet::below(MAX_CPUS as u32);
        assert_eq!(map.pick(700, &set([1023, 65]), &all), Some(65));
        assert_eq!(map.pick(700, &set([1023]), &all), Some(1023));
        assert_eq!(map.pick(700, &CpuSet::default(), &all), None);
        assert!(size_of::<CpuMap>() <= 40 * 1024);
        // Each CPU its own cache and node: as many parts as there can be.
        let apart: StdVec<_> = (0..MAX_CPUS as u16)
            .map(|cpu| CpuPlace {
                node: cpu,
                llc: cpu,
                core: cpu / 2,
                rank: 3,
            })
            .collect();
        let map = CpuMap::new(&apart);
        assert_eq!(map.pick(700, &set([1023, 1022, 65]), &all), Some(1022));
    }

    #[test]
    fn sets_know_their_bounds() {
        for nr in [0, 1, 63, 64, 65, 1023, 1024] {
            let below = CpuSet::below(nr);
            assert!(
                (0..2000).all(|cpu| below.contains(cpu) == (cpu < nr)),
                "{nr}"
            );
        }
        assert_eq!(set([1024, u32::MAX]), CpuSet::default());
    }

    #[test]
    fn a_task_is_unrestricted_while_its_last_record_says_so() {
        let mut known = Unrestricted::default();
        let task = |pid: i32, nr_cpus_allowed| QueuedTask {
            pid,
            ..QueuedTask::example(7, 1, 0, nr_cpus_allowed)
        };
        assert!(!known.contains(0));
        known.note(&task(100, 8), 8);
        assert!(known.contains(100));
        assert!(!known.contains(100 + 4096));
        known.note(&task(100 + 4096, 7), 8);
        assert!(known.contains(100), "another's record with the same slot");
        known.note(&task(100, 7), 8);
        assert!(!known.contains(100));
        known.note(&task(100, 8), 8);
        known.note(&task(100 + 4096, 8), 8);
        assert!(!known.contains(100), "forgotten");
        for pid in [i32::MIN, -1, i32::MAX] {
            known.note(&task(pid, 8), 8);
            assert_eq!(known.contains(pid), pid > 0);
        }
    }

    /// Of any shape: what real machines cannot be is the same to the search.
    fn any_place(spread: u16) -> impl Strategy<Value = CpuPlace> {
        (0..=spread / 8, 0..=spread / 2, 0..=spread, 0..6u8).prop_map(|(node, llc, core, rank)| {
            CpuPlace {
                node,
                llc,
                core,
                rank,
            }
        })
    }

    fn places(nr: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = StdVec<CpuPlace>> {
        (nr, 1..1024u16)
            .prop_flat_map(|(nr, spread)| proptest::collection::vec(any_place(spread), nr))
    }

    /// From hardly any to nearly all.
    fn some_cpus() -> impl Strategy<Value = CpuSet> {
        (any::<[u64; 16]>(), any::<[u64; 16]>(), 0..5u8).prop_map(|(a, b, how)| {
            CpuSet(core::array::from_fn(|at| match how {
                0 => a[at] & b[at] & a[15 - at] & b[15 - at].rotate_left(7) & a[at].rotate_left(9),
                1 => a[at] & b[at],
                2 => a[at],
                3 => a[at] | b[at],
                _ => u64::MAX,
            }))
        })
    }

    fn search_is_the_naive_one(
        places: &[CpuPlace],
        idle: &CpuSet,
        allowed: &CpuSet,
        prevs: [u16; 8],
    ) -> Result<(), TestCaseError> {
        let map = CpuMap::new(places);
        let existing = CpuSet::below(places.len() as u32);
        let idle = CpuSet(core::array::from_fn(|at| idle.0[at] & existing.0[at]));
        for prev in prevs {
            let prev = i32::from(prev) % (places.len() as i32 + 8) - 4;
            let picked = map.pick(prev, &idle, allowed);
            prop_assert_eq!(picked, naive(places, prev, &idle, allowed));
            prop_assert!(picked.is_none_or(|cpu| idle.contains(cpu) && allowed.contains(cpu)));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn the_search_is_the_naive_one(
            places in places(1..=150), idle in some_cpus(), allowed in some_cpus(), prevs: [u16; 8],
        ) {
            search_is_the_naive_one(&places, &idle, &allowed, prevs)?;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_search_is_the_naive_one_on_the_largest_machines(
            places in places(900..=MAX_CPUS), idle in some_cpus(), allowed in some_cpus(), prevs: [u16; 8],
        ) {
            search_is_the_naive_one(&places, &idle, &allowed, prevs)?;
        }
    }
}
