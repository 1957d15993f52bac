//! What must hold before anything is loaded: each failure is one line that says what to do.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::ReferencesType;
use libbpf_rs::btf::types::{Func, FuncProto, Ptr};
use libbpf_rs::btf::{Btf, BtfType, TypeId};

const SCHED_EXT: &str = "sys/kernel/sched_ext";

/// Without these there is no Metronome. The others have a substitute, or are in every kernel with
/// sched_ext.
const NEEDED: [&str; 15] = [
    "scx_bpf_create_dsq",
    "scx_bpf_dsq_insert",
    "scx_bpf_dsq_insert_vtime",
    "scx_bpf_dsq_move_to_local",
    "scx_bpf_dsq_move_vtime",
    "scx_bpf_dsq_move_set_slice",
    "scx_bpf_dsq_move_set_vtime",
    "scx_bpf_dsq_nr_queued",
    "scx_bpf_reenqueue_local",
    "bpf_iter_scx_dsq_new",
    "bpf_iter_scx_dsq_destroy",
    "scx_bpf_select_cpu_and",
    "scx_bpf_pick_idle_cpu",
    "scx_bpf_kick_cpu",
    "scx_bpf_task_cpu",
];

/// What is in the way, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// In a few words.
    pub found: String,
    /// In the imperative.
    pub fix: String,
}

impl Obstacle {
    fn new(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            found: found.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.found, self.fix)
    }
}

impl std::error::Error for Obstacle {}

/// Checks privilege, kernel, and that no other scheduler is there. Returns the hotplug sequence
/// number, to be read before the CPUs are counted.
pub(super) fn check() -> Result<u64> {
    let root = Path::new("/");
    privilege()?;
    kernel(root)?;
    open_files(root)?;
    raise_open_files();
    wait_for_no_other_scheduler(root)?;
    functions(root)?;
    let seq = read(root, "hotplug_seq")?;
    seq.parse()
        .with_context(|| format!("{SCHED_EXT}/hotplug_seq is not a number: {seq}"))
}

fn read(root: &Path, file: &str) -> Result<String> {
    let path = root.join(SCHED_EXT).join(file);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_string())
}

/// Whether this process may load a scheduler.
///
/// # Errors
/// If it may not.
pub fn privilege() -> Result<(), Obstacle> {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return Err(Obstacle::new(
            "loading a scheduler into the kernel needs root",
            "run it with sudo",
        ));
    }
    Ok(())
}

/// Files that a scheduler opens at most: the maps, programs and links of its kernel side, and the
/// clients of its statistics.
const FILES: u64 = 256;

/// How many files this process may open. `root` is `/`, or a directory that stands for it.
///
/// # Errors
/// If that is too few, and it may not raise the limit itself.
pub fn open_files(root: &Path) -> Result<(), Obstacle> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(1));
    match hard.map(str::parse::<u64>) {
        Some(Ok(hard)) if hard < FILES => Err(Obstacle::new(
            format!("this process may open {hard} files at most, and needs {FILES}"),
            "ulimit -n 1024 (in a systemd unit: LimitNOFILE=1024)",
        )),
        _ => Ok(()),
    }
}

/// The hard limit leaves room for what we need: so shall the soft one.
fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live rlimit.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    if read && limit.rlim_cur < FILES {
        limit.rlim_cur = limit.rlim_max.min(FILES);
        // SAFETY: as above. If it fails, what is opened beyond the limit says so.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

/// Whether the kernel has sched_ext. `root` is `/`, or a directory that stands for it.
///
/// # Errors
/// If it has not.
pub fn kernel(root: &Path) -> Result<(), Obstacle> {
    if !fs::exists(root.join(SCHED_EXT)).unwrap_or(false) {
        let release =
            fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
        return Err(Obstacle::new(
            format!("this kernel ({}) has no sched_ext", release.trim()),
            "boot Linux 6.16 or newer, built with CONFIG_SCHED_CLASS_EXT=y",
        ));
    }
    Ok(())
}

/// The scheduler that is loaded, if any: its name and the kernel's word for its state.
pub fn loaded(root: &Path) -> Option<(String, String)> {
    let state = read(root, "state").ok()?;
    let name = || read(root, "root/ops").unwrap_or_else(|_| "unknown".into());
    (state != "disabled").then(|| (name(), state))
}

/// One that is just leaving, ours of a moment ago perhaps, is waited for.
fn wait_for_no_other_scheduler(root: &Path) -> Result<(), Obstacle> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Some((name, state)) = loaded(root) {
        if state == "enabled" || Instant::now() > deadline {
            return Err(Obstacle::new(
                format!("another scheduler is loaded: {name} (state {state})"),
                "stop it first",
            ));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether the kernel has the functions that the kernel side calls, and describes them as they are.
///
/// # Errors
/// If not, by name.
pub fn functions(root: &Path) -> Result<(), Obstacle> {
    let path = root.join("sys/kernel/btf/vmlinux");
    let btf = Btf::from_path(&path).map_err(|error| {
        Obstacle::new(
            format!(
                "cannot read the kernel's type information, {} ({error})",
                path.display()
            ),
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    })?;
    let mut missing = Vec::new();
    let mut malformed = Vec::new();
    for name in NEEDED {
        match btf.type_by_name::<Func<'_>>(name) {
            None => missing.push(name),
            Some(func) if has_hidden_argument(&btf, &func) => malformed.push(name),
            Some(_) => (),
        }
    }
    if !malformed.is_empty() {
        return Err(Obstacle::new(
            format!(
                "this kernel's type information (BTF) describes {} of its functions wrongly, so that no program can call \
                 them: {}; it was built with pahole older than 1.31",
                malformed.len(),
                malformed.join(", ")
            ),
            "boot another kernel",
        ));
    }
    if !missing.is_empty() {
        return Err(Obstacle::new(
            format!("this kernel lacks {}", missing.join(", ")),
            "boot Linux 6.16 or newer",
        ));
    }
    Ok(())
}

/// A function that programs may call must not show the argument that the kernel passes itself, a
/// `struct bpf_prog_aux *`.
fn has_hidden_argument(btf: &Btf<'_>, func: &Func<'_>) -> bool {
    let Some(proto) = btf.type_by_id::<FuncProto<'_>>(func.referenced_type_id()) else {
        return false;
    };
    let last = proto
        .len()
        .checked_sub(1)
        .and_then(|index| proto.get(index));
    last.is_some_and(|last| points_to_prog_aux(btf, last.ty))
}

fn points_to_prog_aux(btf: &Btf<'_>, id: TypeId) -> bool {
    let Some(pointer) = btf.type_by_id::<Ptr<'_>>(id) else {
        return false;
    };
    let Some(target) = btf.type_by_id::<BtfType<'_>>(pointer.referenced_type_id()) else {
        return false;
    };
    target.skip_mods_and_typedefs().name() == Some(OsStr::new("bpf_prog_aux"))
}
