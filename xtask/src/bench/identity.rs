//! `cargo xtask bench identity`: how often an identity notices that a block was freed and its address handed out again, per kind of block.
//!
//! Programs run under the reuse oracle, a library that records every allocation from inside; `tracer-user/examples/identity` looks at their blocks from
//! outside, as budget mode does, and counts what it was told against that truth. What follows from it is in docs/decisions/0024-identity.md.

mod looks;
mod program;
mod table;

use super::interpreters;
use crate::command::{Invocation, Machine, Runner as _};
use crate::{setup, workspace};
use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use looks::Looked;
use program::{Oracle, Program};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use table::Counted;

/// Beside the system's interpreter.
const OF_PYENV: [&str; 2] = ["3.12", "3.13"];

/// Flags of `bench identity`.
#[derive(clap::Args)]
pub struct Args {
    /// Windows for each program and interpreter; from each, up to 300 blocks are followed for ten seconds
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Only this program; may be given more than once
    #[arg(long)]
    only: Vec<Program>,
    /// Follow blocks as budget mode does: count freed ones that are still taken for alive after its looks, and living ones that are lost
    #[arg(long)]
    looks: bool,
    /// Keep all counts in this file, as JSON
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Measure and print. There is nothing to judge: what can be told is told.
pub fn run(args: &Args) -> Result<ExitCode> {
    let example = build_example(if args.looks { "survivors" } else { "identity" })?;
    let oracle = Oracle::build(&Machine)?;
    let programs = if args.only.is_empty() { Program::value_variants().to_vec() } else { args.only.clone() };
    let (mut counted, mut looked) = (Vec::new(), Vec::new());
    for (python, minor) in pythons()? {
        for program in &programs {
            let label = format!("{}, 3.{minor}", program.label());
            let running = program.start(&python, &oracle).with_context(|| label.clone())?;
            let text = measured(&example, &running, minor, args.windows)?;
            if args.looks {
                looked.push(Looked::parse(&label, &text)?);
                running.end().with_context(|| label.clone())?;
                continue;
            }
            let counts = Counted::parse(&label, &text)?;
            ensure!(
                counts.lost == 0,
                "{label}: {} allocations had no room in the oracle's table",
                counts.lost
            );
            eprintln!("{label}: {} blocks followed", counts.followed);
            running.end().with_context(|| label.clone())?;
            counted.push(counts);
        }
    }
    if let Some(path) = &args.output {
        let looked = looked.iter().map(Looked::to_json);
        let rows: Vec<serde_json::Value> = counted.iter().map(Counted::to_json).chain(looked).collect();
        fs::write(path, serde_json::Value::from(rows).to_string())
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    println!("{}", if args.looks { looks::text(&looked) } else { table::text(&counted) });
    Ok(ExitCode::SUCCESS)
}

fn build_example(name: &str) -> Result<PathBuf> {
    let cargo = Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    let words = ["build", "--quiet", "--locked", "--package", "alloctrace", "--example", name];
    Machine.output(&cargo.args(words).directory(workspace::root()))?;
    Ok(workspace::root().join("target/debug/examples").join(name))
}

/// Interpreters with what the programs import, and their minor versions.
fn pythons() -> Result<Vec<(PathBuf, u8)>> {
    let requirements = workspace::root().join("xtask/bench/services/requirements.txt");
    let system = interpreters::system().map(|system| system.python);
    let found = system.into_iter().chain(OF_PYENV.into_iter().filter_map(interpreters::of_pyenv));
    let environment = |python: PathBuf| {
        let python = setup::pinned_environment(&Machine, &python, "services", &requirements)?;
        let ask = Invocation::new(python.display().to_string())
            .args(["-c", "import sys; print(sys.version_info.minor)"]);
        let minor = Machine.output(&ask)?;
        let minor = minor.trim().parse().with_context(|| format!("`{minor}` is no minor version"))?;
        Ok((python, minor))
    };
    found.map(environment).collect()
}

fn measured(example: &Path, running: &program::Running, minor: u8, windows: u32) -> Result<String> {
    let table = running.table.display().to_string();
    let words = [running.pid.to_string(), table, minor.to_string(), windows.to_string()];
    Machine.output(&Invocation::new(example.display().to_string()).args(words))
}
