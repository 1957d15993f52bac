//! Works through the rounds: boots, listens, stores, and goes on where it was.

use crate::agent::Order;
use crate::cell::Form;
use crate::peers::{Peers, fingerprint};
use crate::sample::{Environment, Failure, Line, Sample, Store};
use crate::scheduler::{Kind, Scheduler};
use anyhow::{Context, Result, anyhow, bail};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// Where the cells are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a guest of `vm/run`, with this kernel, whose release is known, and so many CPUs.
    Guest {
        /// As `vm/run --kernel` takes it.
        kernel: PathBuf,
        /// Its release.
        release: String,
        /// CPUs.
        cpus: usize,
    },
    /// On this machine's own kernel.
    Host,
}

/// A run of the harness.
pub(crate) struct Driver {
    /// The project's directory.
    pub(crate) repository: PathBuf,
    /// Where programs are: those of this workspace.
    pub(crate) programs: PathBuf,
    /// The peers.
    pub(crate) peers: Peers,
    /// Where the cells are run.
    pub(crate) place: Place,
    /// What is run.
    pub(crate) form: &'static Form,
    /// How often.
    pub(crate) rounds: u32,
    /// Guests at a time.
    pub(crate) jobs: usize,
    /// After this nothing more is run.
    pub(crate) deadline: Option<Instant>,
    /// What else `vm/run` is told: what of the programs that people run is in the guest.
    pub(crate) more: Vec<OsString>,
    /// Where samples go.
    pub(crate) store: Store,
}

/// Longest time of one boot on the host, in seconds: a guest that hangs must end.
const BOOT: u64 = 3600;

/// A round of one scheduler: its cells that are not there yet.
struct Turn {
    scheduler: &'static Scheduler,
    program: Option<PathBuf>,
    round: u32,
    cells: Vec<String>,
}

/// What all turns share.
struct Progress {
    start: Instant,
    total: usize,
    done: usize,
    failures: BTreeMap<&'static str, Failure>,
}

impl Driver {
    /// The form's time begins.
    #[must_use]
    pub(crate) fn with_time(mut self) -> Self {
        let limit = self
            .form
            .minutes
            .map(|minutes| Duration::from_secs(minutes * 60));
        self.deadline = limit.map(|limit| Instant::now() + limit);
        self
    }

