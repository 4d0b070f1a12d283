//! `record -p`: arming and disarming a process that runs, and what may happen to it meanwhile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use alloctrace::discover::Target;
use alloctrace::discover::memory::{ProcessMemory, ReadMemory as _, mappings};
use alloctrace::plan::{plan_interpreter, plan_malloc};
use alloctrace::profile::{Domain, Metric};
use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::asked::{Asked, amount};
use crate::machine::Interpreter;
use crate::support::{
    Running, alloctrace, folder, interrupt, is_running, load, python, record, run, say, target, tracer,
};
use crate::{Test, each, one};

pub const TESTS: &[Test] = &[
    each("attach::text_is_restored_after_interrupt", text_is_restored_after_interrupt),
    each("attach::text_is_restored_after_sigkill", text_is_restored_after_sigkill),
    one("attach::text_is_restored_after_sigkill_perf", text_is_restored_after_sigkill_perf),
    one("attach::text_of_a_command_is_restored_after_sigkill", text_of_a_command_is_restored_after_sigkill),
    one("attach::text_of_forked_children", text_of_forked_children),
    one("attach::busy_threads_survive_many_cycles", busy_threads_survive_many_cycles),
    one("attach::target_ends_while_recording", target_ends_while_recording),
    one("attach::target_is_killed_while_recording", target_is_killed_while_recording),
    one("attach::target_execs_while_recording", target_execs_while_recording),
    one("attach::target_ends_while_attaching", target_ends_while_attaching),
    one("attach::target_execs_while_attaching", target_execs_while_attaching),
    one("attach::target_forks_while_attaching", target_forks_while_attaching),
    each("attach::two_tracers_at_once", two_tracers_at_once),
    one("attach::two_processes", two_processes),
    one("attach::a_target_that_is_stopped", a_target_that_is_stopped),
    one("attach::duration", duration),
    one("attach::terminated", terminated),
];

const NONE: [&str; 0] = [];

/// The places in a process where probes go, and the bytes that belong there.
pub struct Points {
    memory: ProcessMemory,
    places: Vec<(u64, u8)>,
}

impl Points {
    pub fn of(pid: u32) -> Result<Self> {
        let root = Path::new("/proc");
        let target = Target::inspect(root, pid)?;
        let mapped = mappings(root, pid)?;
        let mut places = Vec::new();
        let files = [(Some(&target.interpreter.file), true), (target.c_library.as_ref(), false)];
        for (file, is_interpreter) in files.into_iter().filter_map(|(file, of)| Some((file?, of))) {
            let bytes = fs::read(&file.path)?;
            let plan = if is_interpreter { plan_interpreter(&bytes)?.plan } else { plan_malloc(&bytes)? };
            for point in plan.points {
                let offset = point.offset.0;
                let mapping = mapped
                    .iter()
                    .find(|mapping| {
                        mapping.name == file.name
                            && (mapping.offset..mapping.offset + mapping.end - mapping.start)
                                .contains(&offset)
                    })
                    .context("a point outside of all mappings")?;
                let byte = bytes.get(offset as usize).context("a point outside of the file")?;
                places.push((mapping.start + offset - mapping.offset, *byte));
            }
        }
        ensure!(places.len() > 10, "only {} points", places.len());
        Ok(Self { memory: ProcessMemory::open(root, pid)?, places })
    }

    /// How many of them hold something else than the file.
    pub fn changed(&self) -> Result<usize> {
        let mut changed = 0;
        for (address, byte) in &self.places {
            let mut found = [0];
            self.memory.read(*address, &mut found)?;
            changed += usize::from(found[0] != *byte);
        }
        Ok(changed)
    }

    /// Whether one that is used all the time is armed: cheap enough to ask often.
    fn first_is_changed(&self) -> Result<bool> {
        let Some((address, byte)) = self.places.first() else { return Ok(false) };
        let mut found = [0];
        self.memory.read(*address, &mut found)?;
        Ok(found[0] != *byte)
    }

    pub fn wait_until_restored(&self) -> Result<Duration> {
        let started = Instant::now();
        while self.first_is_changed()? || self.changed()? > 0 {
            ensure!(started.elapsed() < Duration::from_secs(100), "{} points are left", self.changed()?);
            thread::sleep(Duration::from_micros(200));
        }
        Ok(started.elapsed())
    }
}

fn step(running: &mut Running, text: &str) -> Result<()> {
    running.write(&format!("{text}\n"))?;
    let line = running.line()?;
    ensure!(line == "done", "`{text}` said `{line}`");
    Ok(())
}

