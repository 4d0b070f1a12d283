//! Parse, run, exit code.

use std::{
    io::{Write, stderr},
    process::ExitCode,
};

use alloctrace::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return fail(&cli::usage_line(&error)),
        // Help and version. Nobody may be reading any more, as after `| head`.
        Err(text) => {
            let _ = text.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&cli::error_line(&error)),
    }
}

/// Says why, as far as anybody listens.
fn fail(line: &str) -> ExitCode {
    let _ = writeln!(stderr(), "{line}");
    ExitCode::from(cli::FAILED)
}
