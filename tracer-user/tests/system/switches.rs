//! Interpreters whose allocator is another than pymalloc, or changes while they are recorded, and threads that Python did not make.
//!
//! The oracles are the census of the pools (coverage), amounts that follow from a program's text, and what the program itself installs.

use std::path::Path;
use std::process::Command;

use alloctrace::profile::{Coverage, Domain, Metric, Profile};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use crate::asked::{Asked, amount, size_class};
use crate::machine::{Interpreter, debug_builds};
use crate::support::{Finished, Running, folder, interrupt, load, program, record, run, say, target, tracer};
use crate::{Test, each, once};

pub const TESTS: &[Test] = &[
    each("switches::debug_hooks", debug_hooks),
    each("switches::malloc", malloc),
    each("switches::mimalloc", mimalloc),
    each("switches::tracemalloc_started_meanwhile", tracemalloc_started_meanwhile),
    each("switches::another_allocator", another_allocator),
    each("switches::foreign_threads", foreign_threads),
    once("switches::builds_with_debug_checks", builds_with_debug_checks)
        .only_if(|| !debug_builds().is_empty()),
];

const NONE: [&str; 0] = [];

/// Records a program with `PYTHONMALLOC` set. Without `-I`, which would ignore it.
fn record_with(interpreter: &Interpreter, setting: &str, name: &str) -> Result<(Profile, Finished)> {
    let folder = folder()?;
    let output = folder.path().join("profile.pb.gz");
    let mut command = record(&output, &[]);
    command.env("PYTHONMALLOC", setting).arg(&interpreter.python).arg("-s").arg(program(name));
    let finished = run(command)?.succeeded()?;
    Ok((load(&output)?, finished))
}

fn uses(profile: &Profile, allocator: &str) -> Result<()> {
    let found: Vec<&str> = profile.processes.iter().map(|process| &*process.allocator).collect();
    ensure!(found == [allocator], "allocators {found:?}, expected `{allocator}`");
    Ok(())
}

fn debug_hooks(interpreter: &Interpreter) -> Result<()> {
    for setting in ["debug", "pymalloc_debug"] {
        let (profile, finished) = record_with(interpreter, setting, "mixed.py")?;
        uses(&profile, "debug hooks over pymalloc")?;
        ensure!(finished.stderr.contains("uses debug hooks over pymalloc"), "{}", finished.stderr);
        let asked = Asked(&profile);
        let (allocations, frees) = asked.coverage()?;
        say(&format!(
            "{}, {setting}: {allocations:.6} of allocations, {frees:.6} of frees",
            interpreter.label
        ));
        asked.is_whole()?;
    }
    let (profile, _) = record_with(interpreter, "pymalloc", "exact.py")?;
    uses(&profile, "pymalloc")
}

/// `--with-pydebug`: assertions between the instructions, debug hooks unless they are turned off.
fn builds_with_debug_checks() -> Result<()> {
    for interpreter in debug_builds() {
        for (setting, allocator) in
            [("pymalloc_debug", "debug hooks over pymalloc"), ("pymalloc", "pymalloc")]
        {
            let (profile, finished) = record_with(&interpreter, setting, "mixed.py")?;
            uses(&profile, allocator)?;
            ensure!(!finished.stderr.contains("no place that opens pools"), "{}", finished.stderr);
            let asked = Asked(&profile);
            let (allocations, frees) = asked.coverage()?;
            say(&format!(
                "{} debug build, {setting}: {allocations:.6} of allocations, {frees:.6} of frees",
                interpreter.label
            ));
            asked.is_whole()?;
        }
    }
    Ok(())
}

/// Nothing of pymalloc's is there to be measured; all blocks are malloc's, and right.
fn malloc(interpreter: &Interpreter) -> Result<()> {
    for (setting, allocator, extra) in
        [("malloc", "malloc", 0), ("malloc_debug", "debug hooks over malloc", 24)]
    {
        let (profile, finished) = record_with(interpreter, setting, "exact.py")?;
        uses(&profile, allocator)?;
        ensure!(finished.stderr.contains(&format!("uses {allocator}")), "{}", finished.stderr);
        match &profile.recording.coverage {
            Coverage::Unmeasured { unmeasured } => {
                ensure!(unmeasured.contains("does not use pymalloc"), "{unmeasured}");
            }
            measured @ Coverage::Measured { .. } => bail!("{measured:?} of nothing"),
        }
        let asked = Asked(&profile);
        asked.has_lost_nothing()?;
        // Two words and eight bytes of marks (`PYMEM_DEBUG_EXTRA_BYTES`, Objects/obmalloc.c), and a header of 33 bytes.
        let of_95 = asked.function(Metric::Live, Domain::Malloc, "bytes_of_95");
        ensure!(of_95 == amount(1000 * (95 + 33 + extra), 1000), "{of_95:?}");
        let by_pymalloc = asked.sum(Metric::Allocated, |sample| sample.domain == Domain::Pymalloc);
        ensure!(by_pymalloc == amount(0, 0), "{by_pymalloc:?}");
    }
    Ok(())
}