/// What the busy target says of itself: the longest gap between two turns of its loop since it was last asked, milliseconds.
fn longest_gap(running: &mut Running) -> Result<f64> {
    running.signal(Signal::USR1)?;
    Ok(running.line()?.parse()?)
}

fn text_is_restored_after_interrupt(interpreter: &Interpreter) -> Result<()> {
    let mut busy = target(interpreter, "busy.py", &NONE)?;
    let points = Points::of(busy.id())?;
    ensure!(points.changed()? == 0, "armed before anybody did");
    thread::sleep(Duration::from_millis(300));
    let undisturbed = longest_gap(&mut busy)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let started = Instant::now();
    let tracing = tracer(&output, &[busy.id()], &[])?;
    let armed = started.elapsed();
    let stall = longest_gap(&mut busy)?;
    let (changed, all) = (points.changed()?, points.places.len());
    ensure!(changed == all, "{changed} of {all} points are armed");
    thread::sleep(Duration::from_millis(200));
    let traced = longest_gap(&mut busy)?;
    let interrupted = Instant::now();
    tracing.signal(Signal::INT)?;
    let restored = points.wait_until_restored()?;
    let finished = tracing.finish()?.succeeded()?;
    let ended = interrupted.elapsed();
    let stall_at_end = longest_gap(&mut busy)?;
    say(&format!(
        "{}: {all} points; armed {armed:.0?} after the start; longest gap {stall:.1} ms while arming, {traced:.1} while \
         recording, {stall_at_end:.1} while disarming, {undisturbed:.1} undisturbed; disarmed {restored:.0?} after Ctrl-C, \
         profile written after {ended:.0?}",
        interpreter.label
    ));
    ensure!(points.changed()? == 0, "{} points are left", points.changed()?);
    ensure!(finished.stderr.contains("wrote"), "{}", finished.stderr);
    let profile = load(&output)?;
    Asked(&profile).is_whole()?;
    ensure!(profile.recording.events > 100, "{:?}", profile.recording);
    ensure!(is_running(busy.id()));
    longest_gap(&mut busy).map(drop)
}

fn restored_after_sigkill(interpreter: &Interpreter, flags: &[&str]) -> Result<()> {
    let mut busy = target(interpreter, "busy.py", &NONE)?;
    let points = Points::of(busy.id())?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[busy.id()], flags)?;
    ensure!(points.changed()? == points.places.len(), "not armed");
    tracing.signal(Signal::KILL)?;
    let status = tracing.finish()?.status;
    ensure!(crate::support::was_killed_by(status, Signal::KILL), "{status}");
    let restored = points.wait_until_restored()?;
    say(&format!("{}: disarmed {restored:.0?} after SIGKILL", interpreter.label));
    longest_gap(&mut busy)?;
    ensure!(fs::read_dir(folder.path())?.next().is_none(), "something half-written was left");
    Ok(())
}

fn text_is_restored_after_sigkill(interpreter: &Interpreter) -> Result<()> {
    restored_after_sigkill(interpreter, &[])
}

fn text_is_restored_after_sigkill_perf(interpreter: &Interpreter) -> Result<()> {
    restored_after_sigkill(interpreter, &["--perf-events"])
}

/// The tracer of a command dies: the command goes on, and is not held any more either.
fn text_of_a_command_is_restored_after_sigkill(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let mut command = record(&folder.path().join("x.pb.gz"), &[]);
    command.arg(&interpreter.python).arg("-I").arg(crate::support::program("busy.py"));
    let mut tracing = Running::start(command)?;
    ensure!(tracing.line()? == "ready");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracing.id()))?;
    let pid: u32 = children.trim().parse()?;
    let points = Points::of(pid)?;
    ensure!(points.changed()? == points.places.len(), "not armed");
    tracing.signal(Signal::KILL)?;
    points.wait_until_restored()?;
    crate::support::send(pid, Signal::USR1)?;
    tracing.line()?;
    crate::support::send(pid, Signal::TERM)?;
    while is_running(pid) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A child that was forked while its parent was armed has the parent's breakpoints in its copy; they go as well.
fn text_of_forked_children(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &NONE)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let points = Points::of(running.id())?;
    let tracing = tracer(&output, &[running.id()], &["--no-follow"])?;
    running.write("print(fork_and_keep(1000, 95), flush=True)\n")?;
    let child: u32 = running.line()?.parse()?;
    ensure!(running.line()? == "done");
    step(&mut running, "keep(1000, 95)")?;
    let of_child =
        Points { memory: ProcessMemory::open("/proc".as_ref(), child)?, places: points.places.clone() };
    // While its parent is recorded.
    of_child.wait_until_restored()?;
    ensure!(points.changed()? == points.places.len(), "the parent was disarmed too");
    interrupt(tracing)?.succeeded()?;
    points.wait_until_restored()?;
    ensure!(is_running(child) && is_running(running.id()));
    let profile = load(&output)?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(kept == amount(128_000, 1000), "the child's blocks are in the parent's account: {kept:?}");
    Ok(())
}

