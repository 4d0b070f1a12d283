//! Bounds: memory of the tracer and of the kernel's tables whatever the target does, and tables that are too small.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use alloctrace::profile::{Domain, Metric};
use anyhow::{Context as _, Result, ensure};

use crate::asked::Asked;
use crate::machine::Interpreter;
use crate::support::{Running, folder, is_running, load, program, record, record_program, say};
use crate::{Test, one};

pub const TESTS: &[Test] = &[
    one("limits::a_nasty_target", a_nasty_target),
    one("limits::small_live_table", small_live_table),
    one("limits::small_stack_table", small_stack_table),
];

const NONE: [&str; 0] = [];
const MIB: u64 = 1 << 20;

fn value_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
}

/// Bytes of the tables that a tracer holds, each table once.
fn table_bytes(tracer: u32) -> Result<u64> {
    let mut tables = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{tracer}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (value_of(&text, "map_id"), value_of(&text, "memlock")) {
            tables.insert(id, bytes);
        }
    }
    ensure!(!tables.is_empty(), "no tables");
    Ok(tables.values().sum())
}

/// A hundred thousand distinct stacks, three million live blocks, ten thousand code objects.
fn a_nasty_target(interpreter: &Interpreter) -> Result<()> {
    let (tables, tracer) = with_a_nasty_target(interpreter)?;
    ensure!(tables <= 64 * MIB, "kernel tables of {tables} bytes");
    ensure!(tracer <= 60_000_000, "the tracer had {tracer} bytes");
    Ok(())
}

/// Bytes of the kernel's tables, and the most that the tracer had.
fn with_a_nasty_target(interpreter: &Interpreter) -> Result<(u64, u64)> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.arg(&interpreter.python).arg("-I").arg(program("nasty.py"));
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "started");
    let tables = table_bytes(running.id())?;
    let mut most = 0;
    let pid = running.id();
    let watcher = std::thread::spawn(move || {
        // The kernel keeps the maximum; it is read until there is nothing to read it from.
        while is_running(pid) {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            most = value_of(&status, "VmHWM").unwrap_or(most).max(most);
            std::thread::sleep(Duration::from_millis(3));
        }
        most
    });
    let finished = running.finish()?.succeeded()?;
    let most = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))? * 1024;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    say(&format!(
        "{}: tracer {:.1} MiB ({:.1} MB), kernel tables {:.1} MiB; {} stacks, {} frames, {:?}, {} bytes of profile",
        interpreter.label,
        most as f64 / MIB as f64,
        most as f64 / 1e6,
        tables as f64 / MIB as f64,
        profile.samples.len(),
        profile.frames.len(),
        profile.recording.losses,
        fs::metadata(&output)?.len(),
    ));
    let (allocations, frees) = asked.coverage().context(finished.stderr)?;
    ensure!(allocations >= 0.999 && frees >= 0.999, "coverage {allocations}, {frees}");
    // Thinning keeps the sums: three million blocks of 48 bytes, and the list of them.
    let kept =
        asked.sum(Metric::Live, |sample| asked.frames(sample).any(|frame| frame.function == "many_blocks"));
    let expected = 3_000_000.0 * (48.0 + 8.0);
    let share = kept.bytes as f64 / expected;
    ensure!((0.95..1.05).contains(&share), "{kept:?} is {share} of what it should be");
    Ok((tables, most))
}

fn small_live_table(interpreter: &Interpreter) -> Result<()> {
    let (profile, finished) = record_program(interpreter, "blocks.py", &NONE, &["--live-blocks", "20000"])?;
    let asked = Asked(&profile);
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "keep");
    let allocated = asked.function(Metric::Allocated, Domain::Pymalloc, "keep");
    ensure!(allocated.bytes >= 100_000 * 144, "what is allocated needs no table: {allocated:?}");
    let share = kept.bytes as f64 / (100_000.0 * 144.0);
    say(&format!("live bytes of a thinned account: {share:.4} of the truth; {}", finished.stderr.trim()));
    ensure!((0.9..1.1).contains(&share), "{kept:?} is {share} of what it should be");
    let (allocations, frees) = asked.coverage()?;
    ensure!(
        allocations >= 0.999 && frees >= 0.999,
        "blocks thinned out count as missed: {allocations}, {frees}"
    );
    ensure!(
        profile.recording.losses.thinned > 0 && finished.stderr.contains("thinned"),
        "{}",
        finished.stderr
    );
    Ok(())
}

fn small_stack_table(interpreter: &Interpreter) -> Result<()> {
    let (whole, _) = record_program(interpreter, "blocks.py", &NONE, &[])?;
    let (profile, finished) = record_program(interpreter, "blocks.py", &NONE, &["--stacks", "200"])?;
    let asked = Asked(&profile);
    ensure!(profile.samples.len() <= 220, "{} samples", profile.samples.len());
    ensure!(
        asked.markers().iter().any(|marker| marker.contains("stack table is full")),
        "{:?}",
        asked.markers()
    );
    ensure!(profile.recording.losses.stack_table_full > 0, "{:?}", profile.recording.losses);
    ensure!(finished.stderr.contains("without a place for their stack"), "{}", finished.stderr);
    // Totals stay true: two runs of one program differ by little.
    for metric in [Metric::Live, Metric::Peak, Metric::Allocated] {
        let (full, small) = (whole.total(metric), profile.total(metric));
        let share = small.bytes as f64 / full.bytes as f64;
        ensure!((0.99..1.01).contains(&share), "{metric}: {small:?} with few stacks, {full:?} with all");
    }
    Ok(())
}
