//! The background processes: forked, named, killed when this program ends in whatever way.

use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The processes that this one has forked. Dropping it kills and reaps them.
#[derive(Debug, Default)]
pub struct Children(Vec<Child>);

#[derive(Debug)]
struct Child {
    pid: libc::pid_t,
    name: String,
}

impl Children {
    /// Forks a process called `name` that runs `body`, which is not meant to return.
    ///
    /// Call it before the first thread is started: a forked process has only the thread that
    /// forked, and would wait for ever for a lock that another one held.
    ///
    /// # Errors
    /// The process could not be forked.
    pub fn fork(&mut self, name: String, body: impl FnOnce()) -> Result<()> {
        let pid = fork(&name, body)?;
        self.0.push(Child { pid, name });
        Ok(())
    }

    /// Kills and reaps all.
    ///
    /// # Errors
    /// One had ended before: its counts are not to be trusted.
    pub fn finish(self) -> Result<()> {
        let ended = self.0.iter().find(|child| child.has_ended());
        match ended {
            Some(child) => bail!("{} ended before the run did", child.name),
            None => Ok(()),
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        // All are killed before the first is waited for, so that they do not go on working
        // meanwhile.
        for child in &self.0 {
            // SAFETY: plain numbers. A child that was not reaped keeps its number.
            unsafe { libc::kill(child.pid, libc::SIGKILL) };
        }
        for child in &self.0 {
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(child.pid, std::ptr::null_mut(), 0) };
        }
    }
}

/// Forks a process called `name` that runs `body` and ends; [`wait`] reaps it. It dies with this
/// one. See [`Children::fork`] for when.
///
/// # Errors
/// The process could not be forked.
pub fn fork(name: &str, body: impl FnOnce()) -> Result<libc::pid_t> {
    let title = CString::new(name).context("a process name with a zero byte")?;
    // SAFETY: no argument.
    let parent = unsafe { libc::getpid() };
    // SAFETY: the child runs `become_child` alone, which never returns here.
    match unsafe { libc::fork() } {
        -1 => bail!("cannot fork {name}: {}", io::Error::last_os_error()),
        0 => become_child(parent, &title, body),
        pid => Ok(pid),
    }
}

/// Waits for the first child to end, and reaps it.
///
/// # Errors
/// There is none.
pub fn wait() -> Result<libc::pid_t> {
    loop {
        // SAFETY: a null status is allowed.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()).context("cannot wait for a child"),
            pid => return Ok(pid),
        }
    }
}

impl Child {
    /// Whether it has ended by itself. Leaves it to be reaped.
    fn has_ended(&self) -> bool {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let id = self.pid.cast_unsigned();
        // SAFETY: `info` is valid for a siginfo_t.
        unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), flags) };
        // SAFETY: zeroed above, and a siginfo_t of zeroes is valid.
        let info = unsafe { info.assume_init() };
        // SAFETY: waitid fills in the part with the number, or leaves it 0.
        unsafe { info.si_pid() != 0 }
    }
}

/// What the child does. A child that comes back would be a second copy of the program: it ends here
/// whatever happens.
fn become_child(parent: libc::pid_t, title: &CString, body: impl FnOnce()) -> ! {
    // SAFETY: a number. The child dies when the forking thread does, even if that is killed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: a valid C string, of which the kernel takes 15 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, title.as_ptr()) };
    // SAFETY: no argument.
    let orphaned = unsafe { libc::getppid() } != parent;
    if !orphaned {
        let _ = catch_unwind(AssertUnwindSafe(body));
    }
    // SAFETY: ends the process without running what the parent has registered for its own end.
    unsafe { libc::_exit(1) }
}
