//! `scx_metronome --monitor`: what the scheduler that runs is doing.
//!
//! It is another process, and asks the socket: the scheduler thread does not know of it.

use std::cmp::Reverse;
use std::fs;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use scx_stats::StatsClient;

use super::stats::{ChainMetrics, CpuMetrics, Metrics};
use super::{output, set};

/// A view on a terminal, else a line for each interval, until there is no reader or
/// nothing to show.
pub(crate) fn monitor(interval: Duration, json: bool) -> Result<()> {
    let mut source = Source::open()?;
    if json || !io::stdout().is_terminal() {
        return lines(&mut source, interval, json);
    }
    ratatui::run(|terminal| -> Result<()> {
        let mut shown = source.next()?;
        loop {
            terminal.draw(|frame| draw(frame, &shown))?;
            if asked_to_quit(interval)? {
                return Ok(());
            }
            shown = source.next()?;
        }
    })
}

fn lines(source: &mut Source, interval: Duration, json: bool) -> Result<()> {
    loop {
        thread::sleep(interval);
        if !output::line(source.next()?.line(json)) {
            return Ok(());
        }
    }
}

/// The scheduler's socket, and what it said last.
struct Source {
    client: StatsClient,
    last: Metrics,
}

impl Source {
    fn open() -> Result<Self> {
        let mut client = set::connect()?;
        let last = ask(&mut client)?;
        Ok(Self { client, last })
    }

    /// What has happened since the last call.
    fn next(&mut self) -> Result<Metrics> {
        let now = match ask(&mut self.client) {
            Ok(now) => now,
            Err(_) => {
                // It ends when a CPU comes or goes, and begins anew, with its counters at zero.
                *self = Self::reopen()?;
                return Ok(self.last.clone());
            }
        };
        let since = now.since(&self.last);
        self.last = now;
        Ok(since)
    }

    fn reopen() -> Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let start = Instant::now();
        loop {
            match Self::open() {
                Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(100)),
                result => return result,
            }
        }
    }
}

fn ask(client: &mut StatsClient) -> Result<Metrics> {
    client.request("stats", vec![("target".into(), "top".into())])
}

/// Waits for the end of the interval, or for q, Esc or Ctrl-C.
fn asked_to_quit(interval: Duration) -> Result<bool> {
    let end = Instant::now() + interval;
    while event::poll(end.saturating_duration_since(Instant::now()))? {
        if let Event::Key(key) = event::read()? {
            let interrupts = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
                KeyCode::Char('c') if interrupts => return Ok(true),
                _ => (),
            }
        }
    }
    Ok(false)
}

fn draw(frame: &mut Frame<'_>, metrics: &Metrics) {
    let counters = counters(metrics);
    let height = counters.len() as u16 + 2;
    let [top, bottom] =
        Layout::vertical([Constraint::Length(height), Constraint::Fill(1)]).areas(frame.area());
    let [frames, cpus] =
        Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(bottom);
    let title = format!(
        " scx_metronome: slices {} to {} µs, {}, {} KiB; q quits ",
        metrics.slice_us_min, metrics.slice_us, metrics.wait, metrics.rss_kib
    );
    frame.render_widget(
        Paragraph::new(counters).block(Block::bordered().title(title)),
        top,
    );
    frame.render_widget(chains(metrics), frames);
    frame.render_widget(tasks(metrics), cpus);
}

fn counters(metrics: &Metrics) -> Vec<Line<'static>> {
    let Metrics {
        direct,
        ordered,
        handed_off,
        preempted,
        queued,
        dispatched,
        waiting,
        ring_full,
        taken_back,
        late,
        fallback,
        kernel_side,
        syscalls,
        faults,
        allocations,
        ..
    } = metrics;
    let bad = faults + allocations != 0;
    let last = Line::from(format!(
        "scheduler thread     {syscalls} system calls, {faults} faults, {allocations} allocations"
    ));
    vec![
        Line::from(format!(
            "decided ahead        {ordered} orders ({handed_off} hand-offs, {preempted} preemptions), {direct} to idle CPUs"
        )),
        Line::from(format!(
            "asked user space     {queued}, decided {dispatched}, waiting {waiting}"
        )),
        Line::from(format!(
            "without user space   {fallback} while it was late ({late} times), {taken_back} taken back, {ring_full} ring full, \
             {kernel_side} kernel side's own"
        )),
        if bad { last.red() } else { last },
    ]
}

