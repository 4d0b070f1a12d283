//! `alloctrace report`: a profile as rows, the biggest first.

use std::{
    io::{IsTerminal, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::{
    load, nothing_recorded,
    values::{self, Format},
};
use crate::output::{
    self,
    aggregate::{By, aggregate},
    csv, json,
    leaks::leaks,
    table::{self, Layout},
};
use crate::profile::Profile;

/// Rows of a table where --top does not say.
const TABLE_ROWS: usize = 30;

/// Show a profile as rows, the biggest first
#[derive(Debug, Args)]
pub struct Arguments {
    /// A profile that `record` wrote; `-` is standard input
    profile: PathBuf,
    /// What a row is
    #[arg(long, value_name = "WHAT", default_value = "line", value_parser = values::by())]
    by: By,
    /// Show what grows, the surest growth first: of recordings in budget mode of processes that ran
    #[arg(long, conflicts_with_all = ["metric", "unit"])]
    leaks: bool,
    #[command(flatten)]
    what: values::What,
    /// How to print the rows
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Print at most that many rows [default: 30 in a table, else all]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let profile = load::profile(&arguments.profile)?;
    if arguments.leaks && profile.is_empty() {
        return Ok(nothing_recorded(&arguments.profile));
    }
    if arguments.leaks {
        return run_leaks(arguments, &profile);
    }
    let options = arguments.what.options(&profile)?;
    let report = aggregate(&profile, arguments.by, options.metric, options.unit)?;
    let top = arguments.top;
    output::produce(Path::new("-"), |writer| match arguments.format {
        Format::Table => table::write(&report, layout(top), writer),
        Format::Json => json::write(&report, top, writer),
        Format::Csv => csv::write(&report, top, writer),
    })?;
    if profile.is_empty() {
        return Ok(nothing_recorded(&arguments.profile));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_leaks(arguments: &Arguments, profile: &Profile) -> anyhow::Result<ExitCode> {
    let leaks = leaks(profile, arguments.by)?;
    let top = arguments.top;
    output::produce(Path::new("-"), |writer| match arguments.format {
        Format::Table => table::write_leaks(&leaks, layout(top), writer),
        Format::Json => json::write_leaks(&leaks, top, writer),
        Format::Csv => csv::write_leaks(&leaks, top, writer),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn layout(top: Option<usize>) -> Layout {
    let width = stdout().is_terminal().then(table::terminal_width).flatten();
    Layout { top: top.unwrap_or(TABLE_ROWS), width }
}
