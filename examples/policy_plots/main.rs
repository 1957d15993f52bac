//! Makes the plots of `docs/POLICY.md`: `cargo run --release --example policy_plots [-- [--seconds
//! SECONDS] [DIRECTORY]]`
//!
//! The policy that `scx_metronome` runs decides for a simulated machine with three CPUs and a
//! fourth for the scheduler thread, for so many seconds of virtual time for each point (20).
//! Nothing is left to chance: the same program makes the same plots. The simulator has no standing
//! orders: this is user space's own queue.

mod draw;
mod figures;
mod machine;

use std::error::Error;
use std::path::{Path, PathBuf};

use figures::Measure;
use machine::SECOND;

fn main() -> Result<(), Box<dyn Error>> {
    run(std::env::args().skip(1))
}

fn run(args: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let mut directory = PathBuf::from("docs");
    let mut seconds = 20.0;
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => seconds = args.next().ok_or("--seconds wants a number")?.parse()?,
            option if option.starts_with('-') => {
                return Err("usage: policy_plots [--seconds SECONDS] [DIRECTORY]".into());
            }
            path => directory = PathBuf::from(path),
        }
    }
    plot(&directory, (seconds * SECOND as f64) as Measure)
}

fn plot(directory: &Path, measure: Measure) -> Result<(), Box<dyn Error>> {
    let delays = figures::delays(measure);
    draw::lines(&directory.join("policy-delay.svg"), &draw::DELAYS, &delays)?;
    let shares = figures::shares(measure);
    draw::bars(&directory.join("policy-weights.svg"), &shares)?;
    let sleepers = figures::sleepers(measure);
    draw::lines(
        &directory.join("policy-sleeper.svg"),
        &draw::SLEEPERS,
        &sleepers,
    )?;
    let crowds = figures::crowds(measure);
    draw::lines(&directory.join("policy-crowd.svg"), &draw::CROWDS, &crowds)?;
    let chains = figures::chains(measure);
    draw::lines(&directory.join("policy-chain.svg"), &draw::CHAINS, &chains)?;
    for line in delays.iter().chain(&sleepers).chain(&crowds).chain(&chains) {
        println!("{line}");
    }
    for row in &shares {
        println!("{row}");
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::{env, fs, process};

    const DOCUMENT: &str = include_str!("../../docs/POLICY.md");

    #[test]
    fn the_command_of_the_document_makes_its_plots() {
        let command = "cargo run --release --example policy_plots";
        assert!(DOCUMENT.contains(command));
        let directory = env::temp_dir().join(format!("metronome-plots-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        let args = ["--seconds", "0.3", directory.to_str().unwrap()];
        run(args.into_iter().map(String::from)).unwrap();
        let mut made = 0;
        for file in fs::read_dir(&directory).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let plot = fs::read_to_string(&path).unwrap();
            assert!(DOCUMENT.contains(&format!("]({name})")), "{name}");
            assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"));
            assert!(!plot.contains("NaN") && !plot.contains("inf"), "{name}");
            made += 1;
        }
        assert_eq!(made, DOCUMENT.matches("](policy-").count());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn at_four_times_saturation_each_weight_gets_its_share_whatever_the_tick() {
        for tick in figures::TICKS {
            let shares = figures::shares_of(3, tick, 2 * SECOND);
            for (share, ideal) in shares.into_iter().zip(figures::ideal()) {
                assert!((share / ideal - 1.0).abs() < 0.1, "{tick}: {shares:?}");
            }
        }
    }

    #[test]
    fn a_task_that_sleeps_on_purpose_gets_no_more_than_its_share() {
        for line in figures::sleepers(2 * SECOND) {
            for (burst, share) in &line.points {
                let fair = 100.0 * figures::FAIR;
                assert!(*share <= 1.06 * fair, "{}: {share} % at {burst}", line.name);
            }
        }
    }
}
