//! What memory is made of while it is recorded: a leak, fragmentation, other allocators, and the end of short programs.

use alloctrace::profile::{Figures, Look, PoolBytes, Profile, Series, Verdict};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::machine::Interpreter;
use crate::support::{Finished, alloctrace, folder, interrupt, load, record, run, say, target, tracer};
use crate::{Test, each, free, one};

pub const TESTS: &[Test] = &[
    each("figures::fragmentation", fragmentation),
    one("figures::leak_in_growth_mode", leak_in_growth_mode),
    one("figures::leak_in_budget_mode", leak_in_budget_mode),
    one("figures::command", command),
    one("figures::without_pymalloc", without_pymalloc),
    free("figures::without_a_lock", without_a_lock),
];

const MIB: u64 = 1 << 20;

/// What was seen of a program that took some steps, and what it says itself at its beginning and its end.
struct Seen {
    profile: Profile,
    before: Value,
    after: Value,
    finished: Finished,
}

impl Seen {
    fn of(interpreter: &Interpreter, case: &str, steps: usize, flags: &[&str]) -> Result<Self> {
        let folder = folder()?;
        let output = folder.path().join("x.pb.gz");
        let mut running = target(interpreter, "figures.py", &[case])?;
        running.write("truth\n")?;
        let before = serde_json::from_str(&running.line()?)?;
        let flags = [flags, &["-v"]].concat();
        let mut tracer = tracer(&output, &[running.id()], &flags)?;
        tracer.wait_for("looked at memory")?;
        for _ in 0..steps {
            running.write("step\n")?;
            ensure!(running.line()? == "done");
        }
        let finished = interrupt(tracer)?.succeeded()?;
        running.write("truth\n")?;
        let after = serde_json::from_str(&running.line()?)?;
        Ok(Self { profile: load(&output)?, before, after, finished })
    }

    fn series(&self) -> Result<&Series> {
        Ok(&self.profile.processes.first().context("no process")?.memory)
    }

    /// The first and the last look, each held against what the program says.
    fn compared(&self) -> Result<(&Figures, &Figures)> {
        let looks = self.series()?.looks();
        let (first, last) = (looks.first().context("no look")?, looks.last().context("no look")?);
        compare(&first.figures, &self.before)?;
        compare(&last.figures, &self.after)?;
        ensure!(looks.len() >= 2, "{looks:?}");
        Ok((&first.figures, &last.figures))
    }

    fn summary(&self, part: &str) -> Result<()> {
        let mut lines = self.finished.stderr.lines();
        let line = lines.find(|line| line.contains(": memory after ")).context("no line")?;
        say(line);
        ensure!(line.contains(part), "{line}");
        Ok(())
    }
}

fn compare(figures: &Figures, truth: &Value) -> Result<()> {
    let said = |name: &str| truth[name].as_u64().with_context(|| format!("no {name}: {truth}"));
    let near = |found: u64, expected: u64| found.abs_diff(expected) <= expected / 100 + MIB / 8;
    let pools = figures.pools.get().with_context(|| format!("{figures:?}"))?;
    ensure!(near(pools.in_use_bytes, said("pools_in_use")?), "{pools:?}, {truth}");
    ensure!(near(pools.free_in_pools_bytes, said("pools_free_blocks")?), "{pools:?}, {truth}");
    let Some(malloc) = figures.malloc.get() else {
        ensure!(truth["uordblks"].is_null() && !figures.is_complete(), "{figures:?}");
        return Ok(());
    };
    // glibc counts what caches of threads have as in use; the interpreters test has that to the byte.
    let free = said("fordblks")?;
    ensure!(
        (free.saturating_sub(MIB / 8)..free + 2 * MIB).contains(&malloc.free_bytes),
        "{malloc:?}, {truth}"
    );
    ensure!(malloc.mapped_bytes == said("hblkhd")?, "{malloc:?}, {truth}");
    Ok(())
}

