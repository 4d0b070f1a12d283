//! `record -- COMMAND`: its streams, its status and its signals pass; what it execs is found.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use alloctrace::profile::{Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::asked::{Asked, amount};
use crate::machine::{Interpreter, pyenv_root};
use crate::support::{Finished, Running, alloctrace, folder, load, program, record, run};
use crate::{Test, each, once, one};

pub const TESTS: &[Test] = &[
    once("command::not_found", not_found),
    once("command::not_executable", not_executable),
    once("command::is_no_python", is_no_python),
    one("command::status_is_passed", status_is_passed),
    one("command::killed_by_a_signal", killed_by_a_signal),
    one("command::signals_are_forwarded", signals_are_forwarded),
    one("command::streams_pass", streams_pass),
    each("command::lives_for_a_moment", lives_for_a_moment),
    one("command::shell_script", shell_script),
    one("command::shell_execs", shell_execs),
    one("command::env_finds_python", env_finds_python),
    each("command::venv", venv),
    once("command::pyenv_shim", pyenv_shim)
        .only_if(|| pyenv_root().is_some_and(|root| root.join("shims/python3").exists())),
    one("command::python_execs_python", python_execs_python),
    one("command::python_execs_another_program", python_execs_another_program),
    one("command::default_output", default_output),
    one("command::stops_itself", stops_itself),
    one("command::execs_from_a_thread", execs_from_a_thread),
    one("command::forks", forks),
    one("command::interrupt_ends_the_recording_only", interrupt_ends_the_recording_only),
    one("command::duration_ends_the_recording_only", duration_ends_the_recording_only),
];

/// Runs something below the tracer, the profile in a folder of its own.
fn traced(flags: &[&str], arguments: &[&str]) -> Result<(tempfile::TempDir, Finished)> {
    let folder = folder()?;
    let mut command = record(&folder.path().join("x.pb.gz"), flags);
    command.args(arguments);
    let finished = run(command)?;
    Ok((folder, finished))
}

fn path_of(interpreter: &Interpreter) -> String {
    interpreter.python.to_string_lossy().into_owned()
}

/// What a test program, run by whatever way, must have left in the profile.
fn has_recorded(folder: &Path) -> Result<()> {
    shows_it(&load(&folder.join("x.pb.gz"))?)
}

fn shows_it(profile: &Profile) -> Result<()> {
    let asked = Asked(profile);
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "bytes_of_95");
    ensure!(kept == amount(128_000, 1000), "kept {kept:?} of {:?}", profile.processes);
    // A program that replaces itself by another takes its pools with it.
    if profile.processes.len() == 1 { asked.is_whole() } else { asked.has_lost_nothing() }
}

fn exact() -> String {
    program("exact.py").to_string_lossy().into_owned()
}

fn not_found() -> Result<()> {
    let (folder, finished) = traced(&[], &["no-such-command-at-all"])?;
    ensure!(finished.code() == Some(127), "{finished:?}");
    ensure!(
        finished.stderr.lines().next().is_some_and(|line| line.contains("no-such-command-at-all")),
        "{finished:?}"
    );
    ensure!(finished.stderr.lines().count() == 1, "more than one line: {}", finished.stderr);
    ensure!(!folder.path().join("x.pb.gz").exists());
    let (_, finished) = traced(&[], &["/no/such/file"])?;
    ensure!(finished.code() == Some(127), "{finished:?}");
    let (_, finished) = traced(&[], &[""])?;
    ensure!(finished.code() == Some(127), "{finished:?}");
    Ok(())
}

fn not_executable() -> Result<()> {
    let (_, finished) = traced(&[], &["/etc/passwd"])?;
    ensure!(finished.code() == Some(126) && finished.stderr.contains("/etc/passwd"), "{finished:?}");
    ensure!(finished.stderr.lines().count() == 1, "more than one line: {}", finished.stderr);
    let (_, finished) = traced(&[], &["/tmp"])?;
    ensure!(finished.code() == Some(126), "{finished:?}");
    Ok(())
}

fn is_no_python() -> Result<()> {
    let (folder, finished) = traced(&[], &["true"])?;
    ensure!(finished.code() == Some(0), "{finished:?}");
    ensure!(finished.one_line()?.contains("nothing was recorded"), "{finished:?}");
    ensure!(!folder.path().join("x.pb.gz").exists(), "an empty profile was written");
    let (_, finished) = traced(&[], &["false"])?;
    ensure!(finished.code() == Some(1), "{finished:?}");
    let (_, finished) = traced(&["-q"], &["sh", "-c", "exit 42"])?;
    ensure!(finished.code() == Some(42) && finished.stderr.is_empty(), "{finished:?}");
    Ok(())
}

