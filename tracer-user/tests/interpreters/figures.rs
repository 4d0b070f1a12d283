//! What memory is made of, against what the allocators themselves say: pymalloc's statistics and glibc's `mallinfo2`.

use std::{
    io::Write as _,
    path::Path,
    process::{ChildStdin, Stdio},
    time::Instant,
};

use alloctrace::{
    census::figures::{FigureReader, Objects},
    discover,
    profile::Figures,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::support::{Interpreter, Target};

/// At a heap that never rests.
const LOOKS: u32 = 100;

/// Blocks and chunks that answering a question moves.
const SLACK: u64 = 64 << 10;

struct Asked {
    target: Target,
    input: ChildStdin,
    reader: FigureReader,
}

impl Asked {
    fn start(interpreter: &Interpreter, case: &str) -> Result<Self> {
        let mut target = Target::start_asked(interpreter, "figures.py", &[case], Stdio::inherit())?;
        let input = target.child.stdin.take().context("no stdin")?;
        ensure!(target.line()?.trim() == "ready");
        let found = discover::Target::inspect(Path::new("/proc"), target.child.id())?;
        Ok(Self { target, input, reader: FigureReader::new(found) })
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        self.input.write_all(question.as_bytes())?;
        self.input.flush()?;
        self.target.line()
    }

    /// What we see, and what it says itself; it waits for its input in between.
    fn look(&mut self) -> Result<(Figures, Value)> {
        self.target.wait_until('S')?;
        let figures = self.reader.read(Objects::Pymalloc);
        Ok((figures, serde_json::from_str(&self.ask("truth\n")?)?))
    }
}

fn near(what: &str, found: u64, expected: u64) -> Result<()> {
    ensure!(
        found.abs_diff(expected) <= expected / 100 + SLACK,
        "{what}: {found}, the process says {expected}"
    );
    Ok(())
}

fn compare(figures: &Figures, truth: &Value) -> Result<()> {
    let said = |name: &str| truth[name].as_u64().with_context(|| format!("no {name}: {truth}"));
    let pools = figures.pools.get().with_context(|| format!("{figures:?}"))?;
    near("blocks in use", pools.in_use_bytes, said("pools_in_use")?)?;
    near("free blocks", pools.free_in_pools_bytes, said("pools_free_blocks")?)?;
    near("arenas", pools.arenas_bytes, said("arenas")?)?;
    ensure!(pools.uncertain_bytes == 0, "{pools:?}");
    if truth["uordblks"].is_null() {
        ensure!(figures.malloc.reason().is_some_and(|reason| reason.contains("musl")), "{figures:?}");
        return Ok(());
    }
    let malloc = figures.malloc.get().with_context(|| format!("{figures:?}"))?;
    // glibc counts chunks in caches of threads as in use, and headers with their chunks.
    let fast = said("fsmblks")?;
    let in_use = malloc.in_use_bytes + 8 * malloc.in_use_chunks + malloc.cached_bytes - fast;
    near("chunks in use", in_use, said("uordblks")?)?;
    near("free chunks", malloc.free_bytes - malloc.cached_bytes + fast, said("fordblks")?)?;
    near("mapped chunks", malloc.mapped_bytes, said("hblkhd")?)?;
    ensure!(malloc.mapped_chunks == said("hblks")?, "{malloc:?}");
    ensure!(figures.is_complete());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the time a look takes is a figure of the project")]
fn check(interpreter: &Interpreter, case: &str) -> Result<()> {
    let mut asked = Asked::start(interpreter, case)?;
    for step in 0..2 {
        if step > 0 {
            asked.ask("step\n")?;
        }
        let started = Instant::now();
        let (figures, truth) = asked.look()?;
        println!("{} {case} {step}: {figures:?} {:.1?} {truth}", interpreter.label, started.elapsed());
        compare(&figures, &truth).with_context(|| format!("{case}, step {step}"))?;
    }
    Ok(())
}

pub fn check_mixed(interpreter: &Interpreter) -> Result<()> {
    check(interpreter, "mixed")
}

pub fn check_fragment(interpreter: &Interpreter) -> Result<()> {
    check(interpreter, "fragment")
}

pub fn check_leak(interpreter: &Interpreter) -> Result<()> {
    check(interpreter, "leak")
}

pub fn check_threads(interpreter: &Interpreter) -> Result<()> {
    check(interpreter, "threads")
}

/// Heaps that two threads change all the time under the reader: looks that hold together are believable, and there are enough of them.
/// How many depends on how often the reader is interrupted.
#[expect(clippy::print_stdout, reason = "how often is a figure of the project")]
pub fn check_churn(interpreter: &Interpreter) -> Result<()> {
    let mut asked = Asked::start(interpreter, "churn")?;
    let (mut known, mut unknown, mut uncertain) = (0, Vec::new(), 0);
    for _ in 0..LOOKS {
        let figures = asked.reader.read(Objects::Pymalloc);
        match figures.malloc.get() {
            Some(malloc) => {
                known += 1;
                uncertain += u32::from(malloc.reread_bytes > 0);
                ensure!((5 << 20..80 << 20).contains(&malloc.in_use_bytes), "{malloc:?}");
            }
            None => unknown.extend(figures.malloc.reason().map(str::to_owned)),
        }
    }
    unknown.dedup();
    println!("{}: {known} of {LOOKS} known, {uncertain} read in part again; {unknown:?}", interpreter.label);
    let is_musl = unknown.iter().any(|reason| reason.contains("musl"));
    ensure!(known >= LOOKS / 2 || is_musl, "{known}: {unknown:?}");
    Ok(())
}
