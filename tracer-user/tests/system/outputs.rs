//! What `record` writes, by each format, metric and unit, straight from a recording.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::machine::Interpreter;
use crate::support::{folder, program, record, run};
use crate::{Test, one};

pub const TESTS: &[Test] = &[
    one("outputs::every_format", every_format),
    one("outputs::metric_and_unit", metric_and_unit),
    one("outputs::a_stream", a_stream),
];

fn write(interpreter: &Interpreter, output: &Path, flags: &[&str]) -> Result<String> {
    let mut command = record(output, flags);
    command.arg(&interpreter.python).arg("-I").arg(program("exact.py"));
    let finished = run(command)?.succeeded()?;
    ensure!(finished.stdout.is_empty(), "printed {}", finished.stdout);
    ensure!(finished.stderr.contains("coverage 100.00 % of allocations"), "{}", finished.stderr);
    Ok(String::from_utf8_lossy(&fs::read(output).context("nothing was written")?).into_owned())
}

fn every_format(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let path = |name: &str| folder.path().join(name);
    let folded = write(interpreter, &path("x.folded"), &["--metric", "live"])?;
    let line =
        folded.lines().find(|line| line.contains(";bytes_of_95 (exact.py:") && line.ends_with(" 128000"));
    ensure!(line.is_some(), "no line of 128000 bytes");
    let svg = write(interpreter, &path("x.svg"), &[])?;
    ensure!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>") && svg.contains("bytes_of_95"));
    ensure!(svg.contains("Memory at the peak"), "a finished command shows its peak");
    let json: serde_json::Value =
        serde_json::from_str(&write(interpreter, &path("x.json"), &["--metric", "live"])?)?;
    let rows = json["rows"].as_array().context("no rows")?;
    let row = rows.iter().find(|row| row["function"] == "bytes_of_95").context("no row")?;
    ensure!(row["bytes"] == 128_000 && row["count"] == 1000 && row["line"] == 13, "{row}");
    let speedscope = write(interpreter, &path("x.speedscope.json"), &[])?;
    let speedscope: serde_json::Value = serde_json::from_str(&speedscope)?;
    let frames = speedscope["shared"]["frames"].as_array().context("no frames")?;
    ensure!(
        frames.iter().any(|frame| frame["name"].as_str().is_some_and(|name| name.contains("bytes_of_95")))
    );
    ensure!(write(interpreter, &path("x.pb.gz"), &[])?.len() > 1000);
    Ok(())
}

fn metric_and_unit(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.folded");
    for (metric, unit, function, expected) in [
        ("live", "bytes", "half_dropped", 500 * 240),
        ("live", "count", "half_dropped", 500),
        ("peak", "bytes", "peak_then_nothing", 30_000_033),
        ("peak", "count", "peak_then_nothing", 1),
        ("allocated", "bytes", "bytes_of_480", 513_000),
        ("allocated", "count", "peak_then_nothing", 1),
        ("temporary", "bytes", "peak_then_nothing", 30_000_033),
        ("temporary", "count", "peak_then_nothing", 1),
    ] {
        let text = write(interpreter, &output, &["--metric", metric, "--unit", unit])?;
        let values: Vec<u64> = text
            .lines()
            .filter(|line| line.contains(&format!(";{function} (")))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect();
        ensure!(values.contains(&expected), "{metric} {unit} of {function}: {values:?}, expected {expected}");
    }
    Ok(())
}

/// Standard error as a stream, and a pipe.
fn a_stream(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let pipe = folder.path().join("x.folded");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
    let reading = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe)
    });
    let mut command = record(&pipe, &["--metric", "live"]);
    command.arg(&interpreter.python).arg("-I").arg(program("exact.py"));
    run(command)?.succeeded()?;
    let text = reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(text.contains("bytes_of_95 (exact.py:13) 128000"), "no such line");
    Ok(())
}
