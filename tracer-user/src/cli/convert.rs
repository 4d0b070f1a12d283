//! `alloctrace convert`: a profile in another format.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use super::{load, nothing_recorded, values};
use crate::output::{self, Format};

/// Write a profile in another format
#[derive(Debug, Args)]
pub struct Arguments {
    /// A profile that `record` wrote; `-` is standard input
    profile: PathBuf,
    /// Where to write; the ending is the format: .pb.gz, .svg, .folded, .json, .speedscope.json; `-` is standard
    /// output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The format, where the ending does not say
    #[arg(long, value_name = "FORMAT")]
    format: Option<FormatName>,
    #[command(flatten)]
    what: values::What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatName {
    /// gzip-compressed pprof, which loses nothing
    Pprof,
    /// Flame graph
    Svg,
    /// Folded stacks
    Folded,
    /// Report by line
    Json,
    /// speedscope's JSON
    Speedscope,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Pprof => Self::Pprof,
            FormatName::Svg => Self::Svg,
            FormatName::Folded => Self::Folded,
            FormatName::Json => Self::Json,
            FormatName::Speedscope => Self::Speedscope,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let format = match arguments.format {
        Some(name) => name.into(),
        None => Format::of(&arguments.output)?,
    };
    let profile = load::profile(&arguments.profile)?;
    if profile.is_empty() {
        return Ok(nothing_recorded(&arguments.profile));
    }
    output::write_as(&profile, format, &arguments.output, arguments.what.options(&profile)?)?;
    Ok(ExitCode::SUCCESS)
}
