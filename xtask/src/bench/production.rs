//! `cargo xtask bench production`: what tracing costs services that answer requests while it is switched on and off.
//!
//! Each tool is measured in pairs of runs on one service process, one with and one without it, in random order, tools taking turns; a figure is the
//! median of what pairs differ by. All run on one machine: wrk, the service and the tracer share its processors, so a tracer's own work counts as well.
//!
//! What must hold is in `Bound`. A tool that cannot be had is printed with the reason; one that a bound is for and was not measured does not hold.

mod pairs;
mod report;
pub mod service;
mod tool;
pub mod wrk;

use super::interpreters;
use crate::command::{Invocation, Machine, Runner as _};
use crate::{setup, workspace};
use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use pairs::Coin;
use report::{Pair, Row};
use service::{Kind, Service};
use std::path::Path;
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tool::{Active, Tool};
use wrk::Figures;

/// Load while a tool is switched on or off. Half of it passes before the switch, so that the switch meets a busy service.
const SWITCHING_S: u32 = 2;
const BEFORE_SWITCH: Duration = Duration::from_millis(500);

/// Flags of `bench production`.
#[derive(clap::Args)]
pub struct Args {
    /// Pairs of runs for each tool; from six on there is an interval
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Seconds of load before the first pair; the services' caches are full after a minute
    #[arg(long, default_value_t = 60)]
    warm_up: u32,
    /// Only this service; may be given more than once
    #[arg(long)]
    service: Vec<Kind>,
    /// Only this tool; may be given more than once
    #[arg(long)]
    only: Vec<Tool>,
    /// Repeat the order of an earlier run
    #[arg(long)]
    seed: Option<u64>,
}

/// Measure, print, judge.
pub fn run(args: &Args) -> Result<ExitCode> {
    build_release()?;
    let system = interpreters::system().context("no interpreter of the system to run services with")?;
    let requirements = workspace::root().join("xtask/bench/services/requirements.txt");
    let python = setup::pinned_environment(&Machine, &system.python, "services", &requirements)?;
    let seed = args
        .seed
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    let mut coin = Coin::new(seed);
    let mut faults = Vec::new();
    for kind in chosen(&args.service, &Kind::ALL) {
        let rows = measured(kind, &python, args, &mut coin)?;
        println!(
            "\n{}, {}; {} pairs of {} s, seed {seed}",
            kind.label(),
            system.label,
            args.rounds,
            args.seconds
        );
        println!("{}", report::text(&rows));
        faults.extend(report::faults(&rows).into_iter().map(|fault| format!("{}: {fault}", kind.label())));
    }
    faults.iter().for_each(|fault| eprintln!("does not hold: {fault}"));
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build_release() -> Result<()> {
    let cargo = Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    let build = cargo.args(["build", "--release", "--quiet", "--locked", "--package", "alloctrace"]);
    Machine.output(&build.directory(workspace::root())).map(drop)
}

/// What was asked for, or all.
fn chosen<T: Copy>(asked: &[T], all: &[T]) -> Vec<T> {
    if asked.is_empty() { all.to_vec() } else { asked.to_vec() }
}

fn measured(kind: Kind, python: &Path, args: &Args, coin: &mut Coin) -> Result<Vec<Row>> {
    let service = Service::start(kind, python, &[])?;
    if args.warm_up > 0 {
        wrk::load(&Machine, service.port, args.warm_up)?;
    }
    let tools = chosen(&args.only, Tool::value_variants());
    let mut rows: Vec<Row> = tools.into_iter().map(|tool| Row::new(tool, missing(tool, &service))).collect();
    for round in 1..=args.rounds {
        for row in rows.iter_mut().filter(|row| row.missing.is_none()) {
            let pair = pair(row.tool, &service, args.seconds, coin)
                .with_context(|| format!("cannot measure {} on {}", row.tool.label(), kind.label()))?;
            row.pairs.push(pair);
        }
        eprintln!("{}: round {round} of {}", kind.label(), args.rounds);
    }
    Ok(rows)
}

/// Why a tool cannot be had, found out by having it once.
fn missing(tool: Tool, service: &Service) -> Option<String> {
    let tried = tool.switch_on(service).and_then(Active::switch_off);
    tried.err().map(|error| format!("{error:#}"))
}

fn pair(tool: Tool, service: &Service, seconds: u32, coin: &mut Coin) -> Result<Pair> {
    if coin.toss() {
        let with = run_with(tool, service, seconds)?;
        return Ok(Pair { without: run_with(Tool::Nothing, service, seconds)?, with });
    }
    let without = run_with(Tool::Nothing, service, seconds)?;
    Ok(Pair { without, with: run_with(tool, service, seconds)? })
}

/// Figures of one run, and the longest stall in it, its switching on and its switching off.
fn run_with(tool: Tool, service: &Service, seconds: u32) -> Result<Run> {
    service.longest_stall_ms()?;
    let active = under_load(service, || tool.switch_on(service))?;
    let switching_on = service.longest_stall_ms()?;
    let figures = wrk::load(&Machine, service.port, seconds)?;
    let stall_ms = service.longest_stall_ms()?;
    under_load(service, || active.switch_off())?;
    let switching_ms = switching_on.max(service.longest_stall_ms()?);
    Ok(Run { figures, stall_ms, switching_ms })
}

/// Do something while the service is busy.
fn under_load<T>(service: &Service, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let port = service.port;
    thread::scope(|scope| {
        let load = scope.spawn(move || wrk::load(&Machine, port, SWITCHING_S));
        sleep(BEFORE_SWITCH);
        let done = act();
        match load.join() {
            Ok(load) => load.and(done),
            Err(_) => anyhow::bail!("the thread that puts load on the service is gone"),
        }
    })
}

/// One run of a pair.
#[derive(Debug, Clone, Copy)]
struct Run {
    figures: Figures,
    stall_ms: f64,
    switching_ms: f64,
}
