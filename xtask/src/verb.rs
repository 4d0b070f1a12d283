//! The verbs, and the file that each leads to.

use crate::{bench, build_ebpf, compatibility, cross, gen_offsets, package, setup, test, tidy, vm_test};
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// What `cargo xtask` can do.
#[derive(Subcommand)]
pub enum Verb {
    /// Build the eBPF objects that are checked in, or prove that they are what the sources give
    BuildEbpf(build_ebpf::Args),
    /// Build the release program for arm64 on this machine
    Cross,
    /// Build what users install: static programs and Debian packages
    Package(package::Args),
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
    /// Write the table of what works where from what tests have measured
    Compatibility(compatibility::Args),
    /// Check the rules of this repository that compilers do not know
    Tidy,
}

/// Do it; how it went is the exit code of the process.
pub fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Test(args) => return test::run(&args),
        Verb::VmTest(args) => return vm_test::run(&args),
        Verb::Bench(args) => return bench::run(&args),
        Verb::BuildEbpf(args) => build_ebpf::run(&args)?,
        Verb::Compatibility(args) => compatibility::run(&args)?,
        Verb::Cross => cross::run()?,
        Verb::Package(args) => package::run(&args)?,
        Verb::Setup => setup::run()?,
        Verb::GenOffsets => gen_offsets::run()?,
        Verb::Tidy => tidy::run()?,
    }
    Ok(ExitCode::SUCCESS)
}
