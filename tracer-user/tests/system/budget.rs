//! Budget mode: windows that say what is allocated, and what they must not say.

use alloctrace::profile::{Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};

use crate::asked::Asked;
use crate::machine::Interpreter;
use crate::support::{alloctrace, folder, interrupt, load, python, record, run, say, target, tracer};
use crate::{Test, one, workers};

pub const TESTS: &[Test] = &[
    one("budget::attached", attached),
    one("budget::a_command_that_fits", a_command_that_fits),
    one("budget::a_command_that_does_not_fit", a_command_that_does_not_fit),
    one("budget::malloc_is_too_much", malloc_is_too_much),
    one("budget::workers_in_little_room", workers_in_little_room),
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
    for metric in [Metric::Peak, Metric::Temporary] {
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

/// Bytes that a function of the program holds at the peak, with what it calls. `with_malloc`: and not pymalloc's alone.
fn at_peak(profile: &Profile, function: &str, with_malloc: bool) -> f64 {
    let asked = Asked(profile);
    let blocks = asked.sum(Metric::Peak, |sample| {
        (with_malloc || sample.domain == Domain::Pymalloc)
            && asked
                .frames(sample)
                .any(|frame| frame.function.trim_end_matches(".<locals>.<listcomp>") == function)
    });
    blocks.bytes as f64
}

fn kept(interpreter: &Interpreter, rounds: &str, flags: &[&str]) -> Result<(Profile, String)> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, flags);
    let program = python(interpreter, "kept.py");
    command.arg(program.get_program()).args(program.get_args()).arg(rounds);
    let finished = run(command)?.succeeded()?;
    Ok((load(&output)?, finished.stderr))
}

/// Live and peak are right although most blocks were not seen: by the pools, and by all calls of malloc.
fn a_command_that_does_not_fit(interpreter: &Interpreter) -> Result<()> {
    // What lives at the peak does not depend on the rounds.
    let (exact, _) = kept(interpreter, "1", &["--mode", "exact"])?;
    let (profile, said) = kept(interpreter, "240", &["--mode", "budget", "--budget", "100"])?;
    let windows = profile.recording.windows.as_ref().with_context(|| format!("all was seen: {said}"))?;
    ensure!(windows.knows_live && windows.opened > 0, "{windows:?}: {said}");
    ensure!(said.contains("count for the stack that opened their pool"), "{said}");
    // On a machine that others keep busy traps are dear, and malloc may have been left out, which is said.
    let why = windows.live_unknown.as_deref().unwrap_or_default();
    let with_malloc = !why.contains("malloc's blocks are not among what lives");
    let of = |profile: &Profile| {
        let is_of = |domain| with_malloc || domain == Domain::Pymalloc;
        Asked(profile).sum(Metric::Peak, |sample| is_of(sample.domain)).bytes as f64
    };
    let (whole, found) = (of(&exact), of(&profile));
    say(&format!("peak {:.4} of exact, {} windows", found / whole, windows.opened));
    // Names come and go, and are a hundredth of it.
    ensure!((0.97..1.03).contains(&(found / whole)), "peak {found}, exact {whole}: {said}");
    for function in ["rows", "floats", "buffers"] {
        let [found, truth] = [&profile, &exact].map(|profile| at_peak(profile, function, with_malloc));
        if function == "buffers" && !with_malloc {
            continue;
        }
        say(&format!("{function}: {:.4} of exact", found / truth));
        ensure!((0.93..1.07).contains(&(found / truth)), "{function}: {found}, exact {truth}: {said}");
    }
    // Rows and floats are taken once; names are taken all the time.
    ensure!(profile.total(Metric::Allocated).bytes > exact.total(Metric::Allocated).bytes);
    ensure!(profile.total(Metric::Temporary).count == 0);
    Ok(())
}

/// A program that calls malloc all the time: its pools are still watched, and it is said what is not.
fn malloc_is_too_much(interpreter: &Interpreter) -> Result<()> {
    const TEXT: &str = "
def small():
    return [str(number) for number in range(200_000)]
kept = small()
for _ in range(3_000_000):
    bytearray(600)
";
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &["--mode", "budget", "--budget", "20"]);
    command.arg(&interpreter.python).args(["-I", "-S", "-c", TEXT]);
    let finished = run(command)?.succeeded()?;
    let profile = load(&output)?;
    let windows = profile.recording.windows.as_ref().context("no windows")?;
    let why = windows.live_unknown.as_deref().unwrap_or_default();
    ensure!(windows.knows_live && why.contains("malloc's blocks are not among what lives"), "{windows:?}");
    let small = at_peak(&profile, "small", true);
    // 64 bytes each, of which those before anything was too much are of the books.
    ensure!((9e6..16e6).contains(&small), "{small}: {}", finished.stderr);
    let mallocs = Asked(&profile).sum(Metric::Peak, |sample| sample.domain == Domain::Malloc);
    ensure!(mallocs.count == 0, "{mallocs:?}");
    Ok(())
}

/// What ended processes used is given back in windows too.
fn workers_in_little_room(interpreter: &Interpreter) -> Result<()> {
    workers::in_little_room_with(interpreter, "fork", 300, "12000", &["--mode", "budget", "--budget", "1000"])
}

fn what_is_not_known(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let budget = ["--mode", "budget"];
    let mut running = target(interpreter, "steps.py", &[""; 0])?;
    let tracer = tracer(&output, &[running.id()], &budget)?;
    interrupt(tracer)?.succeeded()?;
    running.write("go\n").ok();
    for metric in ["live", "peak", "temporary", "retained"] {
        let mut report = alloctrace();
        report.args(["report", "--metric", metric]).arg(&output);
        let refused = run(report)?;
        ensure!(refused.stderr.contains("recorded in budget mode"), "{metric}: {}", refused.stderr);
    }
    // Whether windows can tell what lives is known when they have been opened; of these it is known before.
    for metric in ["peak", "temporary"] {
        let mut command = alloctrace();
        command.args(["record", "--mode", "budget", "--metric", metric, "-p", &running.id().to_string()]);
        let refused = run(command)?;
        ensure!(refused.stderr.contains("`--mode exact`"), "{metric}: {}", refused.stderr);
    }
    for mode in ["exact", "growth"] {
        let mut command = record(&output, &["--mode", mode, "--metric", "retained"]);
        command.arg(&interpreter.python).args(["-c", "pass"]);
        ensure!(run(command)?.stderr.contains("only budget mode knows `retained`"), "{mode}");
    }
    let mut both = record(&output, &["--mode", "growth", "--budget", "3"]);
    both.arg(&interpreter.python).args(["-c", "pass"]);
    ensure!(run(both)?.stderr.contains("leave one of them out"));
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
