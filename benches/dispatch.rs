//! What it costs user space to hand one decision over: into our mailbox of a CPU, and into libbpf's
//! user ring.
//!
//! Only handing over is timed. As many decisions as a mailbox holds are handed over, and then the
//! kernel side takes them, on the same CPU, so that neither side pays here for cache lines that
//! another CPU has written. Neither may allocate.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use scx_metronome_core::abi::MAILBOX_SLOTS;
use scx_metronome_core::mailbox::Decision;

mod support;
use support::bpf::BpfSide;
use support::incumbent;

fn dispatch(criterion: &mut Criterion) {
    let Some(side) = BpfSide::load("dispatch") else {
        return;
    };
    support::pin(1);
    let mut group = criterion.benchmark_group("dispatch");
    group.measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_millis(500));

    let mut mailbox = side.mailbox();
    group.bench_function("metronome_mailbox", |bencher| {
        bencher.iter_custom(|decisions| {
            let drain = |nr| side.drain_mailboxes(nr);
            by_batches(decisions, drain, |nr| {
                let decision = Decision {
                    id: nr as u32,
                    generation: 1,
                    slice_ns: 20_000_000,
                    vtime: nr,
                    flags: 0,
                };
                mailbox.push(decision).unwrap();
            })
        });
    });

    let user_ring = incumbent::Dispatched::new(&side);
    group.bench_function("libbpf_user_ringbuf", |bencher| {
        bencher.iter_custom(|decisions| {
            let drain = |nr| side.drain_user_ring(nr);
            by_batches(decisions, drain, |nr| {
                user_ring.dispatch_task(&incumbent::Decision {
                    pid: nr as i32 + 1,
                    cpu: 0,
                    flags: 0,
                    slice_ns: 20_000_000,
                    vtime: nr,
                    enq_cnt: 1,
                });
            })
        });
    });
    group.finish();
}

/// Time that so many calls of `hand_over` need; between batches, `drain` makes room.
fn by_batches(decisions: u64, drain: impl Fn(usize), mut hand_over: impl FnMut(u64)) -> Duration {
    let mut timed = Duration::ZERO;
    let mut left = decisions;
    while left > 0 {
        let batch = left.min(MAILBOX_SLOTS as u64);
        timed += support::without_allocation(|| {
            let start = Instant::now();
            (0..batch).for_each(&mut hand_over);
            start.elapsed()
        });
        drain(batch as usize);
        left -= batch;
    }
    timed
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
