//! A program written against `scx_rustland_core` compiles against this crate with nothing but its
//! `mod` and `use` lines changed: the FIFO scheduler from that crate's own documentation, kept in
//! `examples/seed_fifo` as it was (`fifo.txt`) and as it is compiled (`fifo.rs`).

/// The program without its `mod` and `use` lines and without blank ones.
fn body(program: &str) -> Vec<&str> {
    let starts = ["mod ", "pub mod ", "use ", "pub use "];
    program
        .lines()
        .filter(|line| {
            !line.trim().is_empty() && !starts.iter().any(|start| line.starts_with(start))
        })
        .collect()
}

#[test]
fn only_mod_and_use_lines_of_the_seed_program_were_changed() {
    let original = body(include_str!("../examples/seed_fifo/fifo.txt"));
    assert!(original.len() > 100, "the original is there");
    assert_eq!(
        original,
        body(include_str!("../examples/seed_fifo/fifo.rs"))
    );
}
