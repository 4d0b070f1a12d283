//! Running the workload under somebody's eyes, and reading how long it says that it took.

use super::interpreters::Interpreter;
use crate::command::{Invocation, Runner};
use crate::workspace;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;

/// Blocks that live at once while the document is parsed, and then some.
const LIVE_BLOCKS: &str = "524288";

/// Somebody who runs the workload.
pub struct Contender {
    pub name: &'static str,
    iterations: u32,
    command: Invocation,
    in_one_word: bool,
}

impl Contender {
    /// `iterations`: enough for a figure, and not so many that the slow take minutes. The workload and its arguments come behind `command`.
    pub fn new(name: &'static str, iterations: u32, command: Invocation) -> Self {
        Self { name, iterations, command, in_one_word: false }
    }

    /// The command line of the workload is one argument, the last of `command` being its beginning.
    pub fn in_one_word(mut self) -> Self {
        self.in_one_word = true;
        self
    }

    fn invocation(&self, workload: &Path, result: &Path) -> Invocation {
        let arguments =
            [workload.display().to_string(), self.iterations.to_string(), result.display().to_string()];
        let mut invocation = self.command.clone();
        if self.in_one_word {
            if let Some(last) = invocation.arguments.last_mut() {
                *last = format!("{last} {}", arguments.join(" "));
            }
            return invocation;
        }
        invocation.args(arguments)
    }
}

/// Seconds of the target's processor time for one iteration.
pub fn seconds(runner: &impl Runner, contender: &Contender, workload: &Path) -> Result<f64> {
    let result = workspace::scratch().join("bench.seconds");
    fs::create_dir_all(workspace::scratch()).context("failed to create the folder for results")?;
    // A result of the one before must not be taken for this one's.
    let _ = fs::remove_file(&result);
    runner
        .output(&contender.invocation(workload, &result))
        .with_context(|| format!("cannot measure {}", contender.name))?;
    let text = fs::read_to_string(&result).with_context(|| format!("{} left no result", contender.name))?;
    text.trim().parse().with_context(|| format!("{} left `{text}`, not a number", contender.name))
}

/// A bpftrace that keeps the account on an interpreter's allocator functions.
pub fn bpftrace(interpreter: &Interpreter) -> Result<Invocation> {
    let script = workspace::root().join("xtask/bench/account.bt");
    let text =
        fs::read_to_string(&script).with_context(|| format!("failed to read `{}`", script.display()))?;
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("bpftrace").is_file()));
    ensure!(found, "it is not installed; `cargo xtask setup` brings it");
    let text = text.replace("LIBRARY:", &format!("{}:", interpreter.allocator.display()));
    let filled = workspace::scratch().join("account.bt");
    fs::create_dir_all(workspace::scratch()).context("failed to create the folder for results")?;
    fs::write(&filled, text).with_context(|| format!("failed to write `{}`", filled.display()))?;
    Ok(Invocation::new("bpftrace")
        .args([
            "-q".to_owned(),
            filled.display().to_string(),
            "-c".to_owned(),
            interpreter.python.display().to_string(),
        ])
        .env("BPFTRACE_MAP_KEYS_MAX", LIVE_BLOCKS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    #[test]
    fn the_workload_comes_behind_the_command() {
        let plain = Contender::new("a", 3, Invocation::new("python"));
        let line = plain.invocation(Path::new("w.py"), Path::new("out")).to_string();
        assert_eq!(line, "python w.py 3 out");
        let word = Contender::new("b", 1, Invocation::new("bpftrace").args(["-c", "python"])).in_one_word();
        assert_eq!(
            word.invocation(Path::new("w.py"), Path::new("out")).arguments,
            ["-c", "python w.py 1 out"]
        );
    }

    #[test]
    fn a_contender_that_fails_is_named() {
        let machine = Script::default().fails("python", "Traceback");
        let error = seconds(&machine, &Contender::new("a", 3, Invocation::new("python")), Path::new("w.py"))
            .unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot measure a: `python w.py 3"), "{error:#}");
    }
}
