//! Running other programs, behind a trait, so that tests can play a machine where a server is out of reach or a package is gone.

use anyhow::{Context as _, Result, bail};
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// One program to run: what, with what, where.
#[derive(Debug, Clone, Default)]
pub struct Invocation {
    pub program: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub without: Vec<String>,
    pub directory: Option<PathBuf>,
}

impl Invocation {
    pub fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), ..Self::default() }
    }

    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.without.push(name.to_owned());
        self
    }

    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// The same as a standard command, for callers that read its output as it comes.
    pub fn to_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        for name in &self.without {
            command.env_remove(name);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.program)?;
        self.arguments.iter().try_for_each(|argument| write!(formatter, " {argument}"))
    }
}

/// How a program ended and what it said.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Runs programs: the machine, or a test's idea of one.
pub trait Runner {
    /// Run to the end. An error means that the program could not be started at all.
    fn run(&self, invocation: &Invocation) -> Result<Outcome>;

    /// Run to the end and return standard output; a failing status is an error that carries the program's last words.
    fn output(&self, invocation: &Invocation) -> Result<String> {
        let outcome = self.run(invocation)?;
        if !outcome.success {
            bail!("`{invocation}` failed{}", last_words(&outcome.stderr));
        }
        Ok(outcome.stdout)
    }

    /// Whether the program can be started and says that all is well.
    fn succeeds(&self, invocation: &Invocation) -> bool {
        self.run(invocation).is_ok_and(|outcome| outcome.success)
    }
}

/// The machine itself.
pub struct Machine;

impl Runner for Machine {
    fn run(&self, invocation: &Invocation) -> Result<Outcome> {
        let output = invocation
            .to_command()
            .output()
            .with_context(|| format!("failed to start `{}`", invocation.program))?;
        Ok(Outcome {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// The last lines a program wrote, as an end to an error text.
fn last_words(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(3)..];
    if tail.is_empty() { String::new() } else { format!(": {}", tail.join("; ")) }
}

#[cfg(test)]
pub mod scripted {
    //! A machine that answers from a list.

    use super::{Invocation, Outcome, Result, Runner, bail};
    use std::cell::RefCell;

    /// Answers each invocation by the first entry whose text the invocation begins with; `None` means that the program does not exist.
    #[derive(Default)]
    pub struct Script {
        pub answers: Vec<(String, Option<Outcome>)>,
        pub log: RefCell<Vec<String>>,
    }

    impl Script {
        pub fn says(mut self, start: &str, stdout: &str) -> Self {
            let outcome = Outcome { success: true, stdout: stdout.to_owned(), stderr: String::new() };
            self.answers.push((start.to_owned(), Some(outcome)));
            self
        }

        pub fn fails(mut self, start: &str, stderr: &str) -> Self {
            let outcome = Outcome { success: false, stdout: String::new(), stderr: stderr.to_owned() };
            self.answers.push((start.to_owned(), Some(outcome)));
            self
        }

        pub fn ran(&self, start: &str) -> bool {
            self.log.borrow().iter().any(|line| line.starts_with(start))
        }
    }

    impl Runner for Script {
        fn run(&self, invocation: &Invocation) -> Result<Outcome> {
            let text = invocation.to_string();
            self.log.borrow_mut().push(text.clone());
            match self.answers.iter().find(|(start, _)| text.starts_with(start)) {
                Some((_, Some(outcome))) => Ok(outcome.clone()),
                _ => bail!("failed to start `{}`", invocation.program),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::scripted::Script;
    use super::*;

    #[test]
    fn a_failing_program_is_quoted_with_its_last_words() {
        let machine = Script::default().fails("tool", "one\ntwo\n\nthree\nfour\n");
        let error = machine.output(&Invocation::new("tool").args(["--flag"])).unwrap_err();
        assert_eq!(error.to_string(), "`tool --flag` failed: two; three; four");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Machine.output(&Invocation::new("no-such-program-anywhere")).unwrap_err();
        assert_eq!(error.to_string(), "failed to start `no-such-program-anywhere`");
    }
}
