//! Tasks of this repository that need more than one command. One file a verb; this one only parses and dispatches.
//!
//! `cargo xtask test` is what a contributor and CI run; everything else is a part of it or prepares it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task runner talks to whoever runs it")]

mod bench;
mod build_ebpf;
mod command;
mod cross;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tasks of the alloctrace repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the eBPF objects that are checked in, or prove that they are what the sources give
    BuildEbpf(build_ebpf::Args),
    /// Build the release program for arm64 on this machine
    Cross,
    /// Bring what building the eBPF objects and running the tests takes
    Setup,
    /// Run all checks and tests
    Test(test::Args),
    /// Measure what tracing costs
    Bench(bench::Args),
    /// Check the rules of this repository that compilers do not know
    Tidy,
}

fn main() -> ExitCode {
    run(Cli::parse().verb).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::BuildEbpf(args) => build_ebpf::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Cross => cross::run().map(|()| ExitCode::SUCCESS),
        Verb::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Tidy => tidy::run().map(|()| ExitCode::SUCCESS),
    }
}
