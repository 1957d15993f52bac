//! What is fuzzed: a function per target that takes any bytes and panics if the crate does
//! something wrong with them.
//!
//! `fuzz_targets/` hands them to libFuzzer, `tests/corpus.rs` of the crate runs them over the
//! committed corpus. None of them leans on the code under test to say what is right: the decoders
//! have small models, written from `bpf/abi.h` and the kernel's protocol, and a turn has the
//! simulated kernel.

pub mod ring_decoder;
pub mod task_decode;
pub mod turn;
