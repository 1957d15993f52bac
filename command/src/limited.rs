//! Control groups with a limit that no sched_ext scheduler of ours keeps.

use std::fs;
use std::path::Path;

/// Levels of groups that are looked at.
const DEPTH: u32 = 16;

/// The groups below this one whose `cpu.max` is a number.
pub(crate) fn limited_groups(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    look(&root.join("sys/fs/cgroup"), "", DEPTH, &mut found);
    found.sort();
    found
}

fn look(directory: &Path, name: &str, depth: u32, found: &mut Vec<String>) {
    let limit = fs::read_to_string(directory.join("cpu.max"));
    if limit.is_ok_and(|limit| !limit.is_empty() && !limit.starts_with("max")) {
        found.push(name.to_owned());
    }
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            look(&entry.path(), &name, depth - 1, found);
        }
    }
}
