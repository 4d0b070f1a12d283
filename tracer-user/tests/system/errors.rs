//! Bad input: one clear line, the right exit status, nothing half-written, the target unharmed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::machine::{Interpreter, has_program, unsupported};
use crate::support::{
    Finished, Running, alloctrace, folder, interrupt, is_running, load, program, python, record, run, say,
    target, tracer,
};
use crate::{Test, once, one};

pub const TESTS: &[Test] = &[
    once("errors::no_such_process", no_such_process),
    once("errors::process_is_no_python", process_is_no_python),
    once("errors::process_has_an_unsupported_version", process_has_an_unsupported_version)
        .only_if(|| !unsupported().is_empty()),
    once("errors::command_of_an_unsupported_version", command_of_an_unsupported_version)
        .only_if(|| !unsupported().is_empty()),
    one("errors::no_privileges", no_privileges).only_if(|| has_program("setpriv")),
    one("errors::some_privileges", some_privileges).only_if(|| has_program("setpriv")),
    one("errors::output_cannot_be_written", output_cannot_be_written),
    one("errors::one_of_two_processes_is_wrong", one_of_two_processes_is_wrong),
    one("errors::process_has_ended_but_is_not_reaped", process_has_ended_but_is_not_reaped),
    once("errors::wrong_usage", wrong_usage),
];

/// A tracer that is expected to refuse: status 2, one line, no file.
fn refused(flags: &[&str]) -> Result<Finished> {
    let folder = folder()?;
    let mut command = alloctrace();
    command.current_dir(folder.path()).arg("record").args(flags);
    let finished = run(command)?;
    ensure!(finished.code() == Some(2), "{flags:?} ended with {}: {}", finished.status, finished.stderr);
    ensure!(finished.stdout.is_empty(), "{flags:?} printed `{}`", finished.stdout);
    finished.one_line().with_context(|| format!("{flags:?}"))?;
    let left: Vec<_> = fs::read_dir(folder.path())?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "{flags:?} left {left:?}");
    Ok(finished)
}

fn says(finished: &Finished, parts: &[&str]) -> Result<()> {
    let line = finished.one_line()?;
    for part in parts {
        ensure!(line.contains(part), "`{line}` does not say `{part}`");
    }
    Ok(())
}

fn no_such_process() -> Result<()> {
    // Beyond the largest that Linux gives.
    says(&refused(&["-p", "4194305"])?, &["4194305"])?;
    says(&refused(&["-p", "0"])?, &["0"])?;
    says(&refused(&["-p", "4294967295"])?, &["4294967295"])?;
    says(&refused(&["-p", "-1"])?, &["-1"])?;
    says(&refused(&["-p", "python"])?, &["python"])
}

fn process_is_no_python() -> Result<()> {
    let mut command = Command::new("sleep");
    command.arg("1000");
    let sleeper = Running::start(command)?;
    let pid = sleeper.id().to_string();
    says(&refused(&["-p", &pid])?, &[&pid, "sleep", "CPython"])?;
    ensure!(is_running(sleeper.id()), "the target has ended");
    // A kernel thread has no program at all.
    says(&refused(&["-p", "2"])?, &["2"])
}

fn process_has_an_unsupported_version() -> Result<()> {
    for interpreter in unsupported() {
        let mut command = Command::new(&interpreter.python);
        command
            .args(["-c", "import sys; print('ready'); sys.stdout.flush(); sys.stdin.read(1); print('well')"]);
        let mut running = Running::start(command)?;
        ensure!(running.line()? == "ready");
        let pid = running.id().to_string();
        let version = &interpreter.label[..3];
        says(&refused(&["-p", &pid])?, &[&pid, version, "3.8 to 3.15"]).context(interpreter.label)?;
        running.write("x")?;
        ensure!(running.line()? == "well", "the target is not well");
    }
    Ok(())
}

fn command_of_an_unsupported_version() -> Result<()> {
    for interpreter in unsupported() {
        let folder = folder()?;
        let output = folder.path().join("x.pb.gz");
        let mut command = record(&output, &[]);
        command.arg(&interpreter.python).args(["-c", "print('ran'); raise SystemExit(3)"]);
        let finished = run(command)?;
        ensure!(
            finished.code() == Some(3) && finished.stdout == "ran\n",
            "{}: {finished:?}",
            interpreter.label
        );
        let version = &interpreter.label[..3];
        ensure!(finished.stderr.contains(version), "{} is not named: {}", interpreter.label, finished.stderr);
        ensure!(finished.stderr.contains("nothing was recorded"), "{}", finished.stderr);
        ensure!(!output.exists(), "an empty profile was written");
    }
    Ok(())
}

/// The binary where everybody may run it, and a folder where everybody may write.
pub fn for_everybody() -> Result<(tempfile::TempDir, std::path::PathBuf)> {
    let folder = folder()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let binary = folder.path().join("alloctrace");
    fs::copy(env!("CARGO_BIN_EXE_alloctrace"), &binary)?;
    Ok((folder, binary))
}