    /// Runs all that is missing; true if nothing is missing any more but what failed.
    ///
    /// # Errors
    /// The directory of the samples cannot be written. What goes wrong with one scheduler stops no
    /// other.
    pub(crate) fn run(
        &self,
        schedulers: &[&'static Scheduler],
        mut tell: impl FnMut(&str) + Send,
    ) -> Result<bool> {
        let mut ready = Vec::new();
        let mut failures = BTreeMap::new();
        for scheduler in schedulers {
            match self.prepare(scheduler, &mut tell)? {
                Ok(program) => ready.push((*scheduler, program)),
                Err(message) => {
                    self.give_up(&mut failures, scheduler, "building", message, &mut tell)?
                }
            }
        }
        let turns = self.turns(&ready);
        let total = turns.iter().map(|turn| turn.cells.len()).sum();
        tell(&format!("{total} samples to take"));
        let progress = Mutex::new(Progress {
            start: Instant::now(),
            total,
            done: 0,
            failures,
        });
        let (turns, tell) = (Mutex::new(VecDeque::from(turns)), Mutex::new(tell));
        scope(|scope| {
            let workers: Vec<_> = (0..self.jobs)
                .map(|_| scope.spawn(|| self.work(&turns, &progress, &tell)))
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a thread panicked"))?)
        })?;
        let left = lock(&turns).len();
        let progress = lock(&progress);
        Ok(left == 0 && (progress.done == progress.total || !progress.failures.is_empty()))
    }

    /// The scheduler's program, or why there is none.
    fn prepare(
        &self,
        scheduler: &Scheduler,
        tell: &mut impl FnMut(&str),
    ) -> Result<Result<Option<PathBuf>, String>> {
        let program = match scheduler.kind {
            Kind::Default | Kind::Fifo => None,
            Kind::Metronome => Some(self.programs.join(scheduler.id)),
            Kind::Peer(_) => match self.peers.program(scheduler) {
                Some(program) => Some(program),
                None => {
                    self.store.prepare(scheduler.id, "none")?;
                    return Ok(Err(self.peers.failure(scheduler)));
                }
            },
        };
        if self
            .store
            .prepare(scheduler.id, &self.version(scheduler)?)?
        {
            tell(&format!(
                "{}: another program than last time, its samples are taken anew",
                scheduler.id
            ));
        }
        Ok(Ok(program))
    }

    /// What tells a scheduler's samples from those of another build.
    fn version(&self, scheduler: &Scheduler) -> Result<String> {
        match scheduler.kind {
            Kind::Default | Kind::Fifo => Ok("kernel".to_owned()),
            Kind::Peer(version) => Ok(version.to_owned()),
            Kind::Metronome => fingerprint(&self.programs.join(scheduler.id)),
        }
    }

    /// A B C … A B C …: all schedulers' first rounds before the first scheduler's second.
    fn turns(&self, ready: &[(&'static Scheduler, Option<PathBuf>)]) -> Vec<Turn> {
        let mut turns = Vec::new();
        for round in 1..=self.rounds {
            for (scheduler, program) in ready {
                let cells = self.form.cells(scheduler).map(|cell| cell.id);
                let missing = cells.filter(|cell| !self.store.has(scheduler.id, cell, round));
                let cells: Vec<_> = missing.map(str::to_owned).collect();
                if !cells.is_empty() {
                    turns.push(Turn {
                        scheduler,
                        program: program.clone(),
                        round,
                        cells,
                    });
                }
            }
        }
        turns
    }

    fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn work(
        &self,
        turns: &Mutex<VecDeque<Turn>>,
        progress: &Mutex<Progress>,
        tell: &Mutex<impl FnMut(&str) + Send>,
    ) -> Result<()> {
        loop {
            if self.is_over() {
                return Ok(());
            }
            let Some(turn) = lock(turns).pop_front() else {
                return Ok(());
            };
            // It failed meanwhile: it would do so again.
            if lock(progress).failures.contains_key(turn.scheduler.id) {
                continue;
            }
            self.take(&turn, progress, tell)?;
        }
    }

    /// Takes a turn, and a second time if it failed: an emulator fails now and then.
    fn take(
        &self,
        turn: &Turn,
        progress: &Mutex<Progress>,
        tell: &Mutex<impl FnMut(&str) + Send>,
    ) -> Result<()> {
        let mut missing: Vec<String> = turn.cells.clone();
        for last in [false, true] {
            let failure = self.boot(turn, &missing, progress, tell)?;
            missing.retain(|cell| !self.store.has(turn.scheduler.id, cell, turn.round));
            let Some(failure) = failure else {
                return self.store.set_failure(turn.scheduler.id, None);
            };
            if self.is_over() {
                return Ok(());
            }
            if last {
                let mut progress = lock(progress);
                let tell = &mut *lock(tell);
                return self.give_up(
                    &mut progress.failures,
                    turn.scheduler,
                    &failure.step,
                    failure.message,
                    tell,
                );
            }
            lock(tell)(&format!(
                "{}: {}: {}; once more",
                failure.scheduler, failure.step, failure.message
            ));
        }
        Ok(())
    }

    fn give_up(
        &self,
        failures: &mut BTreeMap<&'static str, Failure>,
        scheduler: &'static Scheduler,
        step: &str,
        message: String,
        tell: &mut impl FnMut(&str),
    ) -> Result<()> {
        tell(&format!(
            "{}: FAILED at {step}: {message}; the others go on",
            scheduler.id
        ));
        let failure = Failure {
            scheduler: scheduler.id.to_owned(),
            step: step.to_owned(),
            message,
        };
        self.store.set_failure(scheduler.id, Some(&failure))?;
        failures.insert(scheduler.id, failure);
        Ok(())
    }

    /// One boot with these cells; why it came to nothing, if it did.
    fn boot(
        &self,
        turn: &Turn,
        cells: &[String],
        progress: &Mutex<Progress>,
        tell: &Mutex<impl FnMut(&str) + Send>,
    ) -> Result<Option<Failure>> {
        let order = self.order(turn, cells);
        let mut child = self
            .command(turn, &order)?
            .spawn()
            .context("cannot start vm/run")?;
        let output = child.stdout.take().context("no output")?;
        let errors = child.stderr.take().context("no output")?;
        // From another thread: an agent that says nothing must not outlast the deadline.
        let (status, samples, failure, words) = scope(|scope| {
            let words = scope.spawn(move || {
                let mut text = String::new();
                let _ = BufReader::new(errors).read_to_string(&mut text);
                text
            });
            let lines = scope.spawn(|| self.listen(output, turn, progress, tell));
            let status = self.wait(&mut child);
            let (samples, failure) = lines.join().map_err(|_| anyhow!("a thread panicked"))??;
            let words = words.join().unwrap_or_default();
            anyhow::Ok((status?, samples, failure, words))
        })?;
        if self.is_over() || failure.is_some() {
            return Ok(failure);
        }
        if status == Some(0) {
            return Ok(None);
        }
        // A kernel that complained makes what it measured doubtful.
        samples.iter().for_each(|sample| self.store.forget(sample));
        let mut last = words.lines().map(str::trim).filter(|line| !line.is_empty());
        let complaint = last.clone().find(|line| {
            ["qemu-system", "Oops", "BUG", "WARNING"]
                .iter()
                .any(|word| line.contains(word))
        });
        Ok(Some(Failure {
            scheduler: turn.scheduler.id.to_owned(),
            step: "running".to_owned(),
            message: format!(
                "ended with {status:?}: {}",
                complaint.or(last.next_back()).unwrap_or("no word")
            ),
        }))
    }

    fn order(&self, turn: &Turn, cells: &[String]) -> Order {
        let in_guest = matches!(self.place, Place::Guest { .. });
        let name = |program: &PathBuf| match (in_guest, program.file_name()) {
            (true, Some(name)) => name.to_string_lossy().into_owned(),
            _ => program.to_string_lossy().into_owned(),
        };
        Order {
            scheduler: turn.scheduler.id.to_owned(),
            program: turn.program.as_ref().map(name),
            fifo: turn.scheduler.kind == Kind::Fifo,
            form: self.form.name.to_owned(),
            round: turn.round,
            cells: cells.to_vec(),
            iterations_per_ms: self
                .store
                .environment()
                .map(|known| known.iterations_per_ms),
            together: in_guest,
        }
    }

    fn command(&self, turn: &Turn, order: &Order) -> Result<Command> {
        let order = serde_json::to_string(order)?;
        let mut command = match &self.place {
            Place::Host => Command::new(self.programs.join("compare")),
            Place::Guest { kernel, cpus, .. } => {
                let mut command = Command::new(self.repository.join("vm/run"));
                command
                    .arg("--kernel")
                    .arg(kernel)
                    .args(["--time", "icount"]);
                command.args(["--cpus", &cpus.to_string(), "--timeout", &BOOT.to_string()]);
                if let (Kind::Peer(_), Some(program)) = (turn.scheduler.kind, &turn.program) {
                    command.arg("--add").arg(program);
                }
                command.args(&self.more).args(["--", "compare"]);
                command
            }
        };
        command.args(["agent", &order]);
        // SAFETY: prctl is a plain system call, which may be made between fork and exec.
        unsafe { command.pre_exec(end_with_parent) };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Its exit status; None if the deadline came first.
    fn wait(&self, child: &mut Child) -> Result<Option<i32>> {
        let mut told_to_end = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code().filter(|_| !told_to_end));
            }
            if self.is_over() && !told_to_end {
                told_to_end = true;
                // SAFETY: plain numbers; a child that has not been waited for keeps its number.
                // vm/run cleans up.
                unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
            }
            sleep(Duration::from_millis(100));
        }
    }

    fn listen(
        &self,
        output: impl Read,
        turn: &Turn,
        progress: &Mutex<Progress>,
        tell: &Mutex<impl FnMut(&str) + Send>,
    ) -> Result<(Vec<Sample>, Option<Failure>)> {
        let (mut samples, mut failure) = (Vec::new(), None);
        for line in BufReader::new(output).lines() {
            let Ok(line) = line else { break };
            match Line::parse(&line) {
                Some(Line::Sample(sample)) if sample.scheduler == turn.scheduler.id => {
                    self.store.put(&sample)?;
                    lock(tell)(&lock(progress).count(&sample, self.rounds));
                    samples.push(sample);
                }
                Some(Line::Environment(environment)) => self.note(environment)?,
                Some(Line::Failure(said)) => failure = Some(said),
                _ => {}
            }
        }
        Ok((samples, failure))
    }

    /// The first calibration is for all.
    fn note(&self, environment: Environment) -> Result<()> {
        match self.store.environment() {
            None => self.store.set_environment(&environment),
            Some(known) if known.kernel == environment.kernel && known.cpus == environment.cpus => {
                Ok(())
            }
            Some(known) => {
                bail!("this is {environment:?}, but the samples were taken on {known:?}")
            }
        }
    }
}

impl Progress {
    fn count(&mut self, sample: &Sample, rounds: u32) -> String {
        self.done += 1;
        let elapsed = self.start.elapsed().as_secs_f64();
        let left = elapsed / self.done as f64 * (self.total - self.done.min(self.total)) as f64;
        format!(
            "{} {}/{} round {}/{rounds} {} {}; about {} min left",
            bar(self.done, self.total),
            self.done,
            self.total,
            sample.round,
            sample.scheduler,
            sample.cell,
            (left / 60.0).ceil(),
        )
    }
}

/// A run that is killed leaves no guest behind.
fn end_with_parent() -> io::Result<()> {
    // SAFETY: plain numbers.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Twenty characters.
fn bar(done: usize, total: usize) -> String {
    let full = (done * 20 / total.max(1)).min(20);
    format!("[{}{}]", "#".repeat(full), "-".repeat(20 - full))
}

/// Nothing here can leave what it guards half-changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directory and the release of the kernel that `wanted` names.
///
/// # Errors
/// There is none.
pub(crate) fn find_kernel(repository: &Path, wanted: &str) -> Result<(PathBuf, String)> {
    let output = Command::new(repository.join("vm/kernels"))
        .args(["get", wanted])
        .stderr(Stdio::inherit())
        .output();
    let output = output.context("cannot start vm/kernels")?;
    if !output.status.success() {
        bail!("vm/kernels get {wanted} has failed");
    }
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let release = directory
        .file_name()
        .context("vm/kernels names no kernel")?;
    let release = release.to_string_lossy().into_owned();
    Ok((directory, release))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::FORMS;
    use crate::figure::Figure;
    use crate::sample::tests::sample;
    use crate::scheduler::SCHEDULERS;
    use tempfile::TempDir;

    /// The directory is gone when it is dropped.
    fn driver(form: &'static Form) -> Result<(TempDir, Driver)> {
        let temporary = tempfile::tempdir()?;
        let directory = temporary.path().to_owned();
        let driver = Driver {
            repository: directory.clone(),
            programs: directory.clone(),
            peers: Peers(directory.clone()),
            place: Place::Host,
            form,
            rounds: 2,
            jobs: 1,
            deadline: None,
            more: Vec::new(),
            store: Store::new(&directory, form, "6.18", 4),
        };
        Ok((temporary, driver))
    }

    #[test]
    fn schedulers_take_turns() -> Result<()> {
        let (_directory, driver) = driver(&FORMS[0])?;
        let ready: Vec<_> = SCHEDULERS
            .iter()
            .take(3)
            .map(|scheduler| (scheduler, None))
            .collect();
        let turns = driver.turns(&ready);
        let order: Vec<_> = turns
            .iter()
            .map(|turn| (turn.round, turn.scheduler.id))
            .collect();
        let [a, b, c] = ["eevdf", "fifo", "scx_metronome"];
        assert_eq!(order, [(1, a), (1, b), (1, c), (2, a), (2, b), (2, c)]);
        Ok(())
    }

    #[test]
    fn what_is_stored_is_not_run_again() -> Result<()> {
        let (_directory, driver) = driver(&FORMS[2])?;
        driver.store.prepare("eevdf", "kernel")?;
        driver
            .store
            .put(&sample("eevdf", "messaging", 1, Figure::Seconds, 1.0))?;
        let turns = driver.turns(&[(&SCHEDULERS[0], None)]);
        let cells: Vec<_> = turns.iter().map(|turn| turn.cells.join(" ")).collect();
        assert_eq!(cells, ["frame-1.5x", "frame-1.5x messaging"]);
        Ok(())
    }

    #[test]
    fn a_peer_that_is_missing_is_named_and_stops_no_other() -> Result<()> {
        let (_directory, driver) = driver(&FORMS[0])?;
        let lavd: Vec<_> = SCHEDULERS
            .iter()
            .filter(|scheduler| scheduler.id == "scx_lavd")
            .collect();
        let mut told = String::new();
        assert!(driver.run(&lavd, |line| told.push_str(line))?);
        assert!(told.contains("scx_lavd: FAILED at building"), "{told}");
        assert!(driver.store.failure("scx_lavd").is_some());
        Ok(())
    }

    #[test]
    fn bars() {
        assert_eq!(bar(0, 10), "[--------------------]");
        assert_eq!(bar(5, 10), "[##########----------]");
        assert_eq!(bar(10, 10), "[####################]");
        assert_eq!(bar(0, 0), "[--------------------]");
    }
}
