//! Targets in namespaces and file systems of their own, and the tracer in theirs: real ones, made by `unshare` and `mount`.

use std::fs;
use std::path::Path;
use std::process::Command;

use alloctrace::profile::{Domain, Metric};
use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::asked::{Asked, amount};
use crate::machine::{Interpreter, has_program};
use crate::support::{Running, alloctrace, folder, interrupt, load, program, record, run, tracer};
use crate::{Test, each, one};

pub const TESTS: &[Test] = &[
    each("containers::tracer_in_a_pid_namespace", tracer_in_a_pid_namespace).only_if(has_unshare),
    one("containers::sidecar", sidecar).only_if(has_unshare),
    one("containers::target_in_all_namespaces", target_in_all_namespaces).only_if(has_unshare),
    one("containers::deleted_binary", deleted_binary),
    one("containers::replaced_binary", replaced_binary),
    one("containers::overlay", overlay).only_if(has_unshare),
];

fn has_unshare() -> bool {
    has_program("unshare")
}

/// What exact.py leaves.
fn has_recorded(output: &Path) -> Result<()> {
    let profile = load(output)?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "bytes_of_95");
    ensure!(kept == amount(128_000, 1000), "kept {kept:?} of {:?}", profile.processes);
    Ok(())
}

/// `unshare` puts the command into namespaces of its own.
fn unshare(flags: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(flags).arg("--").env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn tracer_in_a_pid_namespace(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let traced = record(&output, &[]);
    let mut command = unshare(&["--pid", "--fork", "--mount-proc"]);
    command.arg(traced.get_program()).args(traced.get_args());
    command.arg(&interpreter.python).arg("-I").arg(program("exact.py"));
    run(command)?.succeeded()?;
    has_recorded(&output)?;
    let profile = load(&output)?;
    let pids: Vec<u32> = profile.processes.iter().map(|process| process.pid).collect();
    ensure!(pids.iter().all(|pid| *pid < 1000), "numbers of another namespace: {pids:?}");
    let threads = profile.samples.iter().filter(|sample| sample.thread != 0);
    let threads: std::collections::HashSet<u32> = threads.map(|sample| sample.thread).collect();
    ensure!(threads.iter().all(|thread| *thread < 1000), "numbers of another namespace: {threads:?}");
    Ok(())
}

/// Target and tracer share a PID namespace that is not the host's, and nothing else.
fn sidecar(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = unshare(&["--pid", "--fork", "--mount-proc"]);
    let script = r#"
        unshare --mount --net --uts --ipc -- "$1" -I "$2" child 1 "$3" >"$3/number" & target=$!
        until [ -s "$3/number" ]; do sleep 0.05; done
        unshare --mount --net -- "$4" record --mode exact -o "$5" -p $target 2>"$3/said" & tracer=$!
        until grep -q 'Ctrl-C ends it' "$3/said"; do sleep 0.05; done
        touch "$3/go"
        until [ -e "$3/held-$target" ]; do sleep 0.05; done
        kill -INT $tracer; wait $tracer || exit 1
        touch "$3/end"; wait $target
    "#;
    command.args(["sh", "-c", script, "sh"]).arg(&interpreter.python).arg(program("children.py"));
    command.arg(folder.path()).arg(alloctrace().get_program()).arg(&output);
    let finished = run(command)?;
    let said = fs::read_to_string(folder.path().join("said")).unwrap_or_default();
    ensure!(finished.status.success(), "{}{said}", finished.stderr);
    let profile = load(&output)?;
    let kept = Asked(&profile).sum(Metric::Live, |sample| sample.domain == Domain::Malloc);
    ensure!(kept.bytes >= 50 * 100_033, "kept {kept:?} of {:?}", profile.processes);
    Ok(())
}

/// The process that runs below `unshare --fork`, by the host's number.
fn child_of(pid: u32) -> Result<u32> {
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
    }
}

/// Attaches to a target that keeps 1,000 blocks of 128 bytes when told to.
fn keeps(running: &mut Running, pid: u32) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[pid], &[])?;
    running.write("keep(1000, 95)\n")?;
    ensure!(running.line()? == "done");
    interrupt(tracing)?.succeeded()?;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    asked.is_whole()?;
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "keep");
    ensure!(kept == amount(128_000, 1000), "{kept:?} of {:?}", profile.processes);
    Ok(())
}

fn ready(mut command: Command) -> Result<Running> {
    command.arg("-I").arg(program("steps.py"));
    let mut running = Running::start(command)?;
    let line = running.line()?;
    ensure!(line == "ready", "the target said `{line}`");
    Ok(running)
}

fn target_in_all_namespaces(interpreter: &Interpreter) -> Result<()> {
    let flags = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--net", "--ipc", "--uts"];
    let mut command = unshare(&flags);
    command.arg(&interpreter.python);
    let mut running = ready(command)?;
    let pid = child_of(running.id())?;
    keeps(&mut running, pid)?;
    crate::support::send(pid, Signal::KILL)
}

/// A copy of the interpreter, in a folder where its library is found.
fn copy(interpreter: &Interpreter, folder: &Path) -> Result<std::path::PathBuf> {
    let mut command = Command::new(&interpreter.python);
    command.args(["-c", "import sys; print(sys.executable)"]);
    let original = run(command)?.succeeded()?.stdout.trim().to_owned();
    let place = folder.join("python");
    fs::copy(fs::canonicalize(original)?, &place)?;
    Ok(place)
}

fn deleted_binary(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let python = copy(interpreter, folder.path())?;
    let mut running = ready(Command::new(&python))?;
    fs::remove_file(&python)?;
    let pid = running.id();
    keeps(&mut running, pid)
}

fn replaced_binary(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let python = copy(interpreter, folder.path())?;
    let mut running = ready(Command::new(&python))?;
    let newer = folder.path().join("newer");
    fs::copy("/bin/sh", &newer)?;
    fs::rename(&newer, &python)?;
    let pid = running.id();
    keeps(&mut running, pid)
}

fn overlay(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let place = |name: &str| folder.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(place(name))?;
    }
    // On a file system of its own: an overlay cannot lie upon another.
    copy(interpreter, &place("lower"))?;
    let mut command = unshare(&["--mount"]);
    let script = r#"
        mount -t tmpfs none "$1/work" && mkdir "$1/work/upper" "$1/work/work" &&
        mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/work/upper,workdir=$1/work/work" "$1/merged" &&
        python="$1/merged/python" && shift && exec "$python" "$@"
    "#;
    command.args(["sh", "-c", script, "sh"]).arg(folder.path());
    let mut running = ready(command).context("is there no overlayfs?")?;
    let pid = running.id();
    keeps(&mut running, pid)
}
