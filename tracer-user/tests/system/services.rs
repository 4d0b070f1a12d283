//! Real services below the tracer: gunicorn with four workers, restarted under load, and uvicorn, whose workers are new processes and no forks.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use alloctrace::profile::{Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::asked::Asked;
use crate::support::{Running, folder, load, program, record, say};
use crate::{Test, once};

pub const TESTS: &[Test] = &[
    once("services::gunicorn_is_restarted_under_load", restarted_under_load)
        .only_if(|| python_with("gunicorn").is_some()),
    once("services::uvicorn_under_load", uvicorn_under_load).only_if(|| python_with("uvicorn").is_some()),
];

const WORKERS: usize = 4;
/// What `keep` in service.py keeps of each request.
const KEPT_BYTES: u64 = 100_033;

/// An interpreter that has this package: `cargo xtask setup` makes one.
pub fn python_with(package: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask");
    let pythons = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path().join("bin/python"));
    // Several may have it, with others of what it depends on: always the same one.
    let pythons: BTreeSet<PathBuf> = pythons.collect();
    pythons.into_iter().filter(|python| python.exists()).find(|python| {
        let found = Command::new(python).args(["-c", &format!("import {package}")]).output();
        found.is_ok_and(|output| output.status.success())
    })
}

/// Requests that one worker has served, by how long after its fork.
type Served = BTreeMap<u32, Vec<u64>>;

fn request(port: u16, served: &mut Served) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.lines().last().context("an empty answer")?;
    let (pid, age) = body.split_once(' ').with_context(|| format!("the service said `{answer}`"))?;
    served.entry(pid.parse()?).or_default().push(age.parse()?);
    Ok(())
}

/// Waits until so many children that were not known are armed.
fn armed(tracer: &mut Running, known: &mut HashSet<u32>, number: usize) -> Result<()> {
    let wanted = known.len() + number;
    while known.len() < wanted {
        let line = tracer.wait_for(", Fork")?;
        let text = line.split("armed process ").nth(1).context("no number")?;
        known.insert(text.split(',').next().unwrap_or_default().parse()?);
    }
    Ok(())
}

fn restarted_under_load() -> Result<()> {
    let python = python_with("gunicorn").context("no gunicorn")?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let port = free_port()?;
    let master = folder.path().join("master");
    let mut command = record(&output, &["-v"]);
    command.arg(&python).args(["-m", "gunicorn", "--workers", "4", "--pid"]).arg(&master);
    command.args(["--bind", &format!("127.0.0.1:{port}"), "--log-level", "error", "--chdir"]);
    command.arg(program("service.py").parent().context("no folder")?).arg("service:application");
    let mut tracer = Running::start(command)?;
    let mut known = HashSet::new();
    armed(&mut tracer, &mut known, WORKERS)?;
    let mut served = Served::new();
    (0..400).try_for_each(|_| request(port, &mut served))?;
    let master: u32 = fs::read_to_string(&master)?.trim().parse()?;
    crate::support::send(master, Signal::HUP)?;
    (0..400).try_for_each(|_| request(port, &mut served))?;
    armed(&mut tracer, &mut known, WORKERS)?;
    // Until the old ones are gone.
    while served.len() < 2 * WORKERS
        || known.iter().filter(|pid| crate::support::is_running(**pid)).count() > WORKERS
    {
        request(port, &mut served)?;
        thread::yield_now();
    }
    (0..400).try_for_each(|_| request(port, &mut served))?;
    tracer.signal(Signal::INT)?;
    tracer.wait_for("recording has ended")?;
    crate::support::send(master, Signal::TERM)?;
    tracer.finish()?;
    let profile = compare(&output, &served)?;
    let ended = profile.processes.iter().filter(|process| process.ended).count();
    ensure!(served.len() >= 2 * WORKERS && ended >= WORKERS, "{:?}", profile.processes);
    Ok(())
}

/// Free a moment ago; whoever takes it now makes the service fail, and the test with it.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn uvicorn_under_load() -> Result<()> {
    let python = python_with("uvicorn").context("no uvicorn")?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let port = free_port()?;
    // Each of six processes imports for itself, at addresses of its own: more stacks than there is room for by default.
    let mut command = record(&output, &["-v", "--stacks", "600000"]);
    command.arg(&python).args(["-m", "uvicorn", "service:asgi", "--workers", "4", "--lifespan", "off"]);
    // Its master would end workers that take more than five seconds to start.
    command.args(["--timeout-worker-healthcheck", "100"]);
    command.args(["--port", &port.to_string(), "--log-level", "critical", "--app-dir"]);
    command.arg(program("service.py").parent().context("no folder")?);
    let mut tracer = Running::start(command)?;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(crate::support::is_running(tracer.id()), "the service did not start");
        thread::sleep(Duration::from_millis(20));
    }
    let mut served = Served::new();
    // Whichever worker is ready takes what comes; all are in the end.
    while served.len() < WORKERS || served.values().any(|ages| ages.len() < 20) {
        request(port, &mut served)?;
    }
    tracer.signal(Signal::INT)?;
    tracer.wait_for("recording has ended")?;
    tracer.signal(Signal::TERM)?;
    tracer.finish()?;
    compare(&output, &served)?;
    Ok(())
}

/// Each worker's account has the requests that it served.
fn compare(output: &Path, served: &Served) -> Result<Profile> {
    let profile = load(output)?;
    let asked = Asked(&profile);
    let mut early = 0;
    for (pid, ages) in served {
        let process = profile.processes.iter().find(|process| process.pid == *pid);
        let process = process.with_context(|| format!("worker {pid} is not in {:?}", profile.processes))?;
        let after = process.followed.as_ref().context("not a child")?.armed_after_nanoseconds;
        let kept = |metric| {
            asked.sum(metric, |sample| {
                profile.processes[sample.process.0 as usize].pid == *pid
                    && sample.domain == Domain::Malloc
                    && asked.innermost(sample) == "keep"
            })
        };
        let all = ages.len() as u64;
        // The fork (or exec) was before the worker's clock began, so that these were certainly served by an armed process.
        let certain = ages.iter().filter(|age| **age > after).count() as u64;
        let seen = kept(Metric::Allocated);
        ensure!(seen.bytes == seen.count * KEPT_BYTES, "{seen:?}");
        ensure!((certain..=all).contains(&seen.count), "{pid}: {seen:?}, of {certain} to {all}; {process:?}");
        let live = if process.ended { 0 } else { seen.count };
        ensure!(kept(Metric::Live).count == live, "{pid}: {:?} live", kept(Metric::Live));
        early += all - certain;
    }
    let losses = &profile.recording.losses;
    ensure!(losses.untold_processes == 0 && losses.unfollowed_processes == 0, "{losses:?}");
    let requests: usize = served.values().map(Vec::len).sum();
    say(&format!(
        "{requests} requests by {} workers, {early} of them before their worker was armed",
        served.len()
    ));
    Ok(profile)
}
