//! Models of the handshakes with the kernel side, for loom: `make loom`.
//!
//! Our half is the real code. The kernel's half is written down here after `bpf/metronome.bpf.c`
//! and `kernel/bpf/ringbuf.c`, under the names of their functions. loom runs every interleaving
//! within the bounds that each model states, and every value that a load may return: a lost,
//! doubled or torn record fails an assertion, two accesses to a slot or record that nothing orders
//! are a "causality violation", and a lost wake-up is a "deadlock".
//!
//! Each ordering has a name ([`Guard`]). Beside each model a test weakens those that it needs, one
//! at a time (full to acquire-release, acquire and release to relaxed), and expects loom to find
//! what goes wrong.
//!
//! # Limits
//! loom's SeqCst accesses order no more than AcqRel ones, so full barriers are fences here, as they
//! are in the core. A barrier of the kernel that is needed for less is modelled as no more than
//! that. loom does not reorder a load with a later store of the same thread;
//! [`OwnedU32`](crate::sync::OwnedU32) makes up for that where it matters.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::undocumented_unsafe_blocks,
    reason = "models; all their memory is live until the last thread is done"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

use crate::sync::{Guard, Ordering, Weakened, fence, order};

mod kick;
mod machine;
mod mailbox;
mod park;
mod ring;

/// Runs a model with at most so many switches away from a thread that could go on.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// What `make check` has the time for, by LOOM_THOROUGH in the environment, and `make test` has
/// not.
fn thorough() -> bool {
    std::env::var_os("LOOM_THOROUGH").is_some()
}

/// Asserts that the model fails without this guard, and with one of these words.
fn breaks_without(guard: Guard, words: &[&str], model: impl Fn()) {
    let weakened = Weakened::new(guard);
    let outcome = catch_unwind(AssertUnwindSafe(model));
    drop(weakened);
    let Err(failure) = outcome else {
        panic!("{guard:?} was not missed")
    };
    let message = failure
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(failure.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    assert!(
        words.iter().any(|word| message.contains(word)),
        "{guard:?} was missed, but in another way: {message}"
    );
}

const RACE: &str = "Causality violation";
const LOST_WAKEUP: &str = "deadlock";

/// A barrier of the kernel side.
fn barrier(name: &'static str, strong: Ordering) {
    match order(Guard::Kernel(name), strong) {
        // There is no such fence.
        Ordering::Relaxed => {}
        ordering => fence(ordering),
    }
}
