//! The figures of the other benchmarks in one table, and for each bar whether it holds; the same
//! goes to `target/bench.json`.
//!
//! Reads what criterion and the other benchmarks have left behind, so it shows their last run. With
//! `--check`, a bar that is missed ends it with status 1. What was not measured is skipped, and
//! misses nothing.

use std::fs;
use std::process::ExitCode;

use serde_json::{Value, json};

mod support;

/// A comparison of two figures, and what their ratio must be.
struct Bar {
    what: &'static str,
    /// The dearest of these.
    ours: &'static [&'static str],
    against: &'static str,
    bound: Bound,
}

/// Of which ratio.
enum Bound {
    /// How many times dearer `against` is.
    AtLeast(f64),
    /// How many times dearer `ours` is.
    AtMost(f64),
}

use Bound::{AtLeast, AtMost};

// What two machines hold (Xeon and EPYC, virtual), with some room. In the time in which libbpf's
// consume_all() hands out the address of a record, ours has checked six of its fields. A decision
// touches six lines (record, account, waiting entry, heap, slot, order): of 65,536 tasks they are 20
// MiB, more than a near cache holds, and those of the next decision are fetched while one is made.
#[rustfmt::skip]
const BARS: &[Bar] = &[
    Bar { what: "a record, taken one by one", ours: &["ring/metronome_drain"], against: "ring/libbpf_consume_one", bound: AtLeast(2.0) },
    Bar { what: "a record, taken in a row", ours: &["ring/metronome_drain"], against: "ring/libbpf_consume_all", bound: AtLeast(0.9) },
    Bar { what: "a decision, 64 waiting", ours: &["decision/metronome/64"], against: "decision/incumbent/64", bound: AtLeast(8.0) },
    Bar { what: "a decision, 4,096 waiting", ours: &["decision/metronome/4096"], against: "decision/incumbent/4096", bound: AtLeast(8.0) },
    Bar { what: "a decision, against one record", ours: &["decision/metronome/64"], against: "ring/libbpf_consume_raw_n_1", bound: AtMost(15.0) },
    Bar { what: "a decision, 65,536 waiting", ours: &["decision/metronome/65536"], against: "decision/metronome/64", bound: AtMost(4.0) },
    Bar { what: "a decision, up to 1,024 CPUs", ours: &["scale/cpus/64", "scale/cpus/256", "scale/cpus/1024"], against: "scale/cpus/16", bound: AtMost(1.2) },
    Bar { what: "a decision, with stages measured", ours: &["decision/metronome/64"], against: "decision/metronome_unsampled/64", bound: AtMost(1.1) },
    Bar { what: "an idle CPU, claimed", ours: &["select_cpu/metronome_nearest/1024"], against: "select_cpu/bpf_prog_run", bound: AtLeast(10.0) },
    Bar { what: "a record, from CPU to CPU", ours: &["hop/ring_latency"], against: "hop/cache_line", bound: AtMost(3.0) },
];

/// Figures without a bar.
const OTHERS: &[&str] = &[
    "ring/metronome_dequeue",
    "dispatch/metronome_mailbox",
    "dispatch/libbpf_user_ringbuf",
    "queue/metronome_push_pop/64",
    "queue/metronome_push_pop/65536",
    "select_cpu/metronome_previous/16",
    "select_cpu/metronome_previous/1024",
    "select_cpu/metronome_nearest/16",
    "select_cpu/metronome_farthest/1024",
    "select_cpu/metronome_none/16",
    "select_cpu/metronome_none/1024",
    "contention/one_producer",
    "contention/two_on_one_ring",
    "contention/two_on_two_rings",
    "hop/ring_latency/p99",
    "hop/ring_latency/p999",
    "hop/cache_line/p99",
    "hop/cache_line/p999",
    "hop/ghost",
    "scale/cpus/1",
    "scale/cpus/64",
    "scale/cpus/256",
    "scale/cpus/1024",
    "scale/rings/1",
    "scale/rings/2",
    "scale/rings/4",
    "scale/rings/16",
];

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    if !check && !support::is_measuring() {
        // `cargo test`: a look at figures that may be of any age.
        println!("{} bars", BARS.len());
        return ExitCode::SUCCESS;
    }
    let bars: Vec<_> = BARS.iter().map(judge).collect();
    print_bars(&bars);
    let others: Vec<_> = OTHERS.iter().map(|name| (*name, figure(name))).collect();
    for (name, ns) in &others {
        println!("{name:<30} {}", in_ns(*ns));
    }

    let others: serde_json::Map<_, _> = others
        .iter()
        .map(|(name, ns)| ((*name).to_string(), json!(ns)))
        .collect();
    let bars_json: Vec<_> = bars.iter().map(Judged::json).collect();
    let all = json!({ "unit": "ns, medians", "bars": bars_json, "others": others });
    let written = fs::write(support::target().join("bench.json"), format!("{all:#}\n"));
    if let Err(error) = written {
        println!("target/bench.json cannot be written: {error}");
    }
    let missed = bars.iter().any(|bar| bar.holds() == Some(false));
    ExitCode::from(u8::from(check && missed))
}