fn status_is_passed(interpreter: &Interpreter) -> Result<()> {
    let python = path_of(interpreter);
    for code in [0, 1, 7, 126, 127, 255] {
        let (folder, finished) = traced(&["-q"], &[&python, "-c", &format!("raise SystemExit({code})")])?;
        ensure!(finished.code() == Some(code), "{code} became {:?}", finished.status);
        ensure!(finished.stderr.is_empty(), "not quiet: {}", finished.stderr);
        Asked(&load(&folder.path().join("x.pb.gz"))?).is_whole()?;
    }
    Ok(())
}

fn killed_by_a_signal(interpreter: &Interpreter) -> Result<()> {
    let python = path_of(interpreter);
    for signal in [Signal::KILL, Signal::TERM, Signal::SEGV, Signal::INT] {
        let number = signal.as_raw();
        let text = format!(
            "import os, signal; signal.signal({number}, 0) if {number} != 9 else 0; os.kill(os.getpid(), {number})"
        );
        let (folder, finished) = traced(&["-q"], &[&python, "-c", &text])?;
        ensure!(finished.code() == Some(128 + number), "signal {number} became {:?}", finished.status);
        ensure!(load(&folder.path().join("x.pb.gz"))?.recording.events > 1000, "signal {number}: no profile");
    }
    Ok(())
}

const WAITS: &str = "
import signal, sys, threading
def got(number, frame):
    print('got', number, flush=True)
    if number == signal.SIGTERM:
        sys.exit(9)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, got)
print('ready', flush=True)
while True:
    signal.pause()
";

fn signals_are_forwarded(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.arg(&interpreter.python).args(["-c", WAITS]);
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "ready");
    for signal in [Signal::USR1, Signal::USR2, Signal::HUP, Signal::TERM] {
        running.signal(signal)?;
        let line = running.line()?;
        ensure!(line == format!("got {}", signal.as_raw()), "{signal:?} became `{line}`");
    }
    let finished = running.finish()?;
    ensure!(finished.code() == Some(9), "{finished:?}");
    load(&output).map(drop)
}

fn streams_pass(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let mut command = record(&folder.path().join("x.pb.gz"), &["-q"]);
    let text =
        "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data); sys.stderr.write('E\\n')";
    command.arg(&interpreter.python).args(["-c", text]);
    let mut running = Running::start(command)?;
    let sent = "\0\u{1}line\r\nünïcode without an end".repeat(100);
    running.write(&sent)?;
    let finished = running.finish()?.succeeded()?;
    ensure!(finished.stdout == sent, "standard output is not what was sent");
    ensure!(finished.stderr == "E\n", "{}", finished.stderr);

    // The profile on standard output, behind what the command prints.
    let mut command = alloctrace();
    command.args(["record", "-q", "-o", "-", "--"]).arg(&interpreter.python).args(["-c", "pass"]);
    let finished = run(command)?;
    ensure!(finished.code() == Some(2) || finished.status.success(), "{finished:?}");
    Ok(())
}

fn lives_for_a_moment(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    let text = "
def outer():
    return inner()
def inner():
    return [bytes(100) for _ in range(1000)]
x = outer()
import os
os._exit(0)
";
    command.arg(&interpreter.python).args(["-I", "-S", "-c", text]);
    run(command)?.succeeded()?;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let kept = asked.sum(Metric::Live, |sample| {
        let names: Vec<&str> = asked.frames(sample).map(|frame| &*frame.function).collect();
        names.ends_with(&["inner", "outer", "<module>"])
    });
    ensure!(kept.bytes >= 1000 * 144, "{kept:?}");
    ensure!(asked.has_stack(&["<module>", "outer", "inner"]));
    let lines: Vec<u32> =
        profile.frames.iter().filter(|frame| frame.function == "inner").map(|frame| frame.line).collect();
    ensure!(lines == [5], "lines of `inner`: {lines:?}");
    Ok(())
}

fn script(folder: &Path, name: &str, text: &str) -> Result<String> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_string_lossy().into_owned())
}

