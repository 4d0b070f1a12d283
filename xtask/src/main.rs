//! Tasks of this repository that need more than one command. One file a verb; this one only parses, `verb.rs` dispatches.
//! `cargo xtask test` is what a contributor and CI run; everything else is a part of it or prepares it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task runner talks to whoever runs it")]

mod bench;
mod build_ebpf;
mod command;
mod compatibility;
mod cross;
mod gen_offsets;
mod package;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod verb;
mod vm_test;
mod workspace;

use clap::Parser;
use std::process::ExitCode;
use verb::Verb;

/// Tasks of the alloctrace repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> ExitCode {
    verb::run(Cli::parse().verb).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
