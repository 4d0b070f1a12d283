//! Budget mode: windows that say what is allocated, and what they must not say.

use alloctrace::profile::{Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};

use crate::asked::Asked;
use crate::machine::Interpreter;
use crate::support::{alloctrace, folder, interrupt, load, record, run, say, target, tracer};
use crate::{Test, one};

pub const TESTS: &[Test] = &[
    one("budget::attached", attached),
    one("budget::a_command_that_fits", a_command_that_fits),
    one("budget::what_is_not_known_is_not_shown", what_is_not_known),
];

/// What the C library was asked for by one line's function.
fn buffers(profile: &Profile) -> u64 {
    let asked = Asked(profile);
    let blocks = asked.sum(Metric::Allocated, |sample| {
        sample.domain == Domain::Malloc
            && asked.frames(sample).any(|frame| frame.function.starts_with("buffers"))
    });
    blocks.count
}

fn attached(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut running = target(interpreter, "budget.py", &["15"])?;
    let tracer = tracer(&output, &[running.id()], &["--mode", "budget", "--budget", "20"])?;
    running.write("go\n")?;
    let requests: u64 = running.line()?.parse()?;
    let finished = interrupt(tracer)?.succeeded()?;
    let profile = load(&output)?;
    let windows = profile.recording.windows.as_ref().context("no windows")?;
    ensure!(windows.opened >= 3 && windows.stopped.is_none(), "{windows:?}");
    ensure!(profile.recording.mode == "budget" && profile.recording.seen_fraction < 0.5);
    // The governor's own account of it: what it promises.
    let cost = profile.recording.cost.target_percent.context("no cost")?;
    ensure!(cost <= 20.0, "it cost {cost} %: {}", finished.stderr);
    let (found, truth) = (buffers(&profile) as f64, requests as f64 * 20.0);
    say(&format!("{} windows: {:.3} of the truth, cost {cost:.1} %", windows.opened, found / truth));
    // A dozen windows: 0.73 to 1.26 have been seen on a machine that others kept busy.
    ensure!((0.5..2.0).contains(&(found / truth)), "{found} of {truth}: {}", finished.stderr);
    for metric in [Metric::Live, Metric::Peak, Metric::Temporary] {
        ensure!(profile.total(metric).count == 0, "{metric} is {:?}", profile.total(metric));
    }
    Ok(())
}

/// While everything fits, everything is seen.
fn a_command_that_fits(interpreter: &Interpreter) -> Result<()> {
    const TEXT: &str = "
def buffers():
    return [bytearray(100_000) for _ in range(1000)]
buffers()
";
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &["--mode", "budget", "--budget", "1000"]);
    command.arg(&interpreter.python).args(["-I", "-S", "-c", TEXT]);
    let finished = run(command)?.succeeded()?;
    let profile = load(&output)?;
    let found = buffers(&profile);
    // The list that keeps them grows.
    ensure!((1000..1100).contains(&found), "{found} blocks: {}", finished.stderr);
    ensure!(profile.recording.seen_fraction > 0.999, "{}", profile.recording.seen_fraction);
    Asked(&profile).has_lost_nothing()
}

fn what_is_not_known(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let budget = ["--mode", "budget"];
    let mut recorded = record(&output, &budget);
    recorded.arg(&interpreter.python).args(["-c", "pass"]);
    run(recorded)?.succeeded()?;
    for metric in ["live", "peak", "temporary"] {
        let mut report = alloctrace();
        report.args(["report", "--metric", metric]).arg(&output);
        let refused = run(report)?;
        ensure!(refused.stderr.contains("recorded in budget mode"), "{metric}: {}", refused.stderr);
        let mut record = record(&output, &[&budget[..], &["--metric", metric]].concat());
        record.arg(&interpreter.python).args(["-c", "pass"]);
        ensure!(run(record)?.stderr.contains("use `--metric allocated`"), "{metric}");
    }
    let mut old = record(&output, &[&budget[..], &["--perf-events"]].concat());
    old.arg(&interpreter.python).args(["-c", "pass"]);
    let refused = run(old)?;
    ensure!(
        refused.stderr.contains("no uprobe_multi") && refused.stderr.contains("growth"),
        "{}",
        refused.stderr
    );
    Ok(())
}