/// A bar with its figures, where there are any.
struct Judged {
    bar: &'static Bar,
    /// The dearest of ours, by name.
    name: &'static str,
    ours: Option<f64>,
    against: Option<f64>,
}

fn judge(bar: &'static Bar) -> Judged {
    let figures = bar.ours.iter().map(|name| (*name, figure(name)));
    // One that was not measured might have been the dearest.
    let key = |ns: Option<f64>| ns.unwrap_or(f64::INFINITY);
    let dearest = figures.max_by(|(_, a), (_, b)| key(*a).total_cmp(&key(*b)));
    let (name, ours) = dearest.unwrap_or(("", None));
    Judged {
        bar,
        name,
        ours,
        against: figure(bar.against),
    }
}

impl Judged {
    fn ratio(&self) -> Option<f64> {
        let (ours, against) = (self.ours?, self.against?);
        Some(match self.bar.bound {
            AtLeast(_) => against / ours,
            AtMost(_) => ours / against,
        })
    }

    fn holds(&self) -> Option<bool> {
        let ratio = self.ratio()?;
        Some(match self.bar.bound {
            AtLeast(bound) => ratio >= bound,
            AtMost(bound) => ratio <= bound,
        })
    }

    fn verdict(&self) -> &'static str {
        match self.holds() {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "skipped",
        }
    }

    fn json(&self) -> Value {
        let bar = self.bar;
        let (side, bound) = match bar.bound {
            AtLeast(bound) => ("at least", bound),
            AtMost(bound) => ("at most", bound),
        };
        json!({
            "what": bar.what, "ours": self.name, "ours_ns": self.ours, "against": bar.against, "against_ns": self.against,
            "ratio": self.ratio(), "must_be": side, "bound": bound, "verdict": self.verdict(),
        })
    }
}

fn print_bars(bars: &[Judged]) {
    println!(
        "\n{:<30} {:>24} {:>10} {:>27} {:>10} {:>8}  bar",
        "", "ours", "", "against", "", "ratio"
    );
    for judged in bars {
        let bar = judged.bar;
        let bound = match bar.bound {
            AtLeast(bound) => format!("at least {bound}"),
            AtMost(bound) => format!("at most {bound}"),
        };
        let ratio = judged.ratio();
        println!(
            "{:<30} {:>24} {:>10} {:>27} {:>10} {:>8}  {bound}: {}",
            bar.what,
            judged.name,
            in_ns(judged.ours),
            bar.against,
            in_ns(judged.against),
            ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            judged.verdict(),
        );
    }
}

fn in_ns(ns: Option<f64>) -> String {
    ns.map_or("skipped".into(), |ns| format!("{ns:.1} ns"))
}

/// The median of a benchmark, or another quantile if named, in ns; `None` if it has not been run.
fn figure(name: &str) -> Option<f64> {
    let (group, rest) = name.split_once('/')?;
    let own = |file: &str, at: &str| read(&format!("bench/{file}"))?.pointer(at)?.as_f64();
    match (group, rest.split_once('/')) {
        ("hop", Some((what, quantile))) => own("hop.json", &format!("/{what}/{quantile}_ns")),
        ("hop", None) if rest == "ghost" => own("hop.json", "/ghost_ns"),
        ("hop", None) => own("hop.json", &format!("/{rest}/p50_ns")),
        ("contention", _) => own("contention.json", &format!("/{rest}_ns")),
        _ => read(&format!("criterion/{name}/new/estimates.json"))?
            .pointer("/median/point_estimate")?
            .as_f64(),
    }
}

fn read(file: &str) -> Option<Value> {
    let text = fs::read_to_string(support::target().join(file)).ok()?;
    serde_json::from_str(&text).ok()
}
