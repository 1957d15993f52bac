//! What is checked before anything is loaded: each failure is one line that says what to do.

use std::ffi::OsStr;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libbpf_rs::ReferencesType;
use libbpf_rs::btf::types::{Func, FuncProto, Ptr};
use libbpf_rs::btf::{Btf, BtfType, TypeId};

const SCHED_EXT: &str = "/sys/kernel/sched_ext";

/// Without these there is no Metronome. The others have a substitute, or are in every kernel with sched_ext.
const NEEDED: [&str; 15] = [
    "scx_bpf_create_dsq",
    "scx_bpf_dsq_insert",
    "scx_bpf_dsq_insert_vtime",
    "scx_bpf_dsq_move_to_local",
    "scx_bpf_dsq_move_vtime",
    "scx_bpf_dsq_move_set_slice",
    "scx_bpf_dsq_move_set_vtime",
    "scx_bpf_dsq_nr_queued",
    "bpf_iter_scx_dsq_new",
    "bpf_iter_scx_dsq_destroy",
    "scx_bpf_select_cpu_and",
    "scx_bpf_pick_idle_cpu",
    "scx_bpf_kick_cpu",
    "scx_bpf_now",
    "scx_bpf_task_cpu",
];

/// Checks privilege, kernel, and that no other scheduler is there. Returns the hotplug sequence number, to be read before
/// the CPUs are counted.
pub(crate) fn check() -> Result<u64> {
    check_privilege()?;
    check_kernel()?;
    check_no_other_scheduler()?;
    check_kfuncs()?;
    let seq = read("hotplug_seq")?;
    seq.parse()
        .with_context(|| format!("{SCHED_EXT}/hotplug_seq is not a number: {seq}"))
}

fn read(file: &str) -> Result<String> {
    let path = format!("{SCHED_EXT}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_string())
}

fn check_privilege() -> Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        bail!("loading a scheduler into the kernel needs root: run it with sudo");
    }
    Ok(())
}

fn check_kernel() -> Result<()> {
    if !fs::exists(SCHED_EXT).unwrap_or(false) {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        bail!(
            "this kernel ({}) has no sched_ext: boot Linux 6.16 or newer, built with CONFIG_SCHED_CLASS_EXT=y",
            release.trim()
        );
    }
    Ok(())
}

/// One that is just leaving, ours of a moment ago perhaps, is waited for.
fn check_no_other_scheduler() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let state = read("state")?;
        if state == "disabled" {
            return Ok(());
        }
        if state == "enabled" || Instant::now() > deadline {
            let name = read("root/ops").unwrap_or_else(|_| "unknown".into());
            bail!("another scheduler is loaded: {name} (state {state}): stop it first");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn check_kfuncs() -> Result<()> {
    let btf = Btf::from_vmlinux()
        .context("cannot read the kernel's type information, /sys/kernel/btf/vmlinux")?;
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
        bail!(
            "this kernel's type information (BTF) describes {} of its functions wrongly, so that no program can call them: {}; \
             it was built with pahole older than 1.31: boot another kernel",
            malformed.len(),
            malformed.join(", ")
        );
    }
    if !missing.is_empty() {
        bail!(
            "this kernel lacks {}: boot Linux 6.16 or newer",
            missing.join(", ")
        );
    }
    Ok(())
}

/// A function that programs may call must not show the argument that the kernel passes itself, a `struct bpf_prog_aux *`.
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
