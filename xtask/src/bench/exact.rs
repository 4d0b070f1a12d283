//! `cargo xtask bench exact`: what exact mode costs a program that does little but allocate.
//!
//! Everybody runs the same program on the same interpreter, in rounds, so that a change of the machine hits all alike; a figure is the median of the
//! rounds. The interpreter is one that calls its allocator and does not inline it, because bpftrace sees nothing on the others; it is the one that suits
//! bpftrace best. alloctrace is measured once more on the system's interpreter, where the allocator is inlined in some two hundred places.
//!
//! Two things must hold: alloctrace costs at most twice what bare traps at its points cost, and at most a third of what bpftrace costs.

use super::interpreters::{self, Interpreter};
use super::measure::{self, Contender};
use super::table::{Row, print};
use crate::command::{Invocation, Machine, Runner as _};
use crate::{setup, workspace};
use anyhow::{Result, ensure};
use std::process::ExitCode;

const OVER_BARE_TRAPS: f64 = 2.0;
const OF_BPFTRACE: f64 = 1.0 / 3.0;

/// Flags of `bench exact`.
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each figure is their median
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// Measure, print, judge.
pub fn run(args: &Args) -> Result<ExitCode> {
    build_release()?;
    let plain = interpreters::not_inlining()?;
    let mut contenders = ours(&plain);
    contenders.extend(theirs(&plain));
    let rows = measured(&contenders, args.rounds)?;
    print(&format!("{}, which calls its allocator", plain.label), &rows);
    let mut faults = judge(&rows);
    if let Some(system) = interpreters::system() {
        let rows = measured(&ours(&system), args.rounds)?;
        print(&format!("{}, which inlines it", system.label), &rows);
        faults.extend(judge(&rows));
    }
    faults.iter().for_each(|fault| eprintln!("does not hold: {fault}"));
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build_release() -> Result<()> {
    let cargo = Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    let build = cargo.args(["build", "--release", "--quiet", "--locked", "--package", "alloctrace"]);
    Machine.output(&build.directory(workspace::root())).map(drop)
}

const PLAIN: &str = "untraced";
const EXACT: &str = "alloctrace, exact";
const BARE: &str = "bare traps at the same points";
const BPFTRACE: &str = "bpftrace, the same account";

/// The program alone, under alloctrace, and with programs at the same points that do nothing.
fn ours(interpreter: &Interpreter) -> Vec<Contender> {
    let tracer = workspace::root().join("target/release/alloctrace").display().to_string();
    let profile = workspace::scratch().join("bench.pb.gz").display().to_string();
    let record = |flags: &[&str]| {
        Invocation::new(&tracer)
            .args(["record", "--quiet", "--mode", "exact", "--output", &profile])
            .args(flags.iter().copied())
            .args(["--", &interpreter.python.display().to_string()])
    };
    vec![
        Contender::new(PLAIN, 20, Invocation::new(interpreter.python.display().to_string())),
        Contender::new(EXACT, 3, record(&[])),
        Contender::new(BARE, 3, record(&["--bench-empty"])),
    ]
}

/// Other tools; those that cannot be had are left out, with the reason.
fn theirs(interpreter: &Interpreter) -> Vec<Contender> {
    let python = interpreter.python.display().to_string();
    let mut contenders = vec![Contender::new(
        "tracemalloc, 25 frames",
        3,
        Invocation::new(&python).args(["-X", "tracemalloc=25"]),
    )];
    match measure::bpftrace(interpreter) {
        Ok(bpftrace) => contenders.push(Contender::new(BPFTRACE, 1, bpftrace).in_one_word()),
        Err(error) => eprintln!("no bpftrace: {error:#}"),
    }
    match setup::python_environment(&Machine, &interpreter.python, &["memray"]) {
        Ok(python) => {
            let results = workspace::scratch().join("bench.memray").display().to_string();
            let memray = Invocation::new(python.display().to_string()).args([
                "-m",
                "memray",
                "run",
                "--quiet",
                "--force",
                "--trace-python-allocators",
                "--output",
                &results,
            ]);
            contenders.push(Contender::new("memray, Python allocators", 3, memray));
        }
        Err(error) => eprintln!("no memray: {error:#}"),
    }
    contenders
}

fn measured(contenders: &[Contender], rounds: u32) -> Result<Vec<Row>> {
    let workload = workspace::root().join("xtask/bench/json_workload.py");
    let mut seconds = vec![Vec::new(); contenders.len()];
    for round in 1..=rounds {
        for (contender, seconds) in contenders.iter().zip(&mut seconds) {
            let taken = measure::seconds(&Machine, contender, &workload)?;
            ensure!(taken > 0.0, "{} took no time", contender.name);
            seconds.push(taken);
        }
        eprintln!("round {round} of {rounds}");
    }
    Ok(contenders
        .iter()
        .zip(seconds)
        .map(|(contender, seconds)| Row::new(contender.name, &seconds))
        .collect())
}

/// What should hold and does not. A contender that is not there proves nothing, which is a fault as well where it decides.
fn judge(rows: &[Row]) -> Vec<String> {
    let seconds = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.median);
    let slowdown = |name: &str| Some(seconds(name)? / seconds(PLAIN)?);
    let mut faults = Vec::new();
    let (Some(exact), Some(bare)) = (slowdown(EXACT), slowdown(BARE)) else {
        return vec!["alloctrace was not measured".to_owned()];
    };
    if exact > bare * OVER_BARE_TRAPS {
        faults.push(format!("exact mode slows the program {exact:.1} times, bare traps {bare:.1} times; at most twice that is allowed"));
    }
    if let Some(bpftrace) = slowdown(BPFTRACE).filter(|bpftrace| exact > bpftrace * OF_BPFTRACE) {
        faults.push(format!("exact mode slows the program {exact:.1} times, bpftrace {bpftrace:.1} times; at most a third is allowed"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(exact: f64, bare: f64, bpftrace: f64) -> usize {
        let row = |name, seconds| Row::new(name, &[seconds]);
        judge(&[row(PLAIN, 1.0), row(EXACT, exact), row(BARE, bare), row(BPFTRACE, bpftrace)]).len()
    }

    #[test]
    fn both_bounds_are_judged() {
        assert_eq!(faults(30.0, 16.0, 90.0), 0);
        assert_eq!(faults(33.0, 16.0, 99.0), 1);
        assert_eq!(faults(31.0, 16.0, 90.0), 1);
        assert_eq!(faults(40.0, 16.0, 90.0), 2);
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        assert_eq!(judge(&[Row::new(PLAIN, &[1.0])]).len(), 1);
    }
}
