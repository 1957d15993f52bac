//! Samples, and where they are kept.

use crate::cell::{Form, VERSION};
use crate::figure::Figure;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One cell of one scheduler in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// A scheduler's id.
    pub(crate) scheduler: String,
    /// A cell's id.
    pub(crate) cell: String,
    /// From 1.
    pub(crate) round: u32,
    /// Its figures; more than are shown.
    pub(crate) figures: BTreeMap<Figure, f64>,
}

/// Why there is no sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// A scheduler's id.
    pub(crate) scheduler: String,
    /// What was being done.
    pub(crate) step: String,
    /// In the words of the program that failed.
    pub(crate) message: String,
}

/// Where samples were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// The kernel's release.
    pub(crate) kernel: String,
    /// CPUs.
    pub(crate) cpus: usize,
    /// Iterations of the work loop that all loads take for a millisecond.
    pub(crate) iterations_per_ms: u64,
}

/// What the agent says, a line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// First of all.
    Environment(Environment),
    /// A cell is done.
    Sample(Sample),
    /// Nothing more comes of this scheduler.
    Failure(Failure),
}

/// What tells a line of the agent's from other output.
const MARK: &str = "@compare ";

impl Line {
    /// As it is printed.
    ///
    /// # Errors
    /// A figure is no number.
    pub(crate) fn print(&self) -> Result<String> {
        Ok(format!("{MARK}{}", serde_json::to_string(self)?))
    }

    /// What a line of output says; None if it is none of the agent's.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim_end().strip_prefix(MARK)?).ok()
    }
}

/// The directory of the samples that may be compared with each other.
#[derive(Clone, Debug)]
pub(crate) struct Store(PathBuf);

impl Store {
    /// Below `samples`, for this form, kernel and number of CPUs.
    #[must_use]
    pub(crate) fn new(samples: &Path, form: &Form, kernel: &str, cpus: usize) -> Self {
        let name = format!("{}-v{VERSION}-{kernel}-{cpus}cpus", form.name);
        Self(samples.join(name))
    }

    /// Makes a scheduler's place, and drops what another version of it has left there; true if
    /// there was something.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(crate) fn prepare(&self, scheduler: &str, version: &str) -> Result<bool> {
        let (directory, mark) = (self.0.join(scheduler), self.version_file(scheduler));
        let old = fs::read_to_string(&mark).ok();
        let stale = old.as_deref().is_some_and(|old| old != version);
        if stale {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        write(&mark, version)?;
        Ok(stale)
    }

    fn version_file(&self, scheduler: &str) -> PathBuf {
        self.0.join(scheduler).join("version")
    }

    /// The version whose samples are stored.
    #[must_use]
    pub(crate) fn version(&self, scheduler: &str) -> Option<String> {
        fs::read_to_string(self.version_file(scheduler)).ok()
    }

    fn path(&self, scheduler: &str, cell: &str, round: u32) -> PathBuf {
        self.0
            .join(scheduler)
            .join(format!("{cell}.{round:02}.json"))
    }

    /// Whether this sample is stored.
    #[must_use]
    pub(crate) fn has(&self, scheduler: &str, cell: &str, round: u32) -> bool {
        self.path(scheduler, cell, round).exists()
    }

    /// Stores a sample: whole, or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn put(&self, sample: &Sample) -> Result<()> {
        let path = self.path(&sample.scheduler, &sample.cell, sample.round);
        write(&path, &serde_json::to_string_pretty(sample)?)
    }

    /// Forgets a sample.
    pub(crate) fn forget(&self, sample: &Sample) {
        let _ = fs::remove_file(self.path(&sample.scheduler, &sample.cell, sample.round));
    }

    /// All samples of a scheduler.
    ///
    /// # Errors
    /// A file is not readable, or holds no sample.
    pub(crate) fn samples(&self, scheduler: &str) -> Result<Vec<Sample>> {
        let mut files: Vec<_> = match fs::read_dir(self.0.join(scheduler)) {
            Ok(entries) => entries
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<_>>()?,
            Err(_) => Vec::new(),
        };
        files.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        });
        files.sort();
        files.iter().map(|path| read(path)).collect()
    }

    /// Where the samples are taken, once that is known.
    #[must_use]
    pub(crate) fn environment(&self) -> Option<Environment> {
        read(&self.0.join("environment.json")).ok()
    }

    /// Notes where samples are taken.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn set_environment(&self, environment: &Environment) -> Result<()> {
        fs::create_dir_all(&self.0)?;
        let path = self.0.join("environment.json");
        write(&path, &serde_json::to_string_pretty(environment)?)
    }

    /// Notes why a scheduler has no samples, or that nothing is wrong with it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn set_failure(&self, scheduler: &str, failure: Option<&Failure>) -> Result<()> {
        let path = self.0.join(scheduler).join("failure");
        match failure {
            Some(failure) => write(&path, &serde_json::to_string_pretty(failure)?),
            None => {
                let _ = fs::remove_file(path);
                Ok(())
            }
        }
    }

    /// Why a scheduler has no samples.
    #[must_use]
    pub(crate) fn failure(&self, scheduler: &str) -> Option<Failure> {
        read(&self.0.join(scheduler).join("failure")).ok()
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// The directory cannot be removed.
    pub(crate) fn clear(&self) -> Result<()> {
        if self.0.exists() {
            fs::remove_dir_all(&self.0)?;
        }
        Ok(())
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds something else", path.display()))
}

/// Under another name first: a process that is killed as it writes leaves no half of a file.
fn write(path: &Path, text: &str) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cell::FORMS;
    use tempfile::TempDir;

    /// A sample with one figure.
    pub(crate) fn sample(
        scheduler: &str,
        cell: &str,
        round: u32,
        figure: Figure,
        value: f64,
    ) -> Sample {
        Sample {
            scheduler: scheduler.to_owned(),
            cell: cell.to_owned(),
            round,
            figures: BTreeMap::from([(figure, value)]),
        }
    }

    /// The directory is gone when it is dropped.
    fn store() -> Result<(TempDir, Store)> {
        let directory = tempfile::tempdir()?;
        let store = Store::new(directory.path(), &FORMS[0], "6.18", 4);
        Ok((directory, store))
    }

    #[test]
    fn what_is_stored_comes_back() -> Result<()> {
        let (_directory, store) = store()?;
        let one = sample("eevdf", "pipe", 3, Figure::Exchange, 7.5);
        assert!(!store.prepare("eevdf", "1")?);
        store.put(&one)?;
        assert!(store.has("eevdf", "pipe", 3) && !store.has("eevdf", "pipe", 2));
        assert_eq!(store.samples("eevdf")?, std::slice::from_ref(&one));
        store.forget(&one);
        assert!(store.samples("eevdf")?.is_empty());
        Ok(())
    }

    #[test]
    fn another_version_starts_anew() -> Result<()> {
        let (_directory, store) = store()?;
        store.prepare("a", "1")?;
        store.put(&sample("a", "pipe", 1, Figure::Exchange, 1.0))?;
        assert!(!store.prepare("a", "1")? && store.has("a", "pipe", 1));
        assert!(store.prepare("a", "2")? && !store.has("a", "pipe", 1));
        Ok(())
    }

    #[test]
    fn lines_are_told_from_other_output() -> Result<()> {
        let line = Line::Sample(sample("a", "pipe", 1, Figure::Exchange, 1.0));
        assert_eq!(Line::parse(&(line.print()? + "\r\n")), Some(line));
        assert_eq!(Line::parse("{}"), None);
        assert_eq!(Line::parse("@compare {"), None);
        Ok(())
    }
}
