//! `alloctrace man`: manual pages, made from the flags themselves.

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::Cli;
use crate::output::{self, OutputError};

/// Print a manual page, for `man -l -`
#[derive(Debug, Args)]
pub struct Arguments {
    /// The verb to describe; without one, the program
    verb: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    if let Some(verb) = &arguments.verb {
        let found = command.find_subcommand(verb).cloned();
        command = found.with_context(|| format!("no verb `{verb}`: see `alloctrace --help`"))?;
    }
    let man = Man::new(command);
    output::produce(Path::new("-"), |writer| {
        let mut page = Vec::new();
        man.render(&mut page).and_then(|()| writer.write_all(&page)).map_err(OutputError::Write)
    })?;
    Ok(ExitCode::SUCCESS)
}