fn busy_threads_survive_many_cycles(interpreter: &Interpreter) -> Result<()> {
    let mut busy = target(interpreter, "busy.py", &["4"])?;
    let folder = folder()?;
    for cycle in 0..10 {
        let output = folder.path().join(format!("{cycle}.pb.gz"));
        let tracing = tracer(&output, &[busy.id()], &[])?;
        thread::sleep(Duration::from_millis(20));
        interrupt(tracing)?.succeeded()?;
        let profile = load(&output)?;
        Asked(&profile).is_whole().with_context(|| format!("cycle {cycle}"))?;
    }
    longest_gap(&mut busy).map(drop)
}

fn target_ends_while_recording(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &NONE)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    step(&mut running, "keep(1000, 95)")?;
    running.finish()?.succeeded()?;
    let finished = tracing.finish()?.succeeded()?;
    ensure!(finished.stderr.contains("wrote"), "{}", finished.stderr);
    let profile = load(&output)?;
    let peak = Asked(&profile).function(Metric::Allocated, Domain::Pymalloc, "keep");
    ensure!(peak.bytes >= 128_000, "{peak:?}");
    Ok(())
}

fn target_is_killed_while_recording(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &NONE)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    step(&mut running, "keep(1000, 95)")?;
    running.signal(Signal::KILL)?;
    running.finish()?;
    tracing.finish()?.succeeded()?;
    let profile = load(&output)?;
    let kept = Asked(&profile).function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(kept == amount(128_000, 1000), "{kept:?}");
    Ok(())
}

fn target_execs_while_recording(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &NONE)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    step(&mut running, "keep(1000, 95)")?;
    running.write("os.execvp('sh', ['sh', '-c', 'echo other; read line; echo $line'])\n")?;
    ensure!(running.line()? == "other");
    let finished = tracing.finish()?.succeeded()?;
    ensure!(
        finished.stderr.contains(&format!("{} has replaced itself", running.id())),
        "{}",
        finished.stderr
    );
    running.write("well\n")?;
    ensure!(running.line()? == "well");
    let profile = load(&output)?;
    let kept = Asked(&profile).function(Metric::Allocated, Domain::Pymalloc, "keep");
    ensure!(kept.bytes >= 128_000, "{kept:?}");
    Ok(())
}

/// Starts a target that does something `delay` from now, and a tracer at once: whoever is first, both must be well.
fn race(interpreter: &Interpreter, what: &str, delay: Duration) -> Result<crate::support::Finished> {
    let text = format!(
        "import os, sys, time\nprint('ready', flush=True)\ntime.sleep({})\n{what}",
        delay.as_secs_f64()
    );
    let mut command = Command::new(&interpreter.python);
    command.args(["-I", "-c", &text]);
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "ready");
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = alloctrace();
    command.args(["record", "-o"]).arg(&output).args(["-p", &running.id().to_string()]);
    let tracing = Running::start(command)?;
    let ended = running.finish()?;
    ensure!(ended.code() == Some(3), "the target ended with {}: {}", ended.status, ended.stderr);
    let finished = tracing.finish()?;
    match finished.code() {
        Some(0) => load(&output).map(drop)?,
        Some(1 | 2) => {
            ensure!(!output.exists(), "a profile in spite of {}", finished.stderr);
            ensure!(finished.stderr.lines().count() <= 2, "{}", finished.stderr);
        }
        _ => anyhow::bail!("the tracer ended with {}: {}", finished.status, finished.stderr),
    }
    ensure!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    Ok(finished)
}

fn races(interpreter: &Interpreter, what: &str) -> Result<()> {
    let mut endings: HashMap<String, u32> = HashMap::new();
    for delay in (0..150).step_by(5) {
        let finished = race(interpreter, what, Duration::from_millis(delay))
            .with_context(|| format!("after {delay} ms"))?;
        let last = finished.stderr.lines().last().unwrap_or_default();
        let words: String = last.chars().filter(|character| !character.is_ascii_digit()).collect();
        let words = if words.contains("wrote") { "wrote a profile".to_owned() } else { words };
        *endings.entry(format!("{:?}: {words}", finished.code())).or_default() += 1;
    }
    for (ending, times) in endings {
        say(&format!("{times} times {ending}"));
    }
    Ok(())
}

