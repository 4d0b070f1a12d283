//! Runs tracers and targets, and reads profiles. Every process that is started here is killed when its
//! owner is dropped.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{env, fs};

use alloctrace::profile::{Profile, pprof};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::machine::Interpreter;

/// After this long something hangs. It is no expectation: nothing that works comes near it.
const HANGS: Duration = Duration::from_secs(240);

/// Prints a figure or a reason; the harness captures nothing.
pub fn say(line: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "    {line}");
}

/// A test program.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// A folder of its own.
pub fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("alloctrace-test-").tempdir()?)
}

/// Our binary.
pub fn alloctrace() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alloctrace"));
    command.env_remove("PYTHONPATH").env_remove("PYTHONMALLOC").env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// `alloctrace record -o OUTPUT FLAGS... --`; what is to be run comes behind.
pub fn record(output: &Path, flags: &[&str]) -> Command {
    let mut command = alloctrace();
    command.arg("record").arg("-o").arg(output).args(flags);
    if !flags.iter().any(|flag| matches!(*flag, "--mode" | "--budget")) {
        // Tests count every block.
        command.args(["--mode", "exact"]);
    }
    command.arg("--");
    command
}

/// Something that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its exit status.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn succeeded(self) -> Result<Self> {
        ensure!(self.status.success(), "ended with {}: {}", self.status, self.stderr);
        Ok(self)
    }

    /// Its one line of errors.
    pub fn one_line(&self) -> Result<&str> {
        let line = self.stderr.trim_end_matches('\n');
        ensure!(!line.is_empty() && !line.contains('\n'), "not one line of errors: `{line}`");
        ensure!(line.starts_with("alloctrace: "), "not an error of ours: `{line}`");
        Ok(line)
    }
}

/// A process of a test in a process group of its own, which is killed as a whole.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    stderr: String,
}

impl Running {
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        let stderr = child.stderr.take().context("no stderr")?;
        let (sender, lines) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, stdout, lines, reader: Some(reader), stderr: String::new() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.id(), signal)
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.as_mut().context("no stdout")?.read_line(&mut line)?;
        ensure!(!line.is_empty(), "process {} ended early: {}", self.child.id(), self.errors());
        Ok(line.trim_end().to_owned())
    }

    /// Waits for a line of its errors.
    pub fn wait_for(&mut self, part: &str) -> Result<String> {
        loop {
            match self.lines.recv_timeout(HANGS) {
                Ok(line) => {
                    let found = line.contains(part);
                    self.stderr.push_str(&line);
                    self.stderr.push('\n');
                    if found {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("`{part}` never came; what came: {}", self.stderr),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("ended without `{part}`; what came: {}", self.stderr)
                }
            }
        }
    }

    fn errors(&mut self) -> String {
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
            self.stderr.push_str(&line);
            self.stderr.push('\n');
        }
        self.stderr.clone()
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<Finished> {
        drop(self.stdin.take());
        let pid = self.id();
        let watchdog = Watchdog::start(pid);
        let mut stdout = Vec::new();
        if let Some(mut reader) = self.stdout.take() {
            reader.read_to_end(&mut stdout)?;
        }
        let status = self.child.wait()?;
        let hung = watchdog.stop();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let stderr = self.errors();
        ensure!(!hung, "process {pid} hung; what came: {stderr}");
        Ok(Finished { status, stdout: String::from_utf8_lossy(&stdout).into_owned(), stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_group(self.id());
        let _ = self.child.wait();
    }
}

/// Kills a process group if it hangs.
struct Watchdog {
    stop: std::sync::mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    fn start(pid: u32) -> Self {
        let (stop, stopped) = channel();
        let thread = thread::spawn(move || {
            let hung = stopped.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout);
            if hung {
                kill_group(pid);
            }
            hung
        });
        Self { stop, thread }
    }

    fn stop(self) -> bool {
        let _ = self.stop.send(());
        self.thread.join().unwrap_or(true)
    }
}

fn kill_group(pid: u32) {
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Sends a signal to one process.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    Ok(kill_process(pid, signal)?)
}

/// Runs a command to its end.
pub fn run(command: Command) -> Result<Finished> {
    Running::start(command)?.finish()
}

/// Starts a test program in an interpreter, and waits until it says that it is ready.
pub fn target<S: AsRef<OsStr>>(interpreter: &Interpreter, name: &str, arguments: &[S]) -> Result<Running> {
    let mut command = python(interpreter, name);
    command.args(arguments);
    let mut running = Running::start(command)?;
    let line = running.line()?;
    ensure!(line == "ready", "the target said `{line}`");
    Ok(running)
}

/// The command line of a test program.
pub fn python(interpreter: &Interpreter, name: &str) -> Command {
    let mut command = Command::new(&interpreter.python);
    command.arg("-I").arg(program(name)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A tracer of processes that run, armed.
pub fn tracer(output: &Path, pids: &[u32], flags: &[&str]) -> Result<Running> {
    let mut command = alloctrace();
    command.arg("record").arg("-o").arg(output).args(flags);
    if !flags.iter().any(|flag| matches!(*flag, "--mode" | "--budget")) {
        // Tests count every block.
        command.args(["--mode", "exact"]);
    }
    for pid in pids {
        command.arg("-p").arg(pid.to_string());
    }
    let mut running = Running::start(command)?;
    running.wait_for("recording; Ctrl-C ends it")?;
    Ok(running)
}

/// A Ctrl-C, and what comes of it.
pub fn interrupt(tracer: Running) -> Result<Finished> {
    tracer.signal(Signal::INT)?;
    tracer.finish()
}

/// Whether a process is there and no zombie.
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// How a killed process ended.
pub fn was_killed_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal.as_raw())
}

/// Reads a profile.
pub fn load(path: &Path) -> Result<Profile> {
    let bytes = fs::read(path).with_context(|| format!("no profile `{}`", path.display()))?;
    Ok(pprof::decode(&bytes)?)
}

/// Records a test program to its end and reads the profile.
pub fn record_program<S: AsRef<OsStr>>(
    interpreter: &Interpreter,
    name: &str,
    arguments: &[S],
    flags: &[&str],
) -> Result<(Profile, Finished)> {
    let folder = folder()?;
    let output = folder.path().join("profile.pb.gz");
    let mut command = record(&output, flags);
    command.arg(&interpreter.python).arg("-I").arg(program(name)).args(arguments);
    let finished = run(command)?.succeeded()?;
    Ok((load(&output)?, finished))
}
