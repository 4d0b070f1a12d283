//! Programs with exactly known totals, by each metric.

use alloctrace::profile::{Amount, Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::asked::{Asked, amount, size_class};
use crate::machine::Interpreter;
use crate::results::{note, whole_stacks};
use crate::support::{folder, interrupt, load, record_program, say, target, tracer};
use crate::{Test, each, one};

pub const TESTS: &[Test] = &[
    each("exact::known_amounts", known_amounts),
    one("exact::known_amounts_by_perf_events", known_amounts_by_perf_events),
    one("exact::known_amounts_without_a_process_filter", known_amounts_without_a_process_filter),
    each("exact::malloc_family", malloc_family),
    each("exact::attached", attached),
    each("exact::coverage_of_a_mixed_workload", coverage_of_a_mixed_workload),
];

const NONE: [&str; 0] = [];

fn known_amounts(interpreter: &Interpreter) -> Result<()> {
    check_known_amounts(interpreter, &[])
}

fn known_amounts_by_perf_events(interpreter: &Interpreter) -> Result<()> {
    check_known_amounts(interpreter, &["--perf-events"])
}

/// As on Linux 6.6 to 6.9, while another process of the same interpreter hits the same points.
fn known_amounts_without_a_process_filter(interpreter: &Interpreter) -> Result<()> {
    let mut other = crate::support::python(interpreter, "churn.py");
    other.stderr(std::process::Stdio::null());
    let mut other = crate::support::Running::start(other)?;
    ensure!(other.line()? == "started");
    check_known_amounts(interpreter, &["--no-process-filter"])?;
    ensure!(crate::support::is_running(other.id()), "the other process ended");
    other.signal(Signal::KILL)
}

fn equal(what: &str, found: Amount, expected: Amount) -> Result<()> {
    ensure!(found == expected, "{what}: {found:?}, expected {expected:?}");
    Ok(())
}

fn check_known_amounts(interpreter: &Interpreter, flags: &[&str]) -> Result<()> {
    let (profile, _) = record_program(interpreter, "exact.py", &NONE, flags)?;
    check_amounts(interpreter, &profile)
}

/// Compares the profile of `exact.py` with what it allocates, by whatever malloc.
pub fn check_amounts(interpreter: &Interpreter, profile: &Profile) -> Result<()> {
    let asked = Asked(profile);
    asked.is_whole()?;
    let live = |domain, name| asked.function(Metric::Live, domain, name);
    equal("bytes of 95", live(Domain::Pymalloc, "bytes_of_95"), amount(128_000, 1000))?;
    equal("bytes of 479", live(Domain::Pymalloc, "bytes_of_479"), amount(512_000, 1000))?;
    equal("bytes of 479, malloc", live(Domain::Malloc, "bytes_of_479"), amount(0, 0))?;
    equal("bytes of 480", live(Domain::Malloc, "bytes_of_480"), amount(513_000, 1000))?;
    // A byte more than asked for; from 3.15 on the buffer is a bytes object (Objects/bytearrayobject.c).
    let buffer = if interpreter.minor >= 15 { 1033 } else { 1001 };
    equal("bytearrays, buffers", live(Domain::Malloc, "bytearrays_of_1000"), amount(1000 * buffer, 1000))?;
    equal(
        "bytearrays, objects",
        live(Domain::Pymalloc, "bytearrays_of_1000"),
        amount(size_class(56) * 1000, 1000),
    )?;
    equal("lists, items", live(Domain::Malloc, "lists_of_100"), amount(800_000, 1000))?;
    // Up to 80 lists come from the free list: blocks that somebody else allocated.
    let objects = live(Domain::Pymalloc, "lists_of_100");
    let of_one = size_class(56);
    ensure!(
        objects.bytes == objects.count * of_one && (920..=1000).contains(&objects.count),
        "lists: {objects:?}"
    );
    equal("half dropped", live(Domain::Pymalloc, "half_dropped"), amount(500 * size_class(233), 500))?;

    // The peak was while the one large block was there, and everything before it still was.
    let peak = |domain, name| asked.function(Metric::Peak, domain, name);
    equal("large block, peak", peak(Domain::Malloc, "peak_then_nothing"), amount(30_000_033, 1))?;
    equal("large block, live", live(Domain::Malloc, "peak_then_nothing"), amount(0, 0))?;
    equal("bytes of 95 at the peak", peak(Domain::Pymalloc, "bytes_of_95"), amount(128_000, 1000))?;
    equal(
        "half dropped at the peak",
        peak(Domain::Pymalloc, "half_dropped"),
        amount(500 * size_class(233), 500),
    )?;
    equal("dropped at once, at the peak", peak(Domain::Pymalloc, "dropped_at_once"), amount(0, 0))?;

    let temporary = |domain, name| asked.function(Metric::Temporary, domain, name);
    equal("large block, temporary", temporary(Domain::Malloc, "peak_then_nothing"), amount(30_000_033, 1))?;
    // The numbers that count them are temporary too: 32 bytes each.
    let dropped = temporary(Domain::Pymalloc, "dropped_at_once");
    let of_one = size_class(333);
    let numbers = dropped.count.saturating_sub(1000);
    ensure!(dropped.bytes == 1000 * of_one + 32 * numbers, "dropped at once: {dropped:?}");
    equal("bytes of 480, temporary", temporary(Domain::Malloc, "bytes_of_480"), amount(0, 0))?;

    for sample in &profile.samples {
        let values = &sample.values;
        for part in [values.live, values.peak, values.temporary] {
            ensure!(
                part.bytes <= values.allocated.bytes && part.count <= values.allocated.count,
                "{sample:?}"
            );
        }
    }
    Ok(())
}

fn malloc_family(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "malloc_family.py", &NONE, &[])?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let of = |metric, name: &str| {
        asked.sum(metric, |sample| {
            sample.domain == Domain::Malloc && asked.frames(sample).any(|frame| frame.function == name)
        })
    };
    let expected = [
        ("by_malloc", 1000),
        ("by_calloc", 700),
        ("by_posix_memalign", 900),
        ("by_aligned_alloc", 640),
        ("by_memalign", 1100),
        ("by_valloc", 5000),
        ("by_pvalloc", 8192),
        ("by_realloc_of_null", 1300),
        ("by_reallocarray", 2000),
        ("by_moves", 200_000),
        ("for_failures", 800),
    ];
    let is_musl = interpreter.label.ends_with("_musl");
    for (name, size) in expected {
        // musl has none.
        if is_musl && name == "by_pvalloc" {
            continue;
        }
        equal(name, of(Metric::Live, name), amount(50 * size, 50))?;
        equal(name, of(Metric::Allocated, name), amount(50 * size, 50))?;
    }
    // Everything that these allocated has been freed or resized since.
    for (name, size) in [("for_reallocarray", 600), ("for_moves", 700), ("for_zero", 850), ("for_free", 950)]
    {
        equal(name, of(Metric::Live, name), amount(0, 0))?;
        equal(name, of(Metric::Allocated, name), amount(50 * size, 50))?;
    }
    for name in ["by_posix_memalign_refused", "by_failures", "by_free"] {
        equal(name, of(Metric::Allocated, name), amount(0, 0))?;
    }
    // musl's `realloc(p, 0)` gives a block of no bytes, glibc's frees.
    equal("by_zero", of(Metric::Allocated, "by_zero"), amount(0, if is_musl { 50 } else { 0 }))?;
    Ok(())
}

