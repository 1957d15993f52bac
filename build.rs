//! Makes Rust code of the list of counters, and compiles the kernel side with a Rust skeleton, into
//! `OUT_DIR`. Writes nothing into the tree.

use std::env;
use std::fs;
use std::path::PathBuf;

#[cfg(feature = "kernel")]
#[path = "bpf/build.rs"]
mod bpf;

fn main() {
    println!("cargo::rerun-if-changed=bpf/counters.h");
    if let Err(message) = make_counters() {
        eprintln!("bpf/counters.h: {message}");
        std::process::exit(1);
    }
    #[cfg(feature = "kernel")]
    bpf::build(&[("bpf/metronome.bpf.c", "metronome.skel.rs")]);
}

/// Of `COUNTER(NO_ID, "tasks")` becomes `NoId no_id "tasks",` in the macro `kernel_counters`.
fn make_counters() -> Result<(), String> {
    let header = fs::read_to_string("bpf/counters.h").map_err(|error| error.to_string())?;
    let lines = header
        .lines()
        .filter_map(|line| line.strip_prefix("COUNTER("));
    let counters = lines
        .map(|line| {
            let row = line.strip_suffix(')').and_then(|row| row.split_once(", "));
            let (name, meaning) = row.ok_or_else(|| format!("not a counter: {line}"))?;
            let field = name.to_lowercase();
            Ok(format!("    {} {field} {meaning},\n", camel_case(&field)))
        })
        .collect::<Result<String, String>>()?;
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?;
    let text = format!(
        "/// Calls `$make!` with the counters of `bpf/counters.h` behind what else it is given.\n\
         #[doc(hidden)]\n\
         #[macro_export]\n\
         macro_rules! kernel_counters {{ ($make:ident $($before:tt)*) => {{ $make! {{\n    \
         $($before)*\n{counters}}} }} }}\n"
    );
    fs::write(PathBuf::from(out).join("counters.rs"), text).map_err(|error| error.to_string())
}

fn camel_case(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    words.collect()
}
