//! Finds interpreters, runs tracers and targets, and asks profiles. Every process that is started here is killed when its
//! owner is dropped.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{env, fs};

use alloctrace::profile::{Amount, Coverage, Domain, FrameKind, Losses, Metric, Profile, Sample, pprof};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// After this long something hangs. It is no expectation: nothing that works comes near it.
const HANGS: Duration = Duration::from_secs(240);

/// One installed interpreter.
#[derive(Debug, Clone)]
pub struct Interpreter {
    pub label: String,
    pub python: PathBuf,
    pub minor: u8,
    pub is_free_threaded: bool,
}

/// Prints a figure or a reason; the harness captures nothing.
pub fn say(line: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "    {line}");
}

/// Every interpreter with a lock that should be traced: pyenv's, and the system's.
pub fn interpreters() -> Vec<Interpreter> {
    of_kind(false)
}

/// Every free-threaded one of a version that is not refused.
pub fn free_threaded() -> Vec<Interpreter> {
    of_kind(true).into_iter().filter(|interpreter| matches!(interpreter.minor, 13 | 14)).collect()
}

fn of_kind(is_free_threaded: bool) -> Vec<Interpreter> {
    let mut found: Vec<Interpreter> = installed()
        .filter(|interpreter| (8..=15).contains(&interpreter.minor))
        .filter(|interpreter| interpreter.is_free_threaded == is_free_threaded)
        .collect();
    found.sort_by_key(|interpreter| (interpreter.minor, interpreter.label.clone()));
    found
}

/// Interpreters that are too old.
pub fn unsupported() -> Vec<Interpreter> {
    installed()
        .filter(|interpreter| matches!(interpreter.minor, 6 | 7)) // the minor version of 2.7 is 7, too
        .collect()
}

/// The system's own, the hardest to trace; else the newest.
pub fn preferred(found: &[Interpreter]) -> Option<Interpreter> {
    found.iter().find(|interpreter| interpreter.label.ends_with("system")).or_else(|| found.last()).cloned()
}

/// pyenv's folder.
pub fn pyenv_root() -> Option<PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    root.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv"))).filter(|root| root.exists())
}

fn installed() -> impl Iterator<Item = Interpreter> {
    let versions = pyenv_root().and_then(|root| fs::read_dir(root.join("versions")).ok());
    let pyenv = versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python"));
    let system = (8..=15).map(|minor| PathBuf::from(format!("/usr/bin/python3.{minor}")));
    pyenv.chain(system).chain(unpacked()).filter_map(|python| probe(&python))
}

/// The scripts that run what `cargo xtask setup` has unpacked, each in a root and a mount namespace of its own.
fn unpacked() -> impl Iterator<Item = PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons/bin");
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// What was built and not unpacked stands beside those scripts and says so in its name.
fn built(python: &Path) -> Option<&'static str> {
    let name = python.file_name()?.to_str()?;
    ["musl", "clang", "source"].into_iter().find(|kind| name.starts_with(&format!("{kind}-")))
}

/// Interpreters built with `--with-pydebug`: what `cargo xtask setup` has unpacked, and the system's.
pub fn debug_builds() -> Vec<Interpreter> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons/debug");
    let unpacked = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let system = (8..=15).map(|minor| PathBuf::from(format!("/usr/bin/python3.{minor}d")));
    unpacked.chain(system).filter_map(|python| probe(&python)).collect()
}

fn probe(python: &Path) -> Option<Interpreter> {
    let program = "import sys; print(sys.version_info[1], sys.version.split()[0], hasattr(sys, '_is_gil_enabled') and not sys._is_gil_enabled())";
    let output = Command::new(python).args(["-E", "-s", "-c", program]).output().ok()?;
    // 2.7 prints a tuple.
    let text = String::from_utf8(output.stdout).ok()?.replace(['(', ')', ',', '\''], "");
    let [minor, version, free_threaded] = text.trim().splitn(3, ' ').collect::<Vec<_>>().try_into().ok()?;
    let is_unpacked = python.ends_with(Path::new("pythons/bin").join(python.file_name()?));
    let origin = match built(python) {
        Some(kind) if is_unpacked => kind,
        _ if is_unpacked => "debian",
        _ if python.starts_with("/usr") => "system",
        _ => "pyenv",
    };
    Some(Interpreter {
        label: format!("{version}_{origin}"),
        python: python.to_owned(),
        minor: minor.parse().ok()?,
        is_free_threaded: free_threaded == "True",
    })
}

/// Why nothing can be traced here, from what the system says of us and of itself.
pub fn cannot_trace() -> Option<String> {
    if env::var_os("ALLOCTRACE_UNPRIVILEGED").is_some() {
        return Some("left out on request".to_owned());
    }
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Some("probe points are found in x86_64 and arm64 code only".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no type information".to_owned());
    }
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let lacks = [
        ("CAP_SYS_PTRACE", 19),
        ("CAP_SYS_ADMIN", 21),
        ("CAP_SETUID", 7),
        ("CAP_BPF", 39),
        ("CAP_PERFMON", 38),
    ];
    let lacks: Vec<&str> =
        lacks.iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| *name).collect();
    (!lacks.is_empty()).then(|| format!("without {}", lacks.join(", ")))
}

