//! The sidecar with real services and the real kernel: it answers, remembers, survives, and keeps the last account of who is killed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloctrace::profile::{Metric, Profile};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use crate::machine::Interpreter;
use crate::support::{Running, alloctrace, folder, load, python, say};
use crate::{Test, one};

pub const TESTS: &[Test] = &[
    one("serving::answers_and_remembers", answers_and_remembers),
    one("serving::killed_at_any_moment", killed_at_any_moment),
    one("serving::out_of_memory", out_of_memory).only_if(has_memory_groups),
];

/// Nothing that works takes as long.
const HANGS: Duration = Duration::from_secs(120);

/// A sidecar.
struct Sidecar {
    running: Running,
    address: SocketAddr,
}

impl Sidecar {
    fn start(history: &Path, flags: &[&str]) -> Result<Self> {
        // Free a moment ago; nobody else takes it in the next.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = alloctrace();
        command.args(["serve", "--listen", &address.to_string(), "--history"]).arg(history).args(flags);
        let mut running = Running::start(command)?;
        running.wait_for("answering on")?;
        Ok(Self { running, address })
    }

    /// Status and body.
    fn get(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").context("no end of headers")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let body = answer.split_off(end + 4);
        // Bodies here are whole, not in chunks: every answer says its length.
        ensure!(!head.to_lowercase().contains("transfer-encoding"), "an answer in chunks: {head}");
        Ok((status, body))
    }

    fn text(&self, path: &str) -> Result<String> {
        let (status, body) = self.get(path)?;
        let text = String::from_utf8_lossy(&body).into_owned();
        ensure!(status == 200, "{path}: {status} {text}");
        Ok(text)
    }