/// Many are given back, and what is between those that stay is kept.
fn fragmentation(interpreter: &Interpreter) -> Result<()> {
    let seen = Seen::of(interpreter, "fragment", 1, &["--mode", "exact"])?;
    let (first, last) = seen.compared()?;
    let (Some(before), Some(after)) = (first.pools.get(), last.pools.get()) else {
        anyhow::bail!("{first:?}")
    };
    ensure!(before.in_use_bytes > after.in_use_bytes + 40 * MIB, "{before:?}, {after:?}");
    // Pools of 4 KiB, to 3.9, hold twelve such blocks: most of them are empty as a whole, and their arenas stay.
    let held = |pools: &PoolBytes| pools.free_in_pools_bytes + pools.free_pools_bytes;
    ensure!(held(after) > held(before) + 40 * MIB, "{before:?}, {after:?}");
    if interpreter.label.ends_with("musl") {
        return seen.summary("not known: malloc is that of `");
    }
    ensure!(seen.series()?.verdict() == Some(Verdict::Kept), "{:?}", seen.series()?.change());
    seen.summary(": fragmentation, free memory is kept")?;
    // The report has all of it.
    let folder = folder()?;
    let (profile, json) = (folder.path().join("x.pb.gz"), folder.path().join("x.json"));
    std::fs::write(&profile, alloctrace::profile::pprof::encode(&seen.profile)?)?;
    let mut command = alloctrace();
    command.arg("convert").arg(&profile).arg("-o").arg(&json);
    run(command)?.succeeded()?;
    let document: Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let looks: Vec<Look> = serde_json::from_value(document["processes"][0]["memory"].clone())?;
    ensure!(looks == seen.series()?.looks(), "{looks:?}");
    Ok(())
}

fn leak(interpreter: &Interpreter, flags: &[&str]) -> Result<()> {
    let seen = Seen::of(interpreter, "leak", 5, flags)?;
    let (first, last) = seen.compared()?;
    let grown = last.requested_bytes().context("unknown")? - first.requested_bytes().context("unknown")?;
    // Five times 20,000 of 336 bytes and 2,000 of 2,048.
    ensure!((50 * MIB..60 * MIB).contains(&grown), "{grown}");
    ensure!(seen.series()?.verdict() == Some(Verdict::Use), "{:?}", seen.series()?.change());
    seen.summary(": grows by use")
}

fn leak_in_growth_mode(interpreter: &Interpreter) -> Result<()> {
    leak(interpreter, &["--mode", "growth"])
}

fn leak_in_budget_mode(interpreter: &Interpreter) -> Result<()> {
    leak(interpreter, &["--mode", "budget", "--budget", "1"])
}

/// It rests before it ends: what it holds after it has tidied up says nothing.
const PROGRAM: &str = "import time; kept = [bytes(300) for _ in range(20_000)]; time.sleep(3)";

fn of_command(interpreter: &Interpreter, setting: Option<&str>) -> Result<(Profile, Finished)> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &["--mode", "exact"]);
    command.arg(&interpreter.python).args(["-c", PROGRAM]);
    if let Some(setting) = setting {
        command.env("PYTHONMALLOC", setting);
    }
    let finished = run(command)?.succeeded()?;
    Ok((load(&output)?, finished))
}

/// The last look is one at what it held, and not at what was left when it had tidied up.
fn command(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = of_command(interpreter, None)?;
    let series = &profile.processes.first().context("no process")?.memory;
    let look = series.latest().context("no look")?;
    let requested = look.figures.requested_bytes().with_context(|| format!("{look:?}"))?;
    ensure!((6 * MIB..20 * MIB).contains(&requested), "{look:?}");
    Ok(())
}

/// Nothing of pymalloc's is nothing, and not unknown.
fn without_pymalloc(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = of_command(interpreter, Some("malloc"))?;
    let look = profile.processes.first().and_then(|process| process.memory.latest()).context("no look")?;
    let pools = look.figures.pools.get().with_context(|| format!("{look:?}"))?;
    ensure!(pools.arenas_bytes == 0 && look.figures.is_complete(), "{look:?}");
    Ok(())
}

/// Objects come from mimalloc; what is between them in its pages is held.
fn without_a_lock(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let text = "import sys, time\nkept = [bytes(300) for _ in range(100_000)]\nprint('ready', flush=True)\nsys.stdin.read()";
    let mut command = std::process::Command::new(&interpreter.python);
    command.args(["-c", text]);
    let mut running = crate::support::Running::start(command)?;
    ensure!(running.line()? == "ready");
    interrupt(tracer(&output, &[running.id()], &["--mode", "exact"])?)?.succeeded()?;
    let profile = load(&output)?;
    let look = profile.processes.first().and_then(|process| process.memory.latest()).context("no look")?;
    let pools = look.figures.pools.get().with_context(|| format!("{look:?}"))?;
    say(&format!("{}: {look:?}", interpreter.label));
    // Each takes 333 bytes; mimalloc's classes are 320 and 384 wide.
    ensure!((33 * MIB..60 * MIB).contains(&pools.in_use_bytes), "{pools:?}");
    ensure!(pools.arenas_bytes >= pools.in_use_bytes, "{pools:?}");
    Ok(())
}