fn shell_script(interpreter: &Interpreter) -> Result<()> {
    let scripts = folder()?;
    let python = path_of(interpreter);
    let text = format!(
        "#!/bin/sh\n# A launcher as many projects have them.\nls / >/dev/null\nexec {python} \"$@\"\n"
    );
    let path = script(scripts.path(), "launch.sh", &text)?;
    let (folder, finished) = traced(&[], &[&path, &exact()])?;
    finished.succeeded()?;
    has_recorded(folder.path())?;
    // A script without the first line: execvp of a shell would run it with sh; a kernel does not.
    let path = script(scripts.path(), "bare.sh", &format!("exec {python} \"$@\"\n"))?;
    let (_, finished) = traced(&[], &[&path, &exact()])?;
    ensure!(finished.code() == Some(126) || finished.status.success(), "{finished:?}");
    // The interpreter itself in the first line.
    let text = format!("#!{python}\n{}", fs::read_to_string(program("exact.py"))?);
    let path = script(scripts.path(), "program", &text)?;
    let (folder, finished) = traced(&[], &[&path])?;
    finished.succeeded()?;
    has_recorded(folder.path())
}

fn shell_execs(interpreter: &Interpreter) -> Result<()> {
    let line = format!("exec {} {}", path_of(interpreter), exact());
    let (folder, finished) = traced(&[], &["sh", "-c", &line])?;
    finished.succeeded()?;
    has_recorded(folder.path())?;
    // Several on the way.
    let line = format!("exec env A=b sh -c '{line}'");
    let (folder, finished) = traced(&[], &["nice", "-n", "1", "sh", "-c", &line])?;
    finished.succeeded()?;
    has_recorded(folder.path())
}

fn env_finds_python(interpreter: &Interpreter) -> Result<()> {
    let bin = folder()?;
    std::os::unix::fs::symlink(&interpreter.python, bin.path().join("a-python"))?;
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH")?);
    let (folder, finished) = traced(&[], &["env", &format!("PATH={path}"), "a-python", &exact()])?;
    finished.succeeded()?;
    has_recorded(folder.path())
}

fn venv(interpreter: &Interpreter) -> Result<()> {
    let place = folder()?;
    let mut command = Command::new(&interpreter.python);
    command.args(["-m", "venv", "--without-pip"]).arg(place.path().join("venv"));
    run(command)?.succeeded()?;
    let python = place.path().join("venv/bin/python").to_string_lossy().into_owned();
    // One that runs in a root of its own has its environment there, too.
    let in_root = format!("PYTHON_IN_ROOT={python}");
    let command = match interpreter.label.ends_with("_debian") {
        true => vec!["env".to_owned(), in_root, path_of(interpreter), exact()],
        false => vec![python, exact()],
    };
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let (folder, finished) = traced(&[], &command)?;
    finished.succeeded()?;
    has_recorded(folder.path())
}

fn pyenv_shim() -> Result<()> {
    let Some(root) = pyenv_root() else { return Ok(()) };
    let shim = root.join("shims/python3").to_string_lossy().into_owned();
    let (folder, finished) = traced(&[], &[&shim, &exact()])?;
    finished.succeeded()?;
    has_recorded(folder.path())
}

fn python_execs_python(interpreter: &Interpreter) -> Result<()> {
    let python = path_of(interpreter);
    let text = format!(
        "import os; x = [bytes(50) for _ in range(1000)]; os.execv({python:?}, [{python:?}, {:?}])",
        exact()
    );
    let (folder, finished) = traced(&[], &[&python, "-c", &text])?;
    finished.succeeded()?;
    has_recorded(folder.path())
}

fn python_execs_another_program(interpreter: &Interpreter) -> Result<()> {
    let text = "import os; x = [bytes(50) for _ in range(1000)]; os.execvp('sh', ['sh', '-c', 'echo there; exit 5'])";
    let (folder, finished) = traced(&[], &[&path_of(interpreter), "-c", text])?;
    ensure!(finished.code() == Some(5) && finished.stdout == "there\n", "{finished:?}");
    let profile = load(&folder.path().join("x.pb.gz"))?;
    ensure!(profile.recording.events > 1000);
    Ok(())
}

fn default_output(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let mut command = alloctrace();
    command.current_dir(folder.path()).args(["record", "--"]).arg(&interpreter.python).args(["-c", "pass"]);
    let finished = run(command)?.succeeded()?;
    let names: Vec<String> = fs::read_dir(folder.path())?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let [name] = names.as_slice() else { anyhow::bail!("not one file: {names:?}") };
    ensure!(name.starts_with("alloctrace-python") && name.ends_with(".pb.gz"), "{name}");
    ensure!(finished.stderr.contains(name.as_str()), "its name is not told: {}", finished.stderr);
    load(&folder.path().join(name)).map(drop)
}

