//! Random programs, seen by alloctrace from outside and by tracemalloc from inside: who holds how much, line by line.
//!
//! A program runs once under each and holds still at its end. What may differ is what tracemalloc re-labels when CPython recycles an object through a
//! free list, which happens without the allocator; so the oracle runs with just that turned off (`tests/programs/truth.py` says how), and nothing else may
//! differ. `ALLOCTRACE_TRUTH_SEEDS=50` compares that many programs in place of a few, `33-35` those.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::machine::Interpreter;
use crate::results::note;
use crate::support::{Finished, Running, alloctrace, folder, program, record, run, say};
use crate::{Test, each};

pub const TESTS: &[Test] = &[
    each("truth::recycled_objects_keep_their_line", recycled_objects_keep_their_line),
    each("truth::lines_agree_with_tracemalloc", lines_agree_with_tracemalloc),
];

const FEW_SEEDS: u64 = 3;
const SHOWN: usize = 10;

/// Bytes and blocks that one line holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    bytes: u64,
    count: u64,
}

/// By `FILE:LINE`, files by their last name.
type Lines = BTreeMap<String, Held>;

/// What it takes to run programs under one interpreter's tracemalloc.
struct Oracle {
    python: PathBuf,
    folder: TempDir,
    switch: String,
}

impl Oracle {
    /// Builds the hook for recycled frames and asks where the interpreter keeps tracemalloc's flag.
    fn new(interpreter: &Interpreter) -> Result<Self> {
        let oracle = Self { python: interpreter.python.clone(), folder: folder()?, switch: String::new() };
        let mut compiler = Command::new("cc");
        // Without a C library: it calls none, and the interpreter's may be another than the compiler's.
        compiler
            .args(["-O1", "-shared", "-fPIC", "-nostdlib", "-o"])
            .arg(oracle.library())
            .arg(program("frame_list.c"));
        run(compiler)?
            .succeeded()
            .context("cannot build frame_list.c; it takes a C compiler: `cargo xtask setup`")?;
        let switch = run(oracle.python(4321, &["switch"]))?.succeeded()?.stdout.trim().to_owned();
        Ok(Self { switch, ..oracle })
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("frame_list.so")
    }

    fn python(&self, frames: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new("setarch");
        self.complete(&mut command, frames, arguments);
        command
    }

    /// The interpreter with arguments and environment: the same for every run, so that it is in the same state. Addresses, too: they are the hashes
    /// of types, and in 2 of 60 runs of CPython 3.14 (seed 35) ten numbers then came from another free list. With addresses fixed: in none of 60.
    fn complete(&self, command: &mut Command, frames: u32, arguments: &[&str]) {
        command
            .arg("--addr-no-randomize")
            .arg(&self.python)
            .args(["-X", &format!("tracemalloc={frames}")])
            .arg(program("truth.py"))
            .args(arguments);
        command
            .env("PYTHONHASHSEED", "0")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONIOENCODING", "utf-8");
    }

    fn arguments<'a>(&'a self, mode: &'a str, library: &'a str, program: &'a str) -> [&'a str; 4] {
        [mode, &self.switch, library, program]
    }

    /// What tracemalloc says; `mode` is `exact` or `plain`.
    fn lines(&self, mode: &str, program: &Path) -> Result<Lines> {
        let (library, program) = (self.library(), program.to_string_lossy());
        let command = self.python(1, &self.arguments(mode, &library.to_string_lossy(), &program));
        let Finished { stdout, .. } = run(command)?.succeeded()?;
        let json = stdout.strip_prefix("READY\n").context("the program did not come to its end")?;
        let lines: BTreeMap<String, (u64, u64)> = serde_json::from_str(json)?;
        Ok(lines.into_iter().map(|(line, (bytes, count))| (line, Held { bytes, count })).collect())
    }

    /// What alloctrace says.
    fn lines_from_outside(&self, program: &Path) -> Result<Lines> {
        let profile = self.folder.path().join("profile.pb.gz");
        let mut command = record(&profile, &["--mode", "exact"]);
        command.arg("setarch");
        let (library, name) = (self.library(), program.to_string_lossy());
        self.complete(&mut command, 0, &self.arguments("hold", &library.to_string_lossy(), &name));
        let mut running = Running::start(command)?;
        let line = running.line()?;
        ensure!(line == "READY", "the program said `{line}`");
        running.signal(Signal::INT)?;
        running.wait_for("wrote")?;
        running.write("\n")?;
        running.finish()?.succeeded()?;
        report(&profile, program)
    }
}

