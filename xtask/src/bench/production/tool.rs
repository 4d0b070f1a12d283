//! The tools that a running service is measured under, and switching them on and off in it. Each is off again when what stands for it is dropped.

use super::service::Service;
use crate::command::Invocation;
use crate::workspace;
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// alloctrace arms a running process in a quarter of a second; on a busy machine it takes longer.
const ARMS_WITHIN: Duration = Duration::from_secs(60);
/// It writes its profile before it ends.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// What `record` says when all is armed and it listens to signals. A signal that comes before ends it at once, or is lost.
const ARMED: &str = "alloctrace: recording";

/// A tool, and how it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// Nothing at all, which shows what pairs differ by of themselves
    Nothing,
    /// alloctrace, every allocation and free
    Exact,
    /// alloctrace at its default budget for a running process
    Budget,
    /// alloctrace, growth of resident memory only
    Growth,
    /// memray, started in the process as by `memray attach`
    Memray,
    /// memray with --trace-python-allocators
    MemrayPython,
    /// tracemalloc with 1 frame
    Tracemalloc1,
    /// tracemalloc with 25 frames
    Tracemalloc25,
}

/// Who switches it.
enum Switch {
    Nobody,
    /// `alloctrace record --mode`.
    Recorder(&'static str),
    /// The service itself: `shop.Tools`.
    Service(&'static str),
}

impl Tool {
    pub fn label(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Exact => "alloctrace, exact",
            Self::Budget => "alloctrace, budget",
            Self::Growth => "alloctrace, growth",
            Self::Memray => "memray",
            Self::MemrayPython => "memray, Python allocators",
            Self::Tracemalloc1 => "tracemalloc, 1 frame",
            Self::Tracemalloc25 => "tracemalloc, 25 frames",
        }
    }

    fn switch(self) -> Switch {
        match self {
            Self::Nothing => Switch::Nobody,
            Self::Exact => Switch::Recorder("exact"),
            Self::Budget => Switch::Recorder("budget"),
            Self::Growth => Switch::Recorder("growth"),
            Self::Memray => Switch::Service("memray"),
            Self::MemrayPython => Switch::Service("memray-python"),
            Self::Tracemalloc1 => Switch::Service("tracemalloc-1"),
            Self::Tracemalloc25 => Switch::Service("tracemalloc-25"),
        }
    }

    /// Switch it on; an error says why it cannot be had.
    pub fn switch_on(self, service: &Service) -> Result<Active<'_>> {
        match self.switch() {
            Switch::Nobody => Ok(Active::Nobody),
            Switch::Recorder(mode) => Ok(Active::Recorder(Recorder::start(mode, service.pid)?)),
            Switch::Service(name) => {
                service.ask("tool", name)?;
                Ok(Active::Service(service))
            }
        }
    }
}

/// A tool that is on.
pub enum Active<'service> {
    Nobody,
    Recorder(Recorder),
    Service(&'service Service),
}

impl Active<'_> {
    /// Switch it off, and say if that failed: what is measured next would be measured under it.
    pub fn switch_off(mut self) -> Result<()> {
        match &mut self {
            Self::Nobody => Ok(()),
            Self::Recorder(recorder) => recorder.stop(),
            Self::Service(service) => service.ask("tool", "none").map(drop),
        }
    }
}

/// A running `alloctrace record`.
pub struct Recorder {
    child: Child,
    said: Receiver<String>,
}

impl Recorder {
    /// Start it on a process and wait until that is armed.
    fn start(mode: &'static str, pid: u32) -> Result<Self> {
        let tracer = workspace::root().join("target/release/alloctrace").display().to_string();
        let profile = workspace::scratch().join("production.pb.gz").display().to_string();
        let invocation = Invocation::new(tracer).args([
            "record",
            "-v",
            "--mode",
            mode,
            "--output",
            &profile,
            "--pid",
            &pid.to_string(),
        ]);
        let mut command = invocation.to_command();
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start `{invocation}`"))?;
        let stderr = child.stderr.take().context("alloctrace has no standard error")?;
        let mut recorder = Self { child, said: lines(stderr) };
        recorder.wait_until_armed(mode)?;
        Ok(recorder)
    }

    fn wait_until_armed(&mut self, mode: &str) -> Result<()> {
        let until = Instant::now() + ARMS_WITHIN;
        let mut said = Vec::new();
        loop {
            match self.said.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(ARMED) => return Ok(()),
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("alloctrace did not arm the service in {ARMS_WITHIN:?}")
                }
                Err(RecvTimeoutError::Disconnected) => bail!(reason(mode, &said)),
            }
        }
    }

    fn stop(&mut self) -> Result<()> {
        let interrupt = Invocation::new("kill").args(["-INT".to_owned(), self.child.id().to_string()]);
        interrupt.to_command().status().context("failed to interrupt alloctrace")?;
        let until = Instant::now() + ENDS_WITHIN;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().context("cannot wait for alloctrace")? {
                ensure!(status.success(), "alloctrace ended with {status}");
                return Ok(());
            }
            // Its pipe is read by a thread; nothing here may keep it from ending.
            sleep(Duration::from_millis(10));
        }
        bail!("alloctrace did not end in {ENDS_WITHIN:?}")
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What it says, read as it comes, so that it never waits for us.
fn lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // The receiver listens only until the process is armed; the pipe must be read all the same.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Why it ended before anything was armed: clap names a value that it does not know.
fn reason(mode: &str, said: &[String]) -> String {
    if said.iter().any(|line| line.contains(&format!("invalid value '{mode}'"))) {
        return "not built yet".to_owned();
    }
    said.iter().rev().find(|line| !line.trim().is_empty()).map_or_else(
        || "alloctrace ended at once and said nothing".to_owned(),
        |line| format!("alloctrace said: {line}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_that_is_refused_is_not_built_yet() {
        let said = ["error: invalid value 'budget' for '--mode <MODE>'", "  [possible values: exact]", ""];
        assert_eq!(reason("budget", &said.map(str::to_owned)), "not built yet");
    }

    #[test]
    fn another_reason_is_quoted() {
        let said = ["error: needs root".to_owned(), String::new()];
        assert_eq!(reason("exact", &said), "alloctrace said: error: needs root");
        assert_eq!(reason("exact", &[]), "alloctrace ended at once and said nothing");
    }
}