    /// Waits until an answer is as it should be.
    fn until(&self, path: &str, is_so: impl Fn(u16, &str) -> bool) -> Result<String> {
        let began = Instant::now();
        loop {
            let (status, body) = self.get(path)?;
            let text = String::from_utf8_lossy(&body).into_owned();
            if is_so(status, &text) {
                return Ok(text);
            }
            if began.elapsed() > HANGS {
                bail!("{path} still says {status} {}", text.chars().take(2000).collect::<String>());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn end(self) -> Result<()> {
        self.running.signal(Signal::TERM)?;
        self.running.finish()?.succeeded()?;
        Ok(())
    }
}

fn hoarder(interpreter: &Interpreter, speed: &str, most: &str) -> Result<Running> {
    let mut command = python(interpreter, "hoards.py");
    command.args([speed, most]);
    let mut running = Running::start(command)?;
    ensure!(running.line()?.contains("ready"));
    Ok(running)
}

/// All files of a folder and those below.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

fn profiles(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(files(folder)?.into_iter().filter(|path| path.to_string_lossy().ends_with(".pb.gz")).collect())
}

fn holds(profile: &Profile, function: &str) -> u64 {
    let is_of = |id: &alloctrace::profile::FrameId| {
        profile.frames.get_index(id.0 as usize).is_some_and(|frame| frame.function.contains(function))
    };
    let of = profile.samples.iter().filter(|sample| sample.stack.iter().any(|id| is_of(&id)));
    of.map(|sample| sample.amount(Metric::Live).bytes).sum()
}

fn answers_and_remembers(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let history = folder.path().join("history");
    let target = hoarder(interpreter, "8", "400")?;
    let pid = target.id().to_string();
    let sidecar = Sidecar::start(&history, &["-p", &pid, "--budget", "10"])?;
    sidecar.until("/readyz", |status, _| status == 200)?;
    // Resident memory is known exactly: most of it is of one line.
    let report = sidecar.until("/report.json?kind=resident&by=function", |status, text| {
        status == 200 && text.contains("hoard")
    })?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let first = &report["rows"][0];
    ensure!(first["function"].as_str().is_some_and(|name| name.contains("hoard")), "first is {first}");
    let allocated = sidecar.until("/report.json?metric=allocated&by=function", |status, text| {
        status == 200 && text.contains("churn")
    })?;
    ensure!(serde_json::from_str::<serde_json::Value>(&allocated)?["mode"] == "budget");
    for path in [
        "/",
        "/flamegraph.svg?kind=resident",
        "/folded?kind=resident",
        "/metrics",
        "/openapi.json",
        "/census.json",
    ] {
        let text = sidecar.text(path)?;
        ensure!(!text.is_empty(), "{path} is empty");
    }
    // Who looks at the page sees the line, also where windows do not know what lives.
    ensure!(sidecar.text("/")?.contains("hoards.py:"), "the page does not name the line");
    let metrics = sidecar.text("/metrics")?;
    ensure!(metrics.contains("alloctrace_resident_bytes") && metrics.contains(&pid), "{metrics}");
    ensure!(sidecar.get("/nothing")?.0 == 404 && sidecar.get("/report.json?by=nonsense")?.0 == 400);
    sidecar.end()?;
    let before = profiles(&history)?;
    ensure!(before.len() >= 2, "files: {before:?}");
    ensure!(before.iter().all(|path| load(path).is_ok()), "a file cannot be read: {before:?}");
    // What was is still known, and the process goes on.
    let sidecar = Sidecar::start(&history, &["-p", &pid])?;
    let past = sidecar.text("/report.json?kind=resident&by=function&from=-1h&to=-0s")?;
    ensure!(past.contains("hoard"), "the past holds {past}");
    sidecar.end()?;
    ensure!(crate::support::is_running(target.id()), "the service has ended");
    Ok(())
}

fn killed_at_any_moment(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let history = folder.path().join("history");
    let target = hoarder(interpreter, "8", "100")?;
    let pid = target.id().to_string();
    for milliseconds in [150, 700, 2_500, 11_000] {
        let sidecar = Sidecar::start(&history, &["-p", &pid])?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        sidecar.running.signal(Signal::KILL)?;
        drop(sidecar);
        ensure!(profiles(&history)?.iter().all(|path| load(path).is_ok()), "a file cannot be read");
        ensure!(crate::support::is_running(target.id()), "the service has ended");
    }
    let sidecar = Sidecar::start(&history, &["-p", &pid])?;
    sidecar.until("/readyz", |status, _| status == 200)?;
    sidecar.end()
}

/// Where control groups of version 1 or 2 limit memory.
fn memory_group() -> Option<(PathBuf, &'static str)> {
    let one = Path::new("/sys/fs/cgroup/memory");
    if one.join("memory.limit_in_bytes").exists() {
        return Some((one.to_owned(), "memory.limit_in_bytes"));
    }
    let two = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(two.join("cgroup.subtree_control")).unwrap_or_default();
    controllers.contains("memory").then(|| (two.to_owned(), "memory.max"))
}

fn has_memory_groups() -> bool {
    memory_group().is_some()
}

/// A control group with a limit, which goes when it is dropped.
struct Group(PathBuf);

impl Group {
    fn new(limit_mebibytes: u64) -> Result<Self> {
        let (root, limit) = memory_group().context("no control groups of memory")?;
        let group = Self(root.join(format!("alloctrace-test-{}", std::process::id())));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join(limit), (limit_mebibytes << 20).to_string())?;
        Ok(group)
    }

    fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group of processes that are about to end is busy.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn out_of_memory(interpreter: &Interpreter) -> Result<()> {
    const LIMIT: u64 = 96;
    let folder = folder()?;
    let history = folder.path().join("history");
    let group = Group::new(LIMIT)?;
    let target = hoarder(interpreter, "24", "10000")?;
    group.take(target.id())?;
    let sidecar = Sidecar::start(&history, &["-p", &target.id().to_string()])?;
    let began = Instant::now();
    let found = loop {
        let incidents = files(&history)?.into_iter().find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("oom-") && name.contains("resident") && name.ends_with(".pb.gz")
        });
        if let Some(path) = incidents {
            break path;
        }
        ensure!(began.elapsed() < HANGS, "no last account in {:?}", files(&history)?);
        std::thread::sleep(Duration::from_millis(100));
    };
    let profile = load(&found)?;
    let (all, of_line) = (profile.total(Metric::Live).bytes, holds(&profile, "hoard"));
    say(&format!("of a limit of {LIMIT} MiB: {} MiB, {} MiB of the line", all >> 20, of_line >> 20));
    ensure!(all * 10 >= (LIMIT << 20) * 9, "of {LIMIT} MiB only {all} bytes");
    let largest = profile.samples.iter().max_by_key(|sample| sample.amount(Metric::Live).bytes);
    let innermost = largest.and_then(|sample| sample.stack.iter().next());
    let function =
        innermost.and_then(|id| profile.frames.get_index(id.0 as usize)).map(|frame| &frame.function);
    ensure!(function.is_some_and(|name| name == "hoard"), "the largest is {function:?}");
    sidecar.end()
}
