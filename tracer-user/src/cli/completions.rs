//! `alloctrace completions`: what a shell needs to complete our flags, made from the flags themselves.

use std::{path::Path, process::ExitCode};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::output::{self, OutputError};

/// Print a shell's completion script
#[derive(Debug, Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // Into memory first: clap_complete panics when a write fails, and a closed pipe is no reason to.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "alloctrace", &mut script);
    output::produce(Path::new("-"), |writer| writer.write_all(&script).map_err(OutputError::Write))?;
    Ok(ExitCode::SUCCESS)
}