/// A stop that is not ours is left to whoever made it.
fn stops_itself(interpreter: &Interpreter) -> Result<()> {
    let text = "
import os, signal
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
print('again', flush=True)
";
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.arg(&interpreter.python).args(["-c", text]);
    let mut running = Running::start(command)?;
    let pid: u32 = running.line()?.parse()?;
    let is_stopped = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    while !is_stopped() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    // It stays stopped: a few looks of the tracer later it still is.
    std::thread::sleep(std::time::Duration::from_millis(300));
    ensure!(is_stopped(), "somebody continued it");
    crate::support::send(pid, Signal::CONT)?;
    ensure!(running.line()? == "again");
    running.finish()?.succeeded()?;
    load(&output).map(drop)
}

fn execs_from_a_thread(interpreter: &Interpreter) -> Result<()> {
    let python = path_of(interpreter);
    let text = format!(
        "import os, threading; t = threading.Thread(target=os.execv, args=({python:?}, [{python:?}, {:?}])); t.start(); t.join()",
        exact()
    );
    let (folder, finished) = traced(&[], &[&python, "-c", &text])?;
    finished.succeeded()?;
    has_recorded(folder.path())
}

/// Children that are gone before they can be armed are not harmed, and what they did is nobody else's.
fn forks(interpreter: &Interpreter) -> Result<()> {
    let text = format!(
        "
import os
for _ in range(60):
    child = os.fork()
    if child == 0:
        x = [bytes(50) for _ in range(1000)]
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
import subprocess, sys
assert subprocess.call([sys.executable, '-c', 'raise SystemExit(4)']) == 4
exec(open({:?}).read())
",
        exact()
    );
    let (folder, finished) = traced(&[], &[&path_of(interpreter), "-c", &text])?;
    finished.succeeded()?;
    let mut profile = load(&folder.path().join("x.pb.gz"))?;
    // Children that live for a millisecond are hardly armed; what they took before is said, and is all that may be lost.
    let of_children = profile.processes.iter().filter_map(|process| process.followed.as_ref()?.blocks_before);
    let losses = &mut profile.recording.losses;
    ensure!(losses.blocks_before_armed == of_children.sum::<u64>(), "{losses:?}");
    losses.blocks_before_armed = 0;
    ensure!(losses.ended_unarmed_processes > 0 && losses.ended_unarmed_processes <= 61, "{losses:?}");
    losses.ended_unarmed_processes = 0;
    for sample in profile.samples.iter().filter(|sample| sample.thread != 0) {
        let process = profile.processes.get(sample.process.0 as usize).context("no such process")?;
        ensure!(sample.thread == process.pid, "thread {} counts for {process:?}", sample.thread);
    }
    shows_it(&profile)
}

const GOES_ON: &str = "
import sys
def keep():
    return [bytes(95) for _ in range(1000)]
x = keep()
print('ready', flush=True)
sys.stdin.readline()
y = keep()
print('well', flush=True)
sys.exit(6)
";

fn interrupt_ends_the_recording_only(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.arg(&interpreter.python).args(["-c", GOES_ON]);
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "ready");
    running.signal(Signal::INT)?;
    running.wait_for("waiting for the command")?;
    // The profile is there while the command still runs, and is not touched again.
    let profile = load(&output)?;
    ensure!(profile.recording.default_metric == "live", "{:?}", profile.recording);
    let asked = Asked(&profile);
    asked.is_whole()?;
    let kept = asked.sum(Metric::Live, |sample| asked.frames(sample).any(|frame| frame.function == "keep"));
    ensure!(kept.bytes >= 128_000 && kept.bytes < 160_000, "{kept:?}");
    let before = fs::read(&output)?;
    running.signal(Signal::INT)?;
    running.write("on\n")?;
    ensure!(running.line()? == "well");
    let finished = running.finish()?;
    ensure!(finished.code() == Some(6), "{finished:?}");
    ensure!(fs::read(&output)? == before, "the profile was written twice");
    Ok(())
}

fn duration_ends_the_recording_only(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &["-d", "1s"]);
    command.arg(&interpreter.python).args(["-c", GOES_ON]);
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "ready");
    running.wait_for("waiting for the command")?;
    Asked(&load(&output)?).is_whole()?;
    running.write("on\n")?;
    ensure!(running.line()? == "well");
    let finished = running.finish()?;
    ensure!(finished.code() == Some(6), "{finished:?}");
    Ok(())
}
