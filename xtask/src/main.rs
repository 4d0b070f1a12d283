//! Tasks of this repository that need more than one command. One file a verb; this one only parses and dispatches.
//! `cargo xtask test` is what a contributor and CI run; everything else is a part of it or prepares it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task runner talks to whoever runs it")]

mod bench;
mod build_ebpf;
mod command;
mod cross;
mod gen_offsets;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod vm_test;
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
    /// Write the table of CPython's offsets from the headers of the interpreters that are installed
    GenOffsets,
    /// Measure what tracing costs
    Bench(bench::Args),
    /// Record programs on other kernels, in emulated machines
    VmTest(vm_test::Args),
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
        Verb::Test(args) => return test::run(&args),
        Verb::VmTest(args) => return vm_test::run(&args),
        Verb::Bench(args) => return bench::run(&args),
        Verb::BuildEbpf(args) => build_ebpf::run(&args)?,
        Verb::Cross => cross::run()?,
        Verb::Setup => setup::run()?,
        Verb::GenOffsets => gen_offsets::run()?,
        Verb::Tidy => tidy::run()?,
    }
    Ok(ExitCode::SUCCESS)
}
