//! `cargo xtask bench NAME`: what tracing costs, as ratios that are measured in one run, because times of two machines, or of two days, cannot be compared.

mod exact;
mod identity;
mod interpreters;
mod measure;
mod production;
mod table;

use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Flags of `bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Exact mode on an allocation-bound program, beside bare traps, bpftrace, memray and tracemalloc (needs root; about five minutes)
    Exact(exact::Args),
    /// How often it is noticed that a block's address was handed out again (as root; about ten minutes)
    Identity(identity::Args),
    /// What services lose in throughput and latency under each tool (needs root; about forty minutes for each service)
    Production(production::Args),
}

/// Run a bench; the exit code says whether what must hold does.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.bench {
        Bench::Exact(args) => exact::run(args),
        Bench::Identity(args) => identity::run(args),
        Bench::Production(args) => production::run(args),
    }
}
