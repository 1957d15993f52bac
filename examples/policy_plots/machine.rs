//! A simulated machine on which time passes: tasks that live their lives, CPUs whose slices end and
//! whose clocks tick.

use scx_metronome_core::policy::Policy;
use scx_metronome_core::sim::{Config, Event, Sim};

/// ns of a millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// ns of a second.
pub(crate) const SECOND: u64 = 1000 * MS;

/// What a task does with its time. All in ns.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Life {
    /// It never sleeps.
    Hog,
    /// It is due every `period`, and runs for `burst` each time.
    Periodic { period: u64, burst: u64 },
    /// It runs for `burst`, then sleeps for `pause`.
    Sleeper { burst: u64, pause: u64 },
    /// It runs for `burst` each time that the task at the place before it goes to sleep.
    Link { burst: u64 },
}

/// A task and what became of it since the measurement began.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    life: Life,
    /// While it sleeps: until when.
    wakes_at: Option<u64>,
    /// If it is periodic: when it wakes next.
    due: u64,
    /// CPU time until it sleeps, ns.
    left: u64,
    /// While it waits: since when, and whether it woke then.
    waits: Option<(u64, bool)>,
    /// CPU time, ns.
    ran: u64,
    /// How often it got a CPU.
    pub(crate) runs: u64,
    /// From each wake-up until it ran, ns.
    pub(crate) delays: Vec<u64>,
    /// The longest that it was runnable and did not run, ns.
    pub(crate) longest_wait: u64,
    /// When it woke and went to sleep, each time, ns.
    pub(crate) woke_at: Vec<u64>,
    pub(crate) slept_at: Vec<u64>,
}

impl Task {
    fn new(life: Life, born_at: u64) -> Self {
        let is_link = matches!(life, Life::Link { .. });
        Self {
            life,
            wakes_at: (!is_link).then_some(born_at),
            due: born_at,
            left: 0,
            waits: None,
            ran: 0,
            runs: 0,
            delays: Vec::new(),
            longest_wait: 0,
            woke_at: Vec::new(),
            slept_at: Vec::new(),
        }
    }

    fn wake(&mut self, now: u64) {
        self.wakes_at = None;
        self.woke_at.push(now);
        self.waits = Some((now, true));
        self.left = match self.life {
            Life::Hog => u64::MAX,
            Life::Periodic { burst, .. } | Life::Sleeper { burst, .. } | Life::Link { burst } => {
                burst
            }
        };
    }

    fn sleep(&mut self, now: u64) {
        self.slept_at.push(now);
        self.wakes_at = match self.life {
            Life::Hog | Life::Link { .. } => None,
            Life::Sleeper { pause, .. } => Some(now + pause),
            Life::Periodic { period, .. } => {
                self.due += period;
                Some(self.due.max(now))
            }
        };
    }

    fn get_cpu(&mut self, now: u64) {
        self.runs += 1;
        if let Some((since, woke)) = self.waits.take() {
            self.longest_wait = self.longest_wait.max(now - since);
            if woke {
                self.delays.push(now - since);
            }
        }
    }

    fn leave_cpu(&mut self, since: u64, now: u64) {
        self.ran += now - since;
        self.left = self.left.saturating_sub(now - since);
        if self.left > 0 {
            self.waits = Some((now, false));
        }
    }
}

/// What a CPU runs.
#[derive(Clone, Copy, Debug)]
struct Run {
    id: usize,
    since: u64,
    slice_ends: u64,
}

/// The machine. Its scheduler thread answers at once.
pub(crate) struct Machine<P> {
    sim: Sim<P>,
    tasks: Vec<Task>,
    cpus: Vec<Option<Run>>,
    tick: u64,
    ticks_at: Vec<u64>,
    began: u64,
}

impl<P: Policy> Machine<P> {
    /// So many CPUs for the tasks, whose ticks come every `tick` ns, one CPU after the other; tasks
    /// of these lives and weights.
    pub(crate) fn new(workers: usize, tick: u64, policy: P, lives: &[(Life, u16)]) -> Self {
        let config = Config {
            nr_cpus: workers as u32 + 1,
            nr_tasks: lives.len() as u32,
            ..Config::default()
        };
        let mut sim = Sim::new(config, policy);
        for (id, (_, weight)) in (0..).zip(lives) {
            sim.apply(Event::SetWeight(id, *weight));
        }
        let began = sim.now();
        // They are born one after the other, within 16 ms. A deadline of 0, which would be none, is
        // past.
        let born_at = |nr: usize| began + MS + nr as u64 * 16 * MS / lives.len() as u64;
        let task = |(nr, (life, _)): (usize, &(Life, u16))| Task::new(*life, born_at(nr));
        Self {
            sim,
            tasks: lives.iter().enumerate().map(task).collect(),
            cpus: vec![None; workers],
            tick,
            ticks_at: (1..=workers as u64)
                .map(|nr| began + tick * nr / workers as u64)
                .collect(),
            began,
        }
    }