fn no_privileges(interpreter: &Interpreter) -> Result<()> {
    let (folder, binary) = for_everybody()?;
    let output = folder.path().join("x.pb.gz");
    let nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&binary);
        command.args(["record", "-o"]).arg(&output);
        command
    };
    let mut command = nobody();
    command.args(["--", "touch"]).arg(folder.path().join("it-ran"));
    let finished = run(command)?;
    ensure!(finished.code() == Some(2), "{finished:?}");
    says(&finished, &["CAP_BPF", "CAP_PERFMON"])?;
    ensure!(!folder.path().join("it-ran").exists(), "the command was run all the same");

    let mut running = target(interpreter, "steps.py", &[""; 0])?;
    let mut command = nobody();
    command.args(["-p", &running.id().to_string()]);
    let finished = run(command)?;
    ensure!(finished.code() == Some(2), "{finished:?}");
    says(&finished, &["CAP_"])?;
    running.write("keep(1, 1)\n")?;
    ensure!(running.line()? == "done" && !output.exists());
    Ok(())
}

/// Root's target, and all capabilities but the one to look into it; then that one too.
fn some_privileges(interpreter: &Interpreter) -> Result<()> {
    let (folder, binary) = for_everybody()?;
    let output = folder.path().join("x.pb.gz");
    let running = target(interpreter, "steps.py", &[""; 0])?;
    let with = |capabilities: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(format!("--inh-caps={capabilities}")).arg(format!("--ambient-caps={capabilities}"));
        command.arg("--").arg(&binary).args(["record", "-d", "300ms", "-o"]).arg(&output);
        command.args(["-p", &running.id().to_string()]);
        command
    };
    let finished = run(with("+bpf,+perfmon"))?;
    ensure!(finished.code() == Some(2), "{finished:?}");
    says(&finished, &["CAP_SYS_PTRACE"])?;
    let finished = run(with("+bpf,+sys_ptrace"))?;
    ensure!(finished.code() == Some(2), "{finished:?}");
    says(&finished, &["CAP_PERFMON"])?;
    let finished = run(with("+perfmon,+sys_ptrace"))?;
    ensure!(finished.code() == Some(2), "{finished:?}");
    says(&finished, &["CAP_BPF"])?;
    // What is said to be enough is.
    let finished = run(with("+bpf,+perfmon,+sys_ptrace"))?;
    say(&format!(
        "with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE: {}: {}",
        finished.status,
        finished.stderr.trim()
    ));
    ensure!(
        finished.code() == Some(0) && output.exists(),
        "the three capabilities are not enough: {}",
        finished.stderr
    );
    Ok(())
}

fn output_cannot_be_written(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let witness = folder.path().join("it-ran");
    let directory = folder.path().to_string_lossy().into_owned();
    let not_there = format!("{directory}/no/such/folder/x.pb.gz");
    let read_only = "/proc/x.pb.gz".to_owned();
    let unknown = format!("{directory}/x.txt");
    let bare = format!("{directory}/x");
    let below_a_file = format!("{}/x.svg", program("steps.py").display());
    for output in [&not_there, &read_only, &unknown, &bare, &directory, &below_a_file] {
        let finished = refused(&["-o", output, "--", "touch", &witness.to_string_lossy()])?;
        says(&finished, &[output.rsplit('/').nth(1).unwrap_or(output)]).with_context(|| output.clone())?;
        ensure!(!witness.exists(), "the command was run though `{output}` cannot be written");
    }
    let running = target(interpreter, "steps.py", &[""; 0])?;
    says(&refused(&["-o", &not_there, "-p", &running.id().to_string()])?, &["no/such/folder"])?;
    ensure!(is_running(running.id()));
    // What was there stays when nothing comes of the recording.
    let output = folder.path().join("old.pb.gz");
    fs::write(&output, "old")?;
    let mut command = record(&output, &[]);
    command.arg("true");
    run(command)?;
    ensure!(fs::read(&output)? == b"old", "an old file was lost");
    Ok(())
}

fn one_of_two_processes_is_wrong(interpreter: &Interpreter) -> Result<()> {
    let mut running = target(interpreter, "steps.py", &[""; 0])?;
    let pid = running.id().to_string();
    says(&refused(&["-p", &pid, "-p", "4194305"])?, &["4194305"])?;
    running.write("keep(10, 10)\n")?;
    ensure!(running.line()? == "done", "the other process is not well");
    // Twice the same is once.
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id(), running.id()], &[])?;
    interrupt(tracing)?.succeeded()?;
    ensure!(load(&output)?.processes.len() == 1);
    Ok(())
}

fn process_has_ended_but_is_not_reaped(interpreter: &Interpreter) -> Result<()> {
    let mut command = python(interpreter, "steps.py");
    // Its parent, a shell, does not wait for it.
    let line = format!("{command:?}");
    command = Command::new("sh");
    command.args(["-c", &format!("env {line} </dev/null >/dev/null & echo $!; exec sleep 1000")]);
    let mut parent = Running::start(command)?;
    let pid: u32 = parent.line()?.parse()?;
    while is_running(pid) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    says(&refused(&["-p", &pid.to_string()])?, &[&pid.to_string()])?;
    parent.signal(Signal::KILL)
}

fn wrong_usage() -> Result<()> {
    refused(&[])?;
    refused(&["-p", "1", "--", "true"])?;
    refused(&["--duration", "soon", "--", "true"])?;
    refused(&["--metric", "some", "--", "true"])?;
    refused(&["--mode", "some", "--", "true"])?;
    refused(&["--stacks", "9999999", "--", "true"])?;
    refused(&["--live-blocks", "many", "--", "true"]).map(drop)
}
