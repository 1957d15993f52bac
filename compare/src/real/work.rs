//! Work beside a program that people run: it goes on until it is dropped, and tells how much of it
//! is done.

use super::{DIRECTORY, SOURCES, Started};
use anyhow::{Context, Result};
use loads::random::Random;
use std::fs;
use std::iter::repeat_n;
use std::path::Path;

/// What works beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// `make -j` of twice as many jobs as CPUs: tcc compiles the C files of zlib, again and again.
    Compile,
    /// x264 encodes a clip, with twice as many threads as CPUs.
    Encode,
    /// Python scripts, twice as many as CPUs, each of which runs short processes one after the
    /// other.
    Scripts,
    /// hackbench, again and again: forty processes that send each other messages.
    Messages,
}

/// Work that goes on until it is dropped.
pub(super) struct Work {
    beside: Beside,
    started: Started,
}

/// Objects go there, one for each file that was compiled.
const OBJECTS: &str = "/tmp/real/objects";
/// Frames of the clip, and their size: enough for the longest record.
const CLIP: (usize, usize, usize) = (400, 320, 180);

impl Work {
    pub(super) fn start(beside: Beside, at_a_time: usize) -> Result<Self> {
        let started = match beside {
            Beside::Compile => compile(at_a_time),
            Beside::Encode => encode(at_a_time),
            Beside::Scripts => scripts(at_a_time),
            Beside::Messages => messages(),
        }?;
        Ok(Self { beside, started })
    }

    /// Files compiled, frames encoded, processes that ended, runs of hackbench.
    pub(super) fn done(&self) -> Result<u64> {
        match self.beside {
            Beside::Compile => Ok(fs::read_dir(OBJECTS)?.count() as u64),
            Beside::Encode => Ok(encoded(&self.started.text()?)),
            Beside::Scripts => Ok(self.started.text()?.matches("done").count() as u64),
            Beside::Messages => Ok(self.started.text()?.matches("Time:").count() as u64),
        }
    }
}

fn compile(at_a_time: usize) -> Result<Started> {
    let _ = fs::remove_dir_all(OBJECTS);
    fs::create_dir_all(OBJECTS)?;
    let sources: Vec<_> = fs::read_dir(SOURCES)
        .with_context(|| format!("{SOURCES} is not here"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .map(|path| path.display().to_string())
        .collect();
    let mut makefile = format!("all: $(addprefix {OBJECTS}/,$(addsuffix .o,");
    let rules: String = (0..10_000)
        .zip(sources.iter().cycle())
        .map(|(nr, source)| {
            makefile += &format!("{nr} ");
            format!("{OBJECTS}/{nr}.o:\n\ttcc -I{SOURCES} -c {source} -o $@\n")
        })
        .collect();
    makefile += &format!("))\n{rules}");
    let file = Path::new(DIRECTORY).join("Makefile");
    fs::write(&file, makefile)?;
    Started::new("make", false, |command| {
        command.arg(format!("-j{at_a_time}")).arg("-sf").arg(file);
    })
}

/// A picture that moves, with noise, so that there is something to encode.
fn encode(at_a_time: usize) -> Result<Started> {
    let (frames, width, height) = CLIP;
    let mut clip = format!("YUV4MPEG2 W{width} H{height} F30:1 Ip A1:1 C420\n").into_bytes();
    let mut noise = Random(1);
    for frame in 0..frames {
        clip.extend_from_slice(b"FRAME\n");
        for y in 0..height {
            let row = (0..width).map(|x| (x + 3 * frame + 2 * y) as u8 & 0xf0);
            clip.extend(row.map(|light| light | noise.below(8) as u8));
        }
        clip.extend(repeat_n(128_u8, width * height / 2));
    }
    let file = Path::new(DIRECTORY).join("clip.y4m");
    fs::write(&file, clip)?;
    Started::new("x264", false, |command| {
        command.arg("--threads").arg(at_a_time.to_string());
        command
            .args(["--preset", "slow", "-o", "/dev/null"])
            .arg(file);
    })
}

/// One starts the others, and ends them with itself.
fn scripts(at_a_time: usize) -> Result<Started> {
    let script = format!(
        "import os\n\
         for _ in range({at_a_time} - 1):\n    if os.fork() == 0: break\n\
         while True:\n\
         \x20   os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', ':'], os.environ), 0)\n\
         \x20   os.write(1, b'done\\n')\n"
    );
    Started::new("python3", false, |command| {
        command.arg("-S").arg("-c").arg(script);
    })
}

fn messages() -> Result<Started> {
    Started::new("sh", false, |command| {
        command.args(["-c", "while hackbench -g 1 -l 20; do :; done"]);
    })
}

/// The last count in what x264 prints as it goes: "[9.5%] 19/200 frames, ...".
fn encoded(text: &str) -> u64 {
    let count = |part: &str| {
        let (before, _) = part.split_once(" frames")?;
        let words = before.rsplit(' ').next()?;
        words.split('/').next()?.parse().ok()
    };
    text.split(['\r', '\n']).rev().find_map(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_while_they_are_encoded() {
        let text = "x264 [info]: 1\r[9.5%] 19/200 frames, 100 fps\r[10.0%] 20/200 frames, 99 fps";
        assert_eq!(encoded(text), 20);
        assert_eq!((encoded("7 frames: 100.00 fps"), encoded("")), (7, 0));
    }
}
