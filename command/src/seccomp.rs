//! `--seccomp`: which system calls the process may make.
//!
//! # Problem
//! A process that may load BPF programs is worth taking over. With the capabilities it keeps
//! ([`privileges`](super::privileges)) it could still start a shell, write root's files, or talk to
//! the network, none of which a scheduler does.
//!
//! # Mechanism
//! Two seccomp filters, for all threads and for good. One lets the calls of [`FREE`] pass, those of
//! [`rules`] with the arguments named there, and answers EPERM to all else. The other answers
//! ENOSYS to clone3(), whose arguments a filter cannot see: the C library then starts its threads
//! by clone(), whose arguments it can.
//!
//! They are installed before the first scheduler is loaded, and a restart after a CPU came or went
//! makes the same calls again: so what is missing here shows at the first start and not months
//! later.
//!
//! # Limits
//! bpf() passes with any arguments, for that is the scheduler's work. So do connect() and bind(),
//! whose addresses no filter sees; but only local sockets can be made.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io::ErrorKind;

use anyhow::{Context, Result, anyhow};
use libc::c_long;
use seccompiler::{
    BpfProgram, BpfProgramRef, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Calls that pass with any arguments.
#[rustfmt::skip]
const FREE: &[c_long] = &[
    // The scheduler thread: kicks, spins, parks.
    libc::SYS_bpf, libc::SYS_sched_yield, libc::SYS_ppoll,
    // Loading: the kernel's type information, /proc and /sys, file descriptors, the socket's
    // directory.
    libc::SYS_read, libc::SYS_pread64, libc::SYS_lseek, libc::SYS_close, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx,
    libc::SYS_statfs, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64, libc::SYS_fcntl,
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_memfd_create, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_uname,
    // The scheduler thread's place.
    libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler, libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_getcpu,
    // Memory; mmap() and mprotect() are below.
    libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_mlockall, libc::SYS_munlockall,
    // The socket; socket() is below. connect() wakes the server's own thread at the end.
    libc::SYS_bind, libc::SYS_listen, libc::SYS_accept4, libc::SYS_connect, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_sendto,
    libc::SYS_sendmsg, libc::SYS_shutdown, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    // Messages and statistics.
    libc::SYS_write, libc::SYS_writev, libc::SYS_readv,
    // Threads; clone() is below.
    libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getuid,
    libc::SYS_geteuid, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_getrandom,
    // Time, where the C library asks the kernel for it.
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_gettimeofday,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack, libc::SYS_restart_syscall,
];

/// The same things by the calls of older machines.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const FREE_HERE: &[c_long] = &[
    libc::SYS_poll, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_dup2, libc::SYS_mkdir,
    libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const FREE_HERE: &[c_long] = &[];

/// A call, and one set of arguments with which it passes.
type Rule = (c_long, Vec<SeccompCondition>);

/// Calls that pass with some arguments.
fn rules() -> Result<Vec<Rule>, seccompiler::BackendError> {
    let no_exec = || bits(2, libc::PROT_EXEC, 0);
    Ok(vec![
        // Reading only.
        (
            libc::SYS_openat,
            vec![bits(2, libc::O_ACCMODE | libc::O_CREAT, libc::O_RDONLY)?],
        ),
        // No new code.
        (libc::SYS_mmap, vec![no_exec()?]),
        (libc::SYS_mprotect, vec![no_exec()?]),
        // Threads, no processes.
        (
            libc::SYS_clone,
            vec![bits(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?],
        ),
        (libc::SYS_socket, vec![is(0, libc::AF_UNIX)?]),
        // A thread's name, and no huge pages.
        (libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME)?]),
        (libc::SYS_prctl, vec![is(0, libc::PR_SET_THP_DISABLE)?]),
        // Is it a terminal? Waiting or not.
        (libc::SYS_ioctl, vec![is(1, libc::TCGETS as i32)?]),
        (libc::SYS_ioctl, vec![is(1, libc::FIONBIO as i32)?]),
        // Of this process alone.
        (libc::SYS_prlimit64, vec![is(0, 0)?]),
        (
            libc::SYS_tgkill,
            vec![is(0, std::process::id().cast_signed())?],
        ),
    ])
}

/// The argument, of 32 bits, is this.
fn is(argument: u8, value: i32) -> Result<SeccompCondition, seccompiler::BackendError> {
    condition(argument, SeccompCmpOp::Eq, value)
}