/// The chains, those with the longest critical path first.
fn chains(metrics: &Metrics) -> Table<'static> {
    let mut chains: Vec<_> = metrics.chains.values().collect();
    chains.sort_by_key(|chain| Reverse(chain.path_us));
    let ms = |us: u64| format!("{:.1}", us as f64 / 1000.0);
    let row = |chain: &ChainMetrics| {
        let others = chain.members.len().saturating_sub(1);
        let head = chain.members.first().copied().unwrap_or_default();
        Row::new([
            format!("{head} {}", name(head)),
            format!("+{others}"),
            ms(chain.period_us),
            ms(chain.path_us),
            format!("{}/{}", chain.late, chain.frames),
            format!("{}", chain.credit_us / 1000),
        ])
    };
    Table::new(
        chains.into_iter().map(row),
        [
            Constraint::Fill(1),
            Constraint::Length(3),
            Constraint::Length(6),
            Constraint::Length(6),
            Constraint::Length(10),
            Constraint::Length(6),
        ],
    )
    .header(Row::new(["begins with", "", "every", "takes", "late", "credit"]).dim())
    .block(Block::bordered().title("frames, ms"))
}

/// What each CPU runs.
fn tasks(metrics: &Metrics) -> Table<'static> {
    let row = |(number, cpu): (&usize, &CpuMetrics)| {
        let task = match cpu.state.as_str() {
            "idle" => String::new(),
            _ => format!("{} {}", cpu.pid, name(cpu.pid)),
        };
        Row::new([number.to_string(), cpu.state.clone(), task])
    };
    Table::new(
        metrics.cpus.iter().map(row),
        [
            Constraint::Length(4),
            Constraint::Length(8),
            Constraint::Fill(1),
        ],
    )
    .header(Row::new(["CPU", "", "thread"]).dim())
    .block(Block::bordered().title("CPUs"))
}

fn name(tid: i64) -> String {
    let name = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::{Value, json};

    use super::*;

    /// Metrics with some fields set and all other counters 0.
    fn metrics(set: Value) -> Metrics {
        let text = String::from_utf8({
            let mut text = Vec::new();
            super::super::stats::metadata()
                .describe_meta(&mut text, None)
                .unwrap();
            text
        })
        .unwrap();
        let mut all = json!({"wait": "park", "cpus": {}, "chains": {}});
        for line in text.lines().skip(1).take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap();
            if line.contains("(u64)") {
                all[name] = json!(0);
            }
        }
        for (name, value) in set.as_object().unwrap() {
            all[name] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn the_view_shows_counters_running_tasks_and_the_longest_chain_first() {
        let cpu = |state: &str, pid: i64| json!({"state": state, "pid": pid, "deadline": 0, "slice_us": 1});
        let chain = |members: &[i64], path_us: u64| {
            json!({"members": members, "period_us": 16_667, "path_us": path_us,
            "frames": 600, "late": 7, "credit_us": -3_500})
        };
        let metrics = metrics(json!({
            "queued": 17, "waiting": 5, "slice_us": 2000,
            "cpus": {"0": cpu("ordered", -7), "1": cpu("idle", -8)},
            "chains": {"0": chain(&[-5], 300), "1": chain(&[-9, -10, -11], 12_340)},
        }));
        let mut terminal = Terminal::new(TestBackend::new(100, 16)).unwrap();
        terminal.draw(|frame| draw(frame, &metrics)).unwrap();
        let screen = terminal.backend().to_string();
        for text in [
            "17, decided 0, waiting 5",
            "2000 µs",
            "park",
            "0 faults",
            "-7",
            "idle",
        ] {
            assert!(screen.contains(text), "{text}: {screen}");
        }
        assert!(!screen.contains("-8"), "{screen}");
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let chains: Vec<_> = screen
            .lines()
            .map(words)
            .filter(|words| words.contains(&"16.7".to_owned()))
            .collect();
        let longest = ["-9", "+2", "16.7", "12.3", "7/600", "-3"];
        for text in longest {
            assert!(
                chains[0].iter().any(|word| word.contains(text)),
                "{text}: {screen}"
            );
        }
        assert!(chains[1].iter().any(|word| word.contains("-5")), "{screen}");
    }
}