/// mimalloc in pymalloc's place, from 3.13 on: it serves all sizes, and its pages are the witness.
fn mimalloc(interpreter: &Interpreter) -> Result<()> {
    if interpreter.minor < 13 {
        let refused = record_with(interpreter, "mimalloc", "exact.py");
        ensure!(refused.is_err(), "CPython without mimalloc has run with it");
        return Ok(());
    }
    // The debug hooks put two words and eight bytes of marks around each block.
    for (setting, allocator, extra) in
        [("mimalloc", "mimalloc", 0), ("mimalloc_debug", "debug hooks over mimalloc", 24)]
    {
        let (profile, finished) = record_with(interpreter, setting, "exact.py")?;
        uses(&profile, allocator)?;
        ensure!(finished.stderr.contains(&format!("uses {allocator}")), "{}", finished.stderr);
        let asked = Asked(&profile);
        Asked(&profile).is_whole()?;
        for (function, size) in [("bytes_of_95", 95), ("bytes_of_479", 479), ("bytes_of_480", 480)] {
            let found = asked.function(Metric::Live, Domain::Pymalloc, function);
            let expected = amount(1000 * page_block(size + 33 + extra), 1000);
            ensure!(found == expected, "{setting}: {function} has {found:?}, expected {expected:?}");
        }
        let (profile, _) = record_with(interpreter, setting, "mixed.py")?;
        let asked = Asked(&profile);
        let (allocations, frees) = asked.coverage()?;
        say(&format!(
            "{}, {setting}: {} events, {allocations:.6} of allocations, {frees:.6} of frees",
            interpreter.label, profile.recording.events
        ));
        Asked(&profile).is_whole()?;
    }
    mimalloc_of_a_process_that_runs(interpreter)
}

/// The size of the block that mimalloc gives for so many bytes: four sizes to each doubling, above 64 (`_mi_bin`, Objects/mimalloc/page-queue.c).
fn page_block(bytes: u64) -> u64 {
    let step = match bytes {
        0..=64 => 16,
        _ => bytes.next_power_of_two() / 8,
    };
    bytes.next_multiple_of(step)
}

/// Nobody has seen what it was started with: its tables say what it uses.
fn mimalloc_of_a_process_that_runs(interpreter: &Interpreter) -> Result<()> {
    let mut command = Command::new(&interpreter.python);
    command.env("PYTHONMALLOC", "mimalloc").env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg("-s").arg(program("steps.py"));
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "ready");
    let (profile, _) = switch_and_keep(&mut running, &[])?;
    uses(&profile, "mimalloc")?;
    kept_3000(&profile, page_block(233))
}

/// One statement of `steps.py`.
fn step(running: &mut Running, text: &str) -> Result<()> {
    running.write(&format!("{text}\n"))?;
    let line = running.line()?;
    ensure!(line == "done", "`{text}` said `{line}`");
    Ok(())
}

/// Attaches to `steps.py`, lets it do `switch` and then allocate a known amount; what became of it.
fn switched(interpreter: &Interpreter, switch: &[String]) -> Result<(Profile, Finished)> {
    switch_and_keep(&mut target(interpreter, "steps.py", &NONE)?, switch)
}

fn switch_and_keep(running: &mut Running, switch: &[String]) -> Result<(Profile, Finished)> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    for statement in switch {
        step(running, statement)?;
    }
    step(running, "keep(5000, 200)")?;
    step(running, "drop(2000)")?;
    let finished = interrupt(tracing)?.succeeded()?;
    running.signal(Signal::KILL)?;
    Ok((load(&output)?, finished))
}

fn kept_3000(profile: &Profile, size: u64) -> Result<()> {
    let asked = Asked(profile);
    asked.is_whole()?;
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(kept == amount(3000 * size, 3000), "kept {kept:?}");
    let allocated = asked.function(Metric::Allocated, Domain::Pymalloc, "keep");
    // The numbers that count them come and go.
    ensure!(allocated.count >= 5000 && allocated.count <= 5000 + 5000, "allocated {allocated:?}");
    Ok(())
}

fn tracemalloc_started_meanwhile(interpreter: &Interpreter) -> Result<()> {
    let (profile, finished) = switched(interpreter, &["import tracemalloc; tracemalloc.start()".to_owned()])?;
    let change = "changed its allocator from pymalloc to tracemalloc over pymalloc";
    ensure!(finished.stderr.contains(change), "{}", finished.stderr);
    uses(&profile, "pymalloc, then tracemalloc over pymalloc")?;
    kept_3000(&profile, size_class(233))
}

/// Builds the library of `allocator_hook.c`.
fn build_hook(library: &Path) -> Result<()> {
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(program("allocator_hook.c"));
    run(compiler)?.succeeded().context("it takes a C compiler: `cargo xtask setup`")?;
    Ok(())
}

fn another_allocator(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let library = folder.path().join("hook.so");
    build_hook(&library)?;
    let install = format!("hook = ctypes.PyDLL('{}'); hook.install()", library.display());
    let (profile, finished) = switched(interpreter, &[install])?;
    let allocator = "another allocator (`hook_malloc` of hook.so)";
    ensure!(finished.stderr.contains(&format!("from pymalloc to {allocator}")), "{}", finished.stderr);
    uses(&profile, &format!("pymalloc, then {allocator}"))?;
    kept_3000(&profile, size_class(233))
}

fn foreign_threads(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_with(interpreter, "pymalloc", "foreign_thread.py")?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let from = |name: &str, size: u64| {
        let of_size = asked.sum(Metric::Peak, |sample| {
            sample.domain == Domain::Pymalloc
                && asked.frames(sample).any(|frame| frame.function.contains(name))
        });
        (of_size, size)
    };
    let (foreign, size) = from("in_the_foreign_thread", size_class(233));
    ensure!(foreign.bytes >= 15_000 * size && foreign.count >= 15_000, "{foreign:?}");
    ensure!(foreign.count < 15_100, "{foreign:?}");
    let (main, size) = from("in_the_main_thread", size_class(133));
    ensure!(main.bytes >= 3000 * size && main.count >= 3000 && main.count < 3100, "{main:?}");
    // Malloc blocks of that thread, too: the list grows there.
    let lists = asked.sum(Metric::Allocated, |sample| {
        sample.domain == Domain::Malloc
            && asked.frames(sample).any(|frame| frame.function.contains("in_the_foreign_thread"))
    });
    ensure!(lists.count > 10, "{lists:?}");
    Ok(())
}
