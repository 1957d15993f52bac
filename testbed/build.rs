//! Compiles the programs in `bpf/`, which include headers of the scheduler's own.

#[path = "../bpf/build.rs"]
mod bpf;

fn main() {
    println!("cargo::rerun-if-changed=../bpf");
    bpf::build(&[
        ("bpf/bare.bpf.c", "bare.skel.rs"),
        ("bpf/bench.bpf.c", "bench.skel.rs"),
        ("bpf/spoil.bpf.c", "spoil.skel.rs"),
    ]);
}
