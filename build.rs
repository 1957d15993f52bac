//! Compiles the kernel side into `OUT_DIR`, with a Rust skeleton. Writes nothing into the tree.

#[cfg(feature = "kernel")]
#[path = "bpf/build.rs"]
mod bpf;

fn main() {
    #[cfg(feature = "kernel")]
    bpf::build(&[("bpf/metronome.bpf.c", "metronome.skel.rs")]);
}