/// Whether a program is in `PATH`.
pub fn has_program(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(name).exists()))
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
    command.arg("record").arg("-o").arg(output).args(flags).arg("--");
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

/// Questions to a profile.
pub struct Asked<'a>(pub &'a Profile);

impl Asked<'_> {
    /// The frames of a sample, innermost first.
    pub fn frames<'b>(&'b self, sample: &'b Sample) -> impl Iterator<Item = &'b alloctrace::profile::Frame> {
        sample.stack.iter().filter_map(|id| self.0.frames.get_index(id.0 as usize))
    }

    /// The innermost frame's function; a reason where it is none.
    pub fn innermost<'b>(&'b self, sample: &'b Sample) -> &'b str {
        self.frames(sample).next().map_or("", |frame| &frame.function)
    }

    /// The sum over samples for which `is_asked` holds.
    pub fn sum(&self, metric: Metric, is_asked: impl Fn(&Sample) -> bool) -> Amount {
        let samples = self.0.samples.iter().filter(|sample| is_asked(sample));
        samples.fold(Amount::default(), |sum, sample| sum.plus(metric.of(&sample.values)))
    }

    /// The sum over stacks whose innermost function is `function`.
    pub fn function(&self, metric: Metric, domain: Domain, function: &str) -> Amount {
        self.sum(metric, |sample| sample.domain == domain && self.innermost(sample) == function)
    }

    /// The names of the Python functions of every sample, outermost first.
    pub fn stacks(&self) -> HashSet<Vec<String>> {
        let names = |sample| {
            let mut names: Vec<String> = self.frames(sample).map(|frame| frame.function.clone()).collect();
            names.reverse();
            names
        };
        self.0.samples.iter().map(names).collect()
    }

    /// Whether `names` follow one another, outermost first, in some stack.
    pub fn has_stack(&self, names: &[&str]) -> bool {
        self.stacks().iter().any(|stack| stack.windows(names.len()).any(|part| part == names))
    }

    /// Every reason that stands in place of a frame.
    pub fn markers(&self) -> HashSet<&str> {
        self.0
            .frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Marker)
            .map(|frame| &*frame.function)
            .collect()
    }

    /// Shares of allocations and frees seen, as far as the pools can tell.
    pub fn coverage(&self) -> Result<(f64, f64)> {
        match &self.0.recording.coverage {
            // A target that runs while its pools are read is counted at no single moment (CI: 0.1 % in 20 ms).
            Coverage::Measured { allocations, frees, uncertainty, .. } => {
                Ok(((allocations + uncertainty).min(1.0), (frees + uncertainty).min(1.0)))
            }
            Coverage::Unmeasured { unmeasured } => bail!("coverage was not measured: {unmeasured}"),
        }
    }

    /// Fails unless everything was seen and nothing lost.
    pub fn is_whole(&self) -> Result<()> {
        let (allocations, frees) = self.coverage()?;
        ensure!(
            allocations >= 0.999 && frees >= 0.999,
            "coverage {allocations} of allocations, {frees} of frees"
        );
        self.has_lost_nothing()
    }

    /// Python functions whose line is not known, but for those of code that `exec` has made.
    pub fn frames_without_a_line(&self) -> Vec<&str> {
        let python = self.0.frames.iter().filter(|frame| frame.kind == FrameKind::Python && frame.line == 0);
        python
            .filter(|frame| frame.file.as_deref() != Some("<string>"))
            .map(|frame| &*frame.function)
            .collect()
    }

    /// Fails if anything was lost for good.
    pub fn has_lost_nothing(&self) -> Result<()> {
        // A record that found the ring buffer full, because the tracer had no processor, is sent again: its stack or its name
        // would be missing if it was not.
        let mut losses = Losses { ring_full: 0, ..self.0.recording.losses.clone() };
        // Code that `exec` makes and drops may be taken for other code that was at its address before: see the ignored
        // test of code at one address.
        if self.frames_without_a_line().is_empty() {
            losses.unresolved_frames = 0;
        }
        ensure!(losses == Losses::default(), "lost: {:?}", self.0.recording.losses);
        let missing = self.markers().into_iter().find(|marker| marker.contains("not received"));
        ensure!(missing.is_none(), "{missing:?}: {:?}", self.0.recording.losses);
        Ok(())
    }
}

/// Bytes and blocks.
pub fn amount(bytes: u64, count: u64) -> Amount {
    Amount { bytes, count }
}

/// What pymalloc spends on a request.
pub fn size_class(bytes: u64) -> u64 {
    bytes.next_multiple_of(16)
}
