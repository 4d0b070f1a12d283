//! The verbs of `cargo xtask`, and what each starts.

use crate::{bench, build_ebpf, gen_offsets, setup, test, tidy, vm_test};
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Verb {
    /// Build the eBPF objects that are checked in, or prove that they are what the sources give
    BuildEbpf(build_ebpf::Args),
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

impl Verb {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Test(args) => return test::run(&args),
            Self::VmTest(args) => return vm_test::run(&args),
            Self::Bench(args) => return bench::run(&args),
            Self::BuildEbpf(args) => build_ebpf::run(&args)?,
            Self::Setup => setup::run()?,
            Self::GenOffsets => gen_offsets::run()?,
            Self::Tidy => tidy::run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
