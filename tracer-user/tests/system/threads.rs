//! Whose allocation it was, and where: threads, and stacks of every shape.

use std::collections::HashMap;

use alloctrace::profile::{Domain, FrameKind, Metric};
use anyhow::{Context as _, Result, ensure};

use crate::support::{Asked, Interpreter, amount, record_program, size_class};
use crate::{Test, each};

pub const TESTS: &[Test] = &[
    each("threads::known_amounts", known_amounts),
    each("stacks::shapes", shapes),
    each("stacks::deep", deep),
    // Known to fail: the fingerprint tells code objects apart by their module only.
    each("stacks::code_at_one_address", code_at_one_address),
];

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

/// Stacks end, outermost first, in these names.
const STACKS: &[(u64, &[&str])] = &[
    (2100, &["<module>", "outer_generator", "a_generator", "keep"]),
    (2200, &["drives", "outer_coroutine", "a_coroutine", "keep"]),
    (2250, &["drives", "an_async_generator", "keep"]),
    (2300, &["<module>", "a_key", "keep"]),
    (2400, &["sub", "a_callback", "keep"]),
    (2500, &["<module>", "<lambda>", "keep"]),
    (2600, &["<module>", "naïve_日本語_𐐷", "keep"]),
    (2700, &["<module>", "Klasse.method", "keep"]),
    (2800, &["<module>", "Klasse.a_property", "keep"]),
    (2900, &["<module>", "Klasse.__eq__", "keep"]),
    (3000, &["<module>", "Klasse.__del__", "keep"]),
    (3100, &["a_comprehension", "keep"]),
    (3200, &["<module>", "decorated.<locals>.wrapper", "a_decorated", "keep"]),
    (3300, &["<module>", "<module>", "made", "keep"]),
    (3400, &["<module>", "<lambda>", "keep"]),
    (3500, &["<module>", "<lambda>", "keep"]),
];

fn shapes(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "shapes.py", &NONE, &[])?;
    let asked = Asked(&profile);
    let plain = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    for (size, expected) in STACKS {
        let mut found = Vec::new();
        for sample in profile.samples.iter().filter(|sample| sample.domain == Domain::Malloc) {
            let live = sample.values.live;
            if asked.innermost(sample) == "keep" && live == amount(size + 33, 1) {
                let mut names: Vec<String> =
                    asked.frames(sample).map(|frame| frame.function.clone()).collect();
                names.reverse();
                names.retain(|name| !name.contains("<listcomp>"));
                found.push(names);
            }
        }
        let [stack] = found.as_slice() else {
            anyhow::bail!("{} stacks keep {size} bytes: {found:?}", found.len())
        };
        // Before 3.11 code objects know no qualified name.
        let expected: Vec<String> = if interpreter.minor >= 11 {
            expected.iter().map(ToString::to_string).collect()
        } else {
            expected.iter().map(|name| plain(name)).collect()
        };
        ensure!(stack.ends_with(&expected), "{size} bytes: {stack:?} does not end in {expected:?}");
    }
    let (allocations, frees) = asked.coverage()?;
    ensure!(allocations >= 0.999 && frees >= 0.999, "coverage {allocations}, {frees}");
    let nameless = asked.frames_without_a_line();
    let all_resolved = profile.recording.losses.unresolved_frames == 0;
    ensure!(all_resolved || nameless.is_empty(), "frames without a line: {nameless:?}");
    Ok(())
}

/// A stack that is too deep says so, and its innermost frames are right; one that is not is whole.
fn deep(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "shapes.py", &NONE, &[])?;
    let asked = Asked(&profile);
    let mut depths = Vec::new();
    for sample in &profile.samples {
        let frames: Vec<_> = asked.frames(sample).collect();
        let is_ours = sample.values.live == amount(2033, 1) && asked.innermost(sample) == "keep";
        if !is_ours || sample.domain != Domain::Malloc {
            continue;
        }
        let recursive = frames.iter().filter(|frame| frame.function == "recursive").count();
        let marker =
            frames.last().filter(|frame| frame.kind == FrameKind::Marker).map(|frame| frame.function.clone());
        depths.push((recursive, marker));
    }
    depths.sort();
    let [(21, None), (cut, Some(marker))] = depths.as_slice() else { anyhow::bail!("{depths:?}") };
    ensure!(*cut >= 127 && marker.contains("truncated"), "{cut}: {marker}");
    ensure!(profile.recording.losses.truncated_stacks > 0, "truncation is not counted");
    Ok(())
}

/// Functions that are made and dropped one after the other, all at the same few addresses: each has its own name.
fn code_at_one_address(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "one_address.py", &NONE, &[])?;
    let asked = Asked(&profile);
    for number in 0..200 {
        let name = format!("made_{number}");
        let kept = asked.function(Metric::Live, Domain::Malloc, &name);
        ensure!(kept == amount(633 + number, 1), "{name}: {kept:?}");
    }
    Ok(())
}
