//! `alloctrace flamegraph`: a profile, or what changed since another one, as SVG.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{load, nothing_recorded, values};
use crate::output::{self, flamegraph};

/// Draw a profile as a flame graph
#[derive(Debug, Args)]
pub struct Arguments {
    /// A profile that `record` wrote; `-` is standard input
    profile: PathBuf,
    /// Where to write the SVG; `-` is standard output
    #[arg(short, long, value_name = "FILE.svg")]
    output: PathBuf,
    /// Colour frames by what changed since this profile: red for more, blue for less
    #[arg(long, value_name = "BASE")]
    diff: Option<PathBuf>,
    /// Put the outermost frames at the top
    #[arg(long)]
    inverted: bool,
    #[command(flatten)]
    what: values::What,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let profile = load::profile(&arguments.profile)?;
    let base = arguments.diff.as_deref().map(load::profile).transpose()?;
    if profile.is_empty() {
        return Ok(nothing_recorded(&arguments.profile));
    }
    let output::Options { metric, unit } = arguments.what.options(&profile)?;
    let options = flamegraph::Options { metric, unit, inverted: arguments.inverted };
    output::produce(&arguments.output, |writer| match &base {
        None => flamegraph::write(&profile, options, writer),
        Some(base) => flamegraph::write_difference(&profile, base, options, writer),
    })?;
    Ok(ExitCode::SUCCESS)
}