/// These bits of the argument are those of `value`.
fn bits(
    argument: u8,
    mask: i32,
    value: i32,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    let mask = u64::from(mask.cast_unsigned());
    condition(argument, SeccompCmpOp::MaskedEq(mask), value)
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: i32,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

/// The two filters.
fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let arch = TargetArch::try_from(ARCH)?;
    let errno = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
    let mut allowed: BTreeMap<c_long, Vec<SeccompRule>> = FREE
        .iter()
        .chain(FREE_HERE)
        // To the other filter this one must leave the say.
        .chain(&[libc::SYS_clone3])
        .map(|call| (*call, Vec::new()))
        .collect();
    for (call, conditions) in rules()? {
        let rule = SeccompRule::new(conditions)?;
        allowed.entry(call).or_default().push(rule);
    }
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let allow = SeccompAction::Allow;
    Ok([
        SeccompFilter::new(allowed, errno(libc::EPERM), allow.clone(), arch)?.try_into()?,
        SeccompFilter::new(unknown, allow, errno(libc::ENOSYS), arch)?.try_into()?,
    ])
}

/// From now on this process, with all its threads, makes only the calls that it needs. It cannot be
/// undone.
///
/// # Errors
/// When the kernel has no filters, or the service manager does not let us install one.
pub(crate) fn confine() -> Result<()> {
    install(seccompiler::apply_filter_all_threads)
}

fn install(apply: fn(BpfProgramRef<'_>) -> Result<(), Error>) -> Result<()> {
    let [allowed, unknown] =
        filters().with_context(|| format!("there is no system call filter for {ARCH}"))?;
    // In this order: that of what is allowed lets no other be installed.
    for filter in [unknown, allowed] {
        apply(&filter).map_err(explain)?;
    }
    Ok(())
}

fn explain(error: Error) -> anyhow::Error {
    let cause = match &error {
        Error::Seccomp(cause) => cause,
        _ => return anyhow!(error).context("cannot install a system call filter"),
    };
    match (cause.kind(), cause.raw_os_error()) {
        (_, Some(libc::ENOSYS | libc::EINVAL)) => anyhow!(
            "this kernel has no system call filters ({cause}): boot one built with CONFIG_SECCOMP_FILTER=y, or leave --seccomp out"
        ),
        (ErrorKind::PermissionDenied, _) => anyhow!(
            "cannot install a system call filter ({cause}): in a systemd unit SystemCallFilter= must have seccomp; or leave \
             --seccomp out"
        ),
        _ => anyhow!(error).context("cannot install a system call filter"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::io::{self, Read, Write};
    use std::net::UdpSocket;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;
    use std::{env, process, ptr, thread};

    /// In a thread that is confined, alone of this process.
    fn confined(run: impl FnOnce() + Send) {
        thread::scope(|scope| {
            let confined = || {
                install(seccompiler::apply_filter).unwrap();
                run();
            };
            let thread = scope.spawn(confined);
            assert!(thread.join().is_ok());
        });
    }

    fn map(protection: i32) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which is not used yet.
        let at = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
        match at {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    #[test]
    fn a_scheduler_does_what_it_needs() {
        let directory = env::temp_dir().join(format!("metronome-seccomp-{}", process::id()));
        confined(|| {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("Seccomp:\t2"), "{status}");
            fs::create_dir(&directory).unwrap();
            let socket = directory.join("socket");
            let listener = UnixListener::bind(&socket).unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"answer").unwrap();
            });
            let mut answer = String::new();
            let mut client = UnixStream::connect(&socket).unwrap();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "answer");
            server.join().unwrap();
            fs::remove_file(&socket).unwrap();
            map(libc::PROT_READ | libc::PROT_WRITE).unwrap();
        });
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn and_nothing_else() {
        confined(|| {
            let denied = |error: io::Error| assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            denied(Command::new("/bin/true").spawn().unwrap_err());
            denied(UdpSocket::bind("127.0.0.1:0").unwrap_err());
            denied(
                OpenOptions::new()
                    .write(true)
                    .open("/dev/null")
                    .unwrap_err(),
            );
            denied(File::create(env::temp_dir().join("metronome-none")).unwrap_err());
            denied(map(libc::PROT_READ | libc::PROT_EXEC).unwrap_err());
            // SAFETY: a plain system call, which would succeed and do nothing.
            let sent = unsafe { libc::kill(process::id().cast_signed(), 0) };
            assert_eq!(sent, -1);
            denied(io::Error::last_os_error());
        });
    }
}
