//! Whose allocation it was: threads.

use std::collections::HashMap;

use alloctrace::profile::{Domain, Metric};
use anyhow::{Context as _, Result, ensure};

use crate::asked::{Asked, amount, size_class};
use crate::machine::Interpreter;
use crate::support::record_program;
use crate::{Test, each};

pub const TESTS: &[Test] = &[each("threads::known_amounts", known_amounts)];

const NONE: [&str; 0] = [];

fn known_amounts(interpreter: &Interpreter) -> Result<()> {
    let (profile, finished) = record_program(interpreter, "threads.py", &NONE, &[])?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let ids: Option<HashMap<u64, u32>> = finished
        .stdout
        .lines()
        .map(|line| {
            line.split_once(' ').and_then(|(number, id)| Some((number.parse().ok()?, id.parse().ok()?)))
        })
        .collect();
    let ids = ids.context("no thread ids")?;
    ensure!(ids.len() == 6, "{ids:?}");
    for (number, id) in ids {
        let of = |domain, names: &[&str]| {
            asked.sum(Metric::Live, |sample| {
                let stack: Vec<&str> = asked.frames(sample).map(|frame| &*frame.function).collect();
                sample.domain == domain && sample.thread == id && stack.starts_with(names)
            })
        };
        let python = of(Domain::Pymalloc, &["keep_python", "work"]);
        // The numbers that count are 32 bytes each; one may be kept. From 3.14 on freed ones wait on a list that all threads share, so a thread's
        // may be in use by any of the others (two at a time in each), and so may its iterator, of 48 bytes.
        let others = if interpreter.minor >= 14 { 2 * 6 + 1 } else { 1 };
        let size = size_class(133 + 16 * number);
        let (kept, count) = (python.bytes.saturating_sub(2000 * size), python.count.saturating_sub(2000));
        ensure!(python.count >= 2000 && count <= others + 1, "thread {number}: {python:?}");
        ensure!(kept <= 32 * others + 48, "thread {number}: {python:?}");
        let native = of(Domain::Malloc, &["keep_native", "work"]);
        let expected = amount(2000 * (10_000 + number), 2000);
        ensure!(native == expected, "thread {number}, without the lock: {native:?}, expected {expected:?}");
    }
    Ok(())
}
