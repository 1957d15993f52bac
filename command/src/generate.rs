//! Manual page and completions, made of the same definition as the command line.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use super::cli::Options;

/// Writes them into `directory`, under the names that they are installed by.
pub(crate) fn generate(directory: &Path) -> Result<()> {
    let what = || format!("cannot write into {}", directory.display());
    fs::create_dir_all(directory).with_context(what)?;
    let mut command = Options::command();
    let manual = File::create(directory.join("scx_metronome.8")).with_context(what)?;
    clap_mangen::Man::new(command.clone())
        .section("8")
        .render(&mut &manual)
        .with_context(what)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, "scx_metronome", directory)
            .with_context(what)?;
    }
    Ok(())
}
