//! `ps` and `doctor` on this machine: what they say must agree with what works.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::errors::for_everybody;
use crate::machine::{Interpreter, has_program};
use crate::support::{Running, alloctrace, run, target};
use crate::{Test, once, one};

pub const TESTS: &[Test] = &[
    once("survey::doctor_where_tracing_works", doctor_where_tracing_works),
    one("survey::without_privileges", without_privileges).only_if(|| has_program("setpriv")),
    one("survey::processes", processes),
];

fn json(command: Command, status: i32) -> Result<Value> {
    let finished = run(command)?;
    ensure!(finished.code() == Some(status), "ended with {}: {}", finished.status, finished.stderr);
    serde_json::from_str(&finished.stdout).context("no JSON")
}

fn verb(words: &[&str]) -> Command {
    let mut command = alloctrace();
    command.args(words);
    command
}

/// This machine can trace, or the tests would not run.
fn doctor_where_tracing_works() -> Result<()> {
    let found = json(verb(&["doctor", "--format", "json"]), 0)?;
    ensure!(found["can_trace"] == true, "{found}");
    let checks = found["checks"].as_array().context("no checks")?;
    let trial = checks.iter().find(|check| check["check"] == "trial").context("no trial")?;
    ensure!(trial["state"] == "ok", "{trial}");
    let table = run(verb(&["doctor"]))?.succeeded()?.stdout;
    ensure!(table.contains("CAP_BPF") && table.contains("tracing works here"), "{table}");
    let csv = run(verb(&["doctor", "--format", "csv"]))?.succeeded()?.stdout;
    ensure!(csv.starts_with("check,state,finding,remedy\n") && csv.lines().count() > checks.len(), "{csv}");
    Ok(())
}

/// A user without any: everything is said at once, and other users' processes are not left out.
fn without_privileges(interpreter: &Interpreter) -> Result<()> {
    let (_folder, binary) = for_everybody()?;
    let running = target(interpreter, "steps.py", &[""; 0])?;
    let nobody = |verb: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&binary);
        command.args([verb, "--format", "json"]);
        command
    };
    let found = json(nobody("doctor"), 2)?;
    let failed: Vec<&str> = found["checks"]
        .as_array()
        .context("no checks")?
        .iter()
        .filter(|check| check["state"] == "fails")
        .filter_map(|check| check["check"].as_str())
        .collect();
    ensure!(
        ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"].iter().all(|name| failed.contains(name)),
        "{failed:?}"
    );
    let listed = of_process(&json(nobody("ps"), 0)?, &running)?;
    ensure!(listed["tracing"] == "no" && listed["version"].is_null(), "{listed}");
    ensure!(listed["remedy"].as_str().is_some_and(|text| text.contains("CAP_SYS_PTRACE")), "{listed}");
    Ok(())
}

fn processes(interpreter: &Interpreter) -> Result<()> {
    let running = target(interpreter, "steps.py", &[""; 0])?;
    let listed = of_process(&json(verb(&["ps", "--format", "json"]), 0)?, &running)?;
    ensure!(listed["tracing"] == "yes" && listed["reason"].is_null(), "{listed}");
    let pid = running.id().to_string();
    let table = run(verb(&["ps"]))?.succeeded()?.stdout;
    ensure!(table.lines().any(|line| line.split_whitespace().next() == Some(&pid)), "{table}");
    let csv = run(verb(&["ps", "--format", "csv"]))?.succeeded()?.stdout;
    let columns = csv.lines().next().context("no header")?.split(',').count();
    ensure!(columns == listed.as_object().map_or(0, serde_json::Map::len), "{csv}");
    ensure!(csv.lines().any(|line| line.starts_with(&format!("{pid},"))), "{csv}");
    Ok(())
}

fn of_process(document: &Value, running: &Running) -> Result<Value> {
    let all = document["processes"].as_array().context("no processes")?;
    let found = all.iter().find(|process| process["pid"] == running.id());
    found.cloned().with_context(|| format!("process {} is not in the list", running.id()))
}
