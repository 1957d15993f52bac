//! What records look like on a real kernel: a first-in first-out scheduler that keeps a record of
//! every sort it meets, and prints each as a line of hex when it ends: by a signal, or because it
//! has seen as many sorts as were asked for.
//!
//! `fuzz/corpus-from-kernels` makes the fuzzers' first inputs of them.

use std::collections::HashSet;
use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use scx_metronome_core::task::Record;
use scx_metronome_core::{BpfScheduler, DispatchedTask, QueuedTask, RL_CPU_ANY};

/// What makes two records differ in sort: how they were enqueued, and what their tasks may do and
/// have done.
fn sort(task: &QueuedTask) -> impl Eq + std::hash::Hash + use<> {
    let history = [
        task.start_ts,
        task.exec_runtime,
        task.nvcsw,
        u64::from(task.slice) | u64::from(task.waker as u32) << 32,
        task.vtime,
    ];
    (
        task.flags,
        task.weight,
        task.nr_cpus_allowed,
        history.map(|value| value == 0),
    )
}

fn hex(record: &Record) -> String {
    let bytes = record.iter().flat_map(|word| word.to_ne_bytes());
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn main() -> Result<()> {
    let wanted: usize = match std::env::args().nth(1) {
        Some(number) => number
            .parse()
            .with_context(|| format!("usage: capture [RECORDS]; {number} is no number"))?,
        None => 40,
    };
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false)?;
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    while !scheduler.exited() && records.len() < wanted {
        while let Some(task) = scheduler.dequeue_task()? {
            if records.len() < wanted && seen.insert(sort(&task)) {
                records.push(*task.as_record());
            }
            let mut decision = DispatchedTask::new(&task);
            decision.flags |= RL_CPU_ANY;
            // Without a decision the kernel side runs it a little later.
            let _ = scheduler.dispatch_task(&decision);
        }
        scheduler.notify_complete(0);
    }
    scheduler.shutdown_and_report()?;
    for record in &records {
        println!("{}", hex(record));
    }
    Ok(())
}