/// `alloctrace report` on a profile, for the files of one folder.
fn report(profile: &Path, program: &Path) -> Result<Lines> {
    let mut command = alloctrace();
    command.arg("report").arg(profile).args(["--by", "line", "--metric", "live", "--format", "json"]);
    let report: Value = serde_json::from_str(&run(command)?.succeeded()?.stdout)?;
    let mut lines = Lines::new();
    for row in report["rows"].as_array().context("a report without rows")? {
        let Some(file) = row["file"].as_str().map(Path::new) else { continue };
        if file.parent() != Some(program) {
            continue;
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let number = |field: &str| row[field].as_u64().with_context(|| format!("no {field} in {row}"));
        // One line may have rows of several functions: lambdas, comprehensions.
        let held = lines.entry(format!("{name}:{}", number("line")?)).or_default();
        held.bytes += number("bytes")?;
        held.count += number("count")?;
    }
    Ok(lines)
}

/// The oracle is what it says: with re-labelling off, a recycled object stays with the line that allocated it.
fn recycled_objects_keep_their_line(interpreter: &Interpreter) -> Result<()> {
    let oracle = Oracle::new(interpreter)?;
    let folder = program("recycled");
    let (first, second) = ("main.py:5", "main.py:9");
    let count = |lines: &Lines, line| lines.get(line).map_or(0, |held: &Held| held.count);
    let plain = oracle.lines("plain", &folder)?;
    let exact = oracle.lines("exact", &folder)?;
    let outside = oracle.lines_from_outside(&folder)?;
    ensure!(count(&plain, second) >= 50, "tracemalloc itself should re-label: {plain:?}");
    ensure!(count(&exact, first) >= 40 && count(&exact, second) < 10, "re-labelling is not off: {exact:?}");
    ensure!(outside == exact, "from outside {outside:?}, from inside {exact:?}");
    Ok(())
}

fn lines_agree_with_tracemalloc(interpreter: &Interpreter) -> Result<()> {
    let (first, seeds) = seeds()?;
    let oracle = Oracle::new(interpreter)?;
    let (mut n_lines, mut n_equal, mut wrong) = (0, 0, Vec::new());
    for seed in first..=seeds {
        let program = oracle.folder.path().join(format!("seed-{seed}"));
        generate(&oracle.python, seed, &program)?;
        let inside = oracle.lines("exact", &program)?;
        let outside = oracle.lines_from_outside(&program)?;
        n_lines += inside.len();
        n_equal += inside.iter().filter(|(line, held)| outside.get(*line) == Some(held)).count();
        wrong.extend(differences(&outside, &inside).into_iter().map(|text| format!("seed {seed}: {text}")));
    }
    say(&format!(
        "{}: {n_equal} of {n_lines} lines of programs {first} to {seeds} are equal to the byte",
        interpreter.label
    ));
    let measured = json!({"lines": n_lines, "equal_lines": n_equal});
    note(interpreter, measured.as_object().context("no object")?)?;
    let shown: Vec<&str> = wrong.iter().take(SHOWN).map(String::as_str).collect();
    ensure!(wrong.is_empty(), "{} of {n_lines} lines disagree; {}", wrong.len(), shown.join("; "));
    ensure!(n_lines >= 20, "only {n_lines} lines held memory: the programs are no test");
    Ok(())
}

/// The first and the last program that are compared.
fn seeds() -> Result<(u64, u64)> {
    let Ok(text) = env::var("ALLOCTRACE_TRUTH_SEEDS") else { return Ok((1, FEW_SEEDS)) };
    let (first, last) = text.split_once('-').unwrap_or(("1", &text));
    let number = |part: &str| {
        part.parse()
            .with_context(|| format!("ALLOCTRACE_TRUTH_SEEDS is `{text}`, neither a number nor `FIRST-LAST`"))
    };
    Ok((number(first)?, number(last)?))
}

fn generate(python: &Path, seed: u64, folder: &Path) -> Result<()> {
    let mut command = Command::new(python);
    command.arg(program("generate.py")).arg(seed.to_string()).arg(folder);
    run(command)?.succeeded().map(drop)
}

/// Lines on which the two accounts disagree by more than one in a hundred and by more than 64 bytes, or four blocks of the smallest size.
fn differences(outside: &Lines, inside: &Lines) -> Vec<String> {
    let agree = |left: u64, right: u64, slack: u64| left.abs_diff(right) <= slack.max(right / 100);
    let lines: BTreeSet<&String> = outside.keys().chain(inside.keys()).collect();
    let mut wrong = Vec::new();
    for line in lines {
        let [ours, theirs] = [outside, inside].map(|lines| lines.get(line).copied().unwrap_or_default());
        if !agree(ours.bytes, theirs.bytes, 64) || !agree(ours.count, theirs.count, 4) {
            wrong.push(format!(
                "{line} holds {} bytes in {} blocks by alloctrace, {} in {} by tracemalloc",
                ours.bytes, ours.count, theirs.bytes, theirs.count
            ));
        }
    }
    wrong
}