/// What was there before is not counted, and its end takes nothing from anybody.
fn attached(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &NONE)?;
    let step = |running: &mut crate::support::Running, text: &str| -> Result<()> {
        running.write(&format!("{text}\n"))?;
        let line = running.line()?;
        ensure!(line == "done", "`{text}` said `{line}`");
        Ok(())
    };
    step(&mut running, "keep(5000, 200)")?;
    step(&mut running, "before = [allocate(3000) for _ in range(100)]")?;
    step(&mut running, "resized = [allocate(3000) for _ in range(100)]")?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    step(&mut running, "drop(5000)")?;
    step(&mut running, "[release(address) for address in before]")?;
    step(&mut running, "after = [resize(address, 4000) for address in resized]")?;
    step(&mut running, "more = [allocate(2000) for _ in range(100)]")?;
    step(&mut running, "keep(700, 200)")?;
    let finished = interrupt(tracing)?.succeeded()?;
    ensure!(finished.stderr.contains("wrote"), "{}", finished.stderr);
    step(&mut running, "keep(1000, 200)")?;
    ensure!(crate::support::is_running(running.id()));
    let profile = load(&output)?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    equal(
        "kept",
        asked.function(Metric::Live, Domain::Pymalloc, "keep"),
        amount(700 * size_class(233), 700),
    )?;
    equal("resized", asked.function(Metric::Live, Domain::Malloc, "resize"), amount(100 * 4000, 100))?;
    equal("allocated", asked.function(Metric::Live, Domain::Malloc, "allocate"), amount(100 * 2000, 100))?;
    ensure!(profile.recording.default_metric == "live");
    running.signal(Signal::KILL)
}

fn coverage_of_a_mixed_workload(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "mixed.py", &NONE, &[])?;
    let asked = Asked(&profile);
    let (allocations, frees) = asked.coverage()?;
    let events = profile.recording.events;
    say(&format!(
        "{}: {events} events, {:.4} % of allocations, {:.4} % of frees",
        interpreter.label,
        allocations * 100.0,
        frees * 100.0
    ));
    ensure!(events > 500_000, "only {events} events");
    let whole_stacks = whole_stacks(&profile);
    let measured = json!({"allocations": allocations, "frees": frees, "whole_stacks": whole_stacks});
    note(interpreter, measured.as_object().context("no object")?)?;
    asked.is_whole()
}
