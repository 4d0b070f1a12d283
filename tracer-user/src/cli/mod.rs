//! The command line: one verb a file. Flags become validated requests to the stages; results are printed here.
//!
//! Nothing else knows clap, and nothing else prints. It must not exit: only `main.rs` does.

mod completions;
mod convert;
mod doctor;
mod flamegraph;
mod listing;
mod load;
mod man;
mod probe;
mod ps;
mod record;
mod report;
mod serve;
mod values;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::output::text;

/// Exit status of a recording, or a profile, that holds nothing.
pub const NOTHING_RECORDED: u8 = 1;
/// Exit status of a wrong usage, or of a requirement that is not met.
pub const FAILED: u8 = 2;

/// Which Python line holds the memory: a system-wide memory-allocation tracer for CPython.
///
/// Watches any CPython process on this host from the kernel, without touching its code, environment or memory.
#[derive(Debug, Parser)]
#[command(name = "alloctrace", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// The verbs, in the order of the command line's contract.
#[derive(Debug, Subcommand)]
enum Verb {
    Record(record::Arguments),
    #[command(hide = true)]
    Launch(record::LaunchArguments),
    Report(report::Arguments),
    Flamegraph(flamegraph::Arguments),
    Convert(convert::Arguments),
    Serve(Box<serve::Arguments>),
    Probe(probe::Arguments),
    Ps(ps::Arguments),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// Does what the command line asks for.
///
/// # Errors
/// Whatever keeps it from being done; to be printed as one line by [`error_line`].
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.verb {
        Verb::Record(arguments) => record::run(&arguments),
        Verb::Launch(arguments) => Ok(record::launch(&arguments)),
        Verb::Report(arguments) => report::run(&arguments),
        Verb::Flamegraph(arguments) => flamegraph::run(&arguments),
        Verb::Convert(arguments) => convert::run(&arguments),
        Verb::Serve(arguments) => serve::run(&arguments),
        Verb::Probe(arguments) => probe::run(&arguments),
        Verb::Ps(arguments) => ps::run(&arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Completions(arguments) => completions::run(&arguments),
        Verb::Man(arguments) => man::run(&arguments),
    }
}

/// Says that a profile holds nothing, and gives the exit status for it.
fn nothing_recorded(profile: &Path) -> ExitCode {
    let name = profile.to_string_lossy();
    let line = format!("alloctrace: nothing was recorded in `{}`", text::visible(&name));
    // Standard error may be closed; the exit status says it as well.
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(NOTHING_RECORDED)
}

/// An error and its causes as one line.
pub fn error_line(error: &anyhow::Error) -> String {
    format!("alloctrace: {}", error_text(error))
}

fn error_text(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(|cause| lower_case(&cause.to_string())).collect();
    text::visible(&causes.join(": ")).into_owned()
}

/// The system's own messages start with a capital letter and libraries' may end in a full stop; ours do not.
fn lower_case(message: &str) -> String {
    let mut characters = message.trim_end_matches('.').chars();
    let (first, rest) = (characters.next(), characters.as_str());
    // Not what is a word in capitals, such as a signal's name.
    let is_word = rest.starts_with(char::is_lowercase);
    first.map_or_else(String::new, |first| {
        let first = if is_word { first.to_lowercase().to_string() } else { first.to_string() };
        first + rest
    })
}

/// Whether an error only says that nobody reads our output any more, as after `| head`.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors.map(io::Error::kind).any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// A usage error as one line: clap's message without its usage summary.
pub fn usage_line(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let message = rendered.split("\nUsage:").next().unwrap_or_default();
    let message = message.split("\nFor more information").next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let mut line = String::new();
    for part in message.lines().map(str::trim).filter(|part| !part.is_empty()) {
        let separator = if part.starts_with("tip:") { "; " } else { " " };
        line.push_str(if line.is_empty() { "" } else { separator });
        line.push_str(part);
    }
    format!("alloctrace: {} (see --help)", text::visible(&line))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
