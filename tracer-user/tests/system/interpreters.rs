//! Several interpreters in one process, each with its own lock and its own pools from 3.12 on; and several stacks in one thread: greenlets.

use alloctrace::profile::{Domain, Metric};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::asked::{Asked, amount, size_class};
use crate::machine::Interpreter;
use crate::services::python_with;
use crate::support::record_program;
use crate::support::{folder, load, program, record, run, say};
use crate::{Test, each, once};

pub const TESTS: &[Test] = &[
    each("interpreters::own_locks", own_locks),
    once("interpreters::greenlets", greenlets).only_if(|| python_with("greenlet").is_some()),
];

const NONE: [&str; 0] = [];

/// Each function holds what it allocated, no stack is mixed, and the pools of all interpreters are counted.
fn own_locks(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "own_locks.py", &NONE, &[])?;
    let asked = Asked(&profile);
    let (allocations, frees) = asked.coverage()?;
    say(&format!("{}: {allocations:.6} of allocations, {frees:.6} of frees", interpreter.label));
    let names = ["in_first", "in_second", "in_third", "in_main"];
    for (name, blocks, size) in
        [(names[0], 20_000, 233), (names[1], 20_000, 233), (names[2], 20_000, 233), (names[3], 30_000, 133)]
    {
        let live = asked.function(Metric::Live, Domain::Pymalloc, name);
        // A number is alive with the last block, and the list.
        let least = amount(blocks * size_class(size), blocks);
        ensure!(
            (least.count..least.count + 8).contains(&live.count)
                && (least.bytes..least.bytes + 1024).contains(&live.bytes),
            "{name}: {live:?}, expected {least:?}"
        );
        for sample in &profile.samples {
            let functions: Vec<&str> = asked.frames(sample).map(|frame| &*frame.function).collect();
            let others = names.iter().filter(|other| **other != name);
            let mixed = functions.contains(&name) && others.clone().any(|other| functions.contains(other));
            ensure!(!mixed, "one stack of two interpreters: {functions:?}");
        }
    }
    asked.is_whole()
}

/// greenlet puts other frames below the thread's state (`PyThreadState.cframe`, `current_frame`) with each switch. Each function holds what it
/// allocated, below the greenlet that called it and below no other.
fn greenlets() -> Result<()> {
    let python = python_with("greenlet").context("no greenlet")?;
    let find = "import greenlet, os; print(os.path.dirname(os.path.dirname(greenlet.__file__)))";
    let packages = run({
        let mut command = Command::new(&python);
        command.args(["-c", find]);
        command
    })?
    .succeeded()?
    .stdout;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.arg(&python).arg(program("greenlets.py")).arg(packages.trim());
    run(command)?.succeeded()?;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    let greenlets = [
        ("allocate_in_first", 233, "first", "second"),
        ("allocate_in_second", 333, "second", "first"),
        ("allocate_in_main", 133, "<module>", "first"),
    ];
    for (name, size, root, other) in greenlets {
        let live = asked.sum(Metric::Live, |sample| {
            let functions: Vec<&str> = asked.frames(sample).map(|frame| &*frame.function).collect();
            sample.domain == Domain::Pymalloc && functions.contains(&name)
        });
        // A number may be alive with the last block, and the list.
        let least = amount(5_000 * size_class(size), 5_000);
        ensure!(
            (least.count..least.count + 8).contains(&live.count)
                && (least.bytes..least.bytes + 1024).contains(&live.bytes),
            "{name}: {live:?}, expected {least:?}"
        );
        for sample in &profile.samples {
            let functions: Vec<&str> = asked.frames(sample).map(|frame| &*frame.function).collect();
            let ours = functions.contains(&name);
            ensure!(!ours || functions.contains(&root), "{name} is not below {root}: {functions:?}");
            ensure!(!ours || !functions.contains(&other), "one stack of two greenlets: {functions:?}");
        }
    }
    let (allocations, frees) = asked.coverage()?;
    ensure!(allocations >= 0.999 && frees >= 0.999, "coverage {allocations}, {frees}");
    asked.is_whole()
}
