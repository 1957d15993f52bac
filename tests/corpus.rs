//! The committed corpus of the fuzz targets, through the same functions: what was found once stays
//! found.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
#[expect(dead_code, unreachable_pub, reason = "a library elsewhere")]
mod fuzz;
use fuzz::{ring_decoder, task_decode, turn};

/// Runs each input of a target, and each of them cut short and with a byte turned, at every
/// `stride`-th byte.
fn run(target: &str, stride: usize, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let inputs: Vec<_> = fs::read_dir(directory).unwrap().collect();
    assert!(inputs.len() > 10, "the corpus is there");
    for input in inputs {
        let path = input.unwrap().path();
        println!("{}", path.display());
        let mut bytes = fs::read(path).unwrap();
        run(&bytes);
        for length in (0..bytes.len()).step_by(stride) {
            run(&bytes[..length]);
        }
        for at in (0..bytes.len()).step_by(stride) {
            bytes[at] = !bytes[at];
            run(&bytes);
            bytes[at] = !bytes[at];
        }
    }
}

#[test]
fn the_ring_reads_what_a_model_reads() {
    run("ring_decoder", 1, ring_decoder::run);
}

#[test]
fn a_record_is_a_task_if_each_field_is_in_range() {
    run("task_decode", 1, task_decode::run);
}

#[test]
fn a_record_of_any_kind_is_a_task_if_there_is_such_a_kind() {
    run("task_decode", usize::MAX, |bytes| {
        let mut bytes = bytes.to_vec();
        bytes.resize(task_decode::BYTES, 0);
        for kind in 0..64 {
            bytes[20] = kind;
            task_decode::run(&bytes);
        }
    });
}

#[test]
fn a_machine_loses_no_task_whatever_happens() {
    run("turn", 17, turn::run);
}