    /// Lets time pass, ns.
    pub(crate) fn run(&mut self, time: u64) {
        let end = self.sim.now() + time;
        while self.sim.now() < end {
            self.pass_until(self.next_at().min(end));
            for id in 0..self.tasks.len() {
                self.wake_if_due(id);
            }
            for cpu in 0..self.cpus.len() {
                self.stop_if_due(cpu);
                self.tick_if_due(cpu);
            }
        }
    }

    /// What was before does not count.
    pub(crate) fn begin_to_measure(&mut self) {
        self.began = self.sim.now();
        for task in &mut self.tasks {
            (task.ran, task.runs, task.longest_wait) = (0, 0, 0);
            task.delays.clear();
            task.woke_at.clear();
            task.slept_at.clear();
        }
    }

    /// A task, by its place among the lives.
    pub(crate) fn task(&self, id: usize) -> &Task {
        &self.tasks[id]
    }

    /// The CPU time of a task, in CPUs. What it has run in one go up to this moment is left out.
    pub(crate) fn cpus_of(&self, id: usize) -> f64 {
        self.tasks[id].ran as f64 / (self.sim.now() - self.began) as f64
    }

    fn next_at(&self) -> u64 {
        let wakes = self.tasks.iter().filter_map(|task| task.wakes_at);
        let stops = self.cpus.iter().flatten();
        let stops = stops.map(|run| self.sleeps_at(run).min(run.slice_ends));
        let ticks = self.ticks_at.iter().copied();
        wakes.chain(stops).chain(ticks).min().unwrap_or(u64::MAX)
    }

    fn sleeps_at(&self, run: &Run) -> u64 {
        run.since.saturating_add(self.tasks[run.id].left)
    }

    fn pass_until(&mut self, at: u64) {
        loop {
            let us = at.saturating_sub(self.sim.now()).div_ceil(1000);
            if us == 0 {
                return;
            }
            // Each event takes a microsecond itself.
            let us = (us - 1).min(u64::from(u16::MAX)) as u16;
            self.sim.apply(Event::Pass(us));
        }
    }

    fn wake_if_due(&mut self, id: usize) {
        let now = self.sim.now();
        if self.tasks[id].wakes_at.is_some_and(|at| at <= now) {
            self.tasks[id].wake(now);
            self.let_happen(Event::Wake(id as u32));
        }
    }

    fn stop_if_due(&mut self, cpu: usize) {
        let now = self.sim.now();
        let Some(run) = self.cpus[cpu] else {
            return;
        };
        if self.sleeps_at(&run) <= now {
            self.tasks[run.id].sleep(now);
            if let Some(next) = self.tasks.get_mut(run.id + 1)
                && matches!(next.life, Life::Link { .. })
                && next.left == 0
            {
                next.wakes_at = Some(now);
            }
            self.let_happen(Event::Sleep(cpu as u32));
        } else if run.slice_ends <= now {
            self.let_happen(Event::SliceEnds(cpu as u32));
        }
    }

    fn tick_if_due(&mut self, cpu: usize) {
        if self.ticks_at[cpu] <= self.sim.now() {
            self.ticks_at[cpu] += self.tick;
            self.let_happen(Event::Tick(cpu as u32));
        }
    }

    fn let_happen(&mut self, event: Event) {
        self.sim.apply(event);
        loop {
            let turned = self.sim.turn();
            self.sim.answer_kicks();
            if turned.taken + turned.handed_out == 0 {
                break;
            }
        }
        self.see_what_runs();
    }

    fn see_what_runs(&mut self) {
        let now = self.sim.now();
        let mut runs = vec![None; self.cpus.len()];
        for (cpu, id) in self.sim.running() {
            let slice_ends = self.sim.slice_ends_at(cpu).unwrap_or(now);
            let goes_on = |run: &Run| run.id == id as usize && run.slice_ends == slice_ends;
            runs[cpu as usize] = self.cpus[cpu as usize].filter(goes_on).or(Some(Run {
                id: id as usize,
                since: now,
                slice_ends,
            }));
        }
        let changed = |a: &Option<Run>, b: &Option<Run>| {
            a.map(|run| (run.id, run.slice_ends)) != b.map(|run| (run.id, run.slice_ends))
        };
        for (old, new) in self.cpus.iter().zip(&runs) {
            if let Some(run) = old.filter(|_| changed(old, new)) {
                self.tasks[run.id].leave_cpu(run.since, now);
            }
        }
        for (old, new) in self.cpus.iter().zip(&runs) {
            if let Some(run) = new.filter(|_| changed(old, new)) {
                self.tasks[run.id].get_cpu(now);
            }
        }
        self.cpus = runs;
    }
}
