//! Free-threaded interpreters: threads that allocate at once, and a witness for each figure.

use std::collections::{BTreeMap, HashMap};

use alloctrace::profile::{Amount, Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::Test;
use crate::asked::{Asked, amount};
use crate::machine::Interpreter;
use crate::support::{folder, interrupt, load, record_program, say, target, tracer};

pub const TESTS: &[Test] = &[
    crate::free("free_threaded::lines_agree_with_tracemalloc", lines_agree_with_tracemalloc),
    crate::free("free_threaded::threads_known_before", threads_known_before),
    crate::free("free_threaded::coverage_of_a_mixed_workload", coverage_of_a_mixed_workload),
];

const NONE: [&str; 0] = [];

/// What the interpreter's own allocator gave to each line of a program.
fn by_line(profile: &Profile, program: &str) -> BTreeMap<u32, Amount> {
    let asked = Asked(profile);
    let mut lines = BTreeMap::new();
    for sample in profile.samples.iter().filter(|sample| sample.domain == Domain::Pymalloc) {
        let Some(frame) = asked.frames(sample).next() else { continue };
        if frame.file.as_deref().is_some_and(|file| file.ends_with(program)) {
            let line: &mut Amount = lines.entry(frame.line).or_default();
            *line = line.plus(sample.amount(Metric::Live));
        }
    }
    lines
}

/// Six threads allocate, and each drops half of what another has: the lines hold what tracemalloc says, each thread what is its own.
fn lines_agree_with_tracemalloc(interpreter: &Interpreter) -> Result<()> {
    let (profile, finished) = record_program(interpreter, "free_threaded.py", &NONE, &[])?;
    let (threads, json) = finished.stdout.trim_end().rsplit_once('\n').context("no lines")?;
    let inside: BTreeMap<u32, (u64, u64)> = serde_json::from_str(json)?;
    let outside = by_line(&profile, "free_threaded.py");
    let mut n_lines = 0;
    for (line, (bytes, count)) in inside.iter().filter(|(_, (_, count))| *count >= 1000) {
        let ours = outside.get(line).copied().unwrap_or_default();
        say(&format!(
            "{}: line {line}: {ours:?}, {bytes} bytes in {count} by tracemalloc",
            interpreter.label
        ));
        ensure!(ours == amount(*bytes, *count), "line {line}: {ours:?}, {bytes} in {count} by tracemalloc");
        n_lines += 1;
    }
    ensure!(n_lines >= 5, "only {n_lines} lines: {inside:?}");
    check_threads(&profile, threads)?;
    let (allocations, frees) = Asked(&profile).coverage()?;
    say(&format!(
        "{}: {:.4} % of allocations, {:.4} % of frees",
        interpreter.label,
        allocations * 100.0,
        frees * 100.0
    ));
    Asked(&profile).is_whole()
}

/// What each thread allocated as `bytes` is its own, whoever frees it.
fn check_threads(profile: &Profile, threads: &str) -> Result<()> {
    let ids: Option<HashMap<u64, u32>> = threads
        .lines()
        .map(|line| {
            line.split_once(' ').and_then(|(number, id)| Some((number.parse().ok()?, id.parse().ok()?)))
        })
        .collect();
    let ids = ids.context("no thread ids")?;
    ensure!(ids.len() == 6, "{ids:?}");
    let asked = Asked(profile);
    let source = std::fs::read_to_string(crate::support::program("free_threaded.py"))?;
    let position = source.lines().position(|line| line.contains("] = bytes(")).context("no such line")?;
    let line = u32::try_from(position)? + 1;
    for (number, id) in ids {
        let of = |metric| {
            asked.sum(metric, |sample| {
                let innermost = asked.frames(sample).next();
                let is_line = innermost.is_some_and(|frame| frame.function == "keep" && frame.line == line);
                sample.thread == id && sample.domain == Domain::Pymalloc && is_line
            })
        };
        let (allocated, live) = (of(Metric::Allocated).count, of(Metric::Live).count);
        // Another thread has dropped every second block.
        // A block more may be passing, such as the number that counts them.
        ensure!(
            (500..=510).contains(&allocated) && live == 250,
            "thread {number}: {allocated} allocated, {live} live"
        );
    }
    let outside = asked.markers().into_iter().find(|marker| marker.contains("outside of Python"));
    let foreign =
        outside.map(|marker| asked.sum(Metric::Allocated, |sample| asked.innermost(sample) == marker));
    // A thread that starts allocates before its state is its own.
    ensure!(foreign.is_none_or(|foreign| foreign.count < 200), "{foreign:?} by threads outside of Python");
    Ok(())
}

/// Threads that ran before the recording began are found as well.
fn threads_known_before(interpreter: &Interpreter) -> Result<()> {
    let running = target(interpreter, "free_threaded_churn.py", &NONE)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    interrupt(tracing)?.succeeded()?;
    ensure!(crate::support::is_running(running.id()));
    running.signal(Signal::KILL)?;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    let mut threads: Vec<u32> = profile
        .samples
        .iter()
        .filter(|sample| asked.innermost(sample) == "churn")
        .map(|sample| sample.thread)
        .collect();
    threads.sort_unstable();
    threads.dedup();
    ensure!(threads.len() == 8, "{} of 8 threads were seen in `churn`", threads.len());
    let whole = asked.sum(Metric::Allocated, |_| true);
    let known =
        asked.sum(Metric::Allocated, |sample| asked.frames(sample).any(|frame| frame.function == "churn"));
    ensure!(known.count * 1000 >= whole.count * 999, "{known:?} of {whole:?} have their stacks");
    say(&format!("{}: {} blocks, {:?}", interpreter.label, whole.count, profile.recording.coverage));
    let (allocations, frees) = asked.coverage()?;
    ensure!(
        allocations >= 0.999 && frees >= 0.999,
        "coverage {allocations} of allocations, {frees} of frees"
    );
    Ok(())
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
    asked.is_whole()
}