fn target_ends_while_attaching(interpreter: &Interpreter) -> Result<()> {
    races(interpreter, "x = [bytes(100) for _ in range(1000)]; os._exit(3)")
}

fn target_execs_while_attaching(interpreter: &Interpreter) -> Result<()> {
    races(interpreter, "os.execvp('sh', ['sh', '-c', 'sleep 0.05; exit 3'])")
}

fn target_forks_while_attaching(interpreter: &Interpreter) -> Result<()> {
    let text = "
for _ in range(20):
    child = os.fork()
    if child == 0:
        x = [bytes(100) for _ in range(300)]
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os._exit(3)";
    races(interpreter, text)
}

fn two_tracers_at_once(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &NONE)?;
    let points = Points::of(running.id())?;
    let folder = folder()?;
    let (first, second) = (folder.path().join("1.pb.gz"), folder.path().join("2.pb.gz"));
    let first_tracing = tracer(&first, &[running.id()], &[])?;
    step(&mut running, "keep(500, 95)")?;
    let second_tracing = tracer(&second, &[running.id()], &[])?;
    step(&mut running, "[allocate(5000) for _ in range(300)]")?;
    interrupt(first_tracing)?.succeeded()?;
    ensure!(points.changed()? == points.places.len(), "the first has disarmed the second's points");
    step(&mut running, "drop(500)")?;
    step(&mut running, "keep(200, 300)")?;
    interrupt(second_tracing)?.succeeded()?;
    ensure!(points.changed()? == 0, "points are left");
    let profile = load(&first)?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let found = asked.function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(found == amount(500 * 128, 500), "first: {found:?}");
    let found = asked.function(Metric::Live, Domain::Malloc, "allocate");
    ensure!(found == amount(300 * 5000, 300), "first: {found:?}");
    let profile = load(&second)?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let found = asked.function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(found == amount(200 * 336, 200), "second: {found:?}");
    let found = asked.function(Metric::Live, Domain::Malloc, "allocate");
    ensure!(found == amount(300 * 5000, 300), "second: {found:?}");
    Ok(())
}

fn two_processes(interpreter: &Interpreter) -> Result<()> {
    let mut one = target(interpreter, "steps.py", &NONE)?;
    let mut other = target(interpreter, "steps.py", &NONE)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[one.id(), other.id()], &[])?;
    step(&mut one, "keep(300, 95)")?;
    step(&mut other, "keep(700, 95)")?;
    // One ends, the other goes on.
    one.signal(Signal::KILL)?;
    one.finish()?;
    step(&mut other, "keep(800, 95)")?;
    ensure!(is_running(tracing.id()), "recording ended with the first of two");
    interrupt(tracing)?.succeeded()?;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    // What the other holds still; the memory of the one that has ended is gone.
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(kept == amount(800 * 128, 800), "{kept:?}");
    let both = asked.function(Metric::Allocated, Domain::Pymalloc, "keep");
    // With the numbers of its loops.
    ensure!(both.bytes >= 1800 * 128 && both.count >= 1800, "{both:?}");
    ensure!(profile.processes.len() == 2);
    Ok(())
}

fn a_target_that_is_stopped(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &NONE)?;
    running.signal(Signal::STOP)?;
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    running.signal(Signal::CONT)?;
    step(&mut running, "keep(300, 95)")?;
    running.signal(Signal::STOP)?;
    interrupt(tracing)?.succeeded()?;
    running.signal(Signal::CONT)?;
    step(&mut running, "keep(400, 95)")?;
    let kept = Asked(&load(&output)?).function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(kept == amount(300 * 128, 300), "{kept:?}");
    Ok(())
}

fn duration(interpreter: &Interpreter) -> Result<()> {
    let mut busy = target(interpreter, "busy.py", &NONE)?;
    let folder = folder()?;
    let output: PathBuf = folder.path().join("x.pb.gz");
    let mut command = alloctrace();
    command
        .args(["record", "--mode", "exact", "-d", "1s", "-o"])
        .arg(&output)
        .args(["-p", &busy.id().to_string()]);
    run(command)?.succeeded()?;
    Asked(&load(&output)?).is_whole()?;
    longest_gap(&mut busy).map(drop)
}

/// A service manager ends a tracer by SIGTERM: the profile is written all the same.
fn terminated(interpreter: &Interpreter) -> Result<()> {
    let busy = python(interpreter, "busy.py");
    let mut busy = Running::start(busy)?;
    ensure!(busy.line()? == "ready");
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[busy.id()], &[])?;
    tracing.signal(Signal::TERM)?;
    tracing.finish()?.succeeded()?;
    load(&output)?;
    longest_gap(&mut busy).map(drop)
}
