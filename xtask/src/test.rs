//! `cargo xtask test [--unprivileged] [--no-vm]`: everything that must hold before a change is taken, in one command, with one line of counts at the end.
//!
//! Checks (format, lints, tidy, fresh eBPF objects) count as one test each. The system tests load eBPF programs; where that is not allowed they say so and count
//! as skipped, but with `CI=true` that is a failure, because a CI that skips what matters is green for nothing.

pub mod counts;
mod other_kernels;
mod reports;

use crate::command::Invocation;
use crate::{build_ebpf, compatibility, setup, tidy, workspace};
use anyhow::{Context as _, Result, ensure};
use counts::Counts;
use reports::Reports;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{ExitCode, Stdio};

const TESTS: &str = "test --workspace --locked --no-fail-fast";
/// Tells the system tests to leave themselves out.
const UNPRIVILEGED: &str = "ALLOCTRACE_UNPRIVILEGED";

/// Flags of `test`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave out the tests that load eBPF programs
    #[arg(long)]
    unprivileged: bool,
    /// Leave out the recordings on other kernels, in emulated machines, which take ten minutes
    #[arg(long)]
    no_vm: bool,
}

/// Run everything, however much of it fails, and print the counts last.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = workspace::root();
    let mut counts = Counts::default();
    counts.check("setup", setup::build_tools_or_fail());
    counts.check("format", cargo(&root, "fmt --all --check"));
    counts.check("lints", cargo(&root, "clippy --quiet --workspace --all-targets --locked -- -D warnings"));
    counts.check("tidy", tidy::run());
    counts.check("table of what works where", compatibility::check());
    counts.check("fresh eBPF objects", build_ebpf::check());
    let mut reports = Reports::default();
    counts.add(tests(&root, args.unprivileged, &mut reports)?);
    counts.add(other_kernels::run(args.no_vm));
    reports.lines().for_each(|line| println!("{line}"));
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn invocation(root: &Path, line: &str) -> Invocation {
    Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(line.split(' '))
        .directory(root)
}

/// Run cargo with its output on the terminal.
fn cargo(root: &Path, line: &str) -> Result<()> {
    let status = invocation(root, line).to_command().status().context("failed to start cargo")?;
    ensure!(status.success(), "`cargo {line}` failed");
    Ok(())
}

/// Run the tests of all packages, show what they print as it comes, and count.
fn tests(root: &Path, unprivileged: bool, reports: &mut Reports) -> Result<Counts> {
    let mut command = invocation(root, TESTS).to_command();
    if unprivileged {
        command.env(UNPRIVILEGED, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("failed to start cargo")?;
    let mut counts = Counts::default();
    let output = child.stdout.take().context("cargo has no output")?;
    for text in BufReader::new(output).split(b'\n') {
        let text = text.context("failed to read cargo's output")?;
        let text = String::from_utf8_lossy(&text);
        println!("{text}");
        counts.read_line(&text);
        reports.read_line(&text);
    }
    let success = child.wait().context("failed to wait for cargo")?.success();
    if !success && counts.failed == 0 {
        // It did not compile, or a test program died before it could count.
        counts.check("tests", Err(anyhow::anyhow!("`cargo {TESTS}` failed without naming a test")));
    }
    Ok(counts)
}
