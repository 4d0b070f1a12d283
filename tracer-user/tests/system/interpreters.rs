//! Several interpreters in one process, each with its own lock and its own pools from 3.12 on.

use alloctrace::profile::{Domain, Metric};
use anyhow::{Result, ensure};

use crate::support::{Asked, Interpreter, amount, record_program, say, size_class};
use crate::{Test, each};

pub const TESTS: &[Test] = &[each("interpreters::own_locks", own_locks)];

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
