//! What is loaded into the kernel: safe under preemption (every program of ours that a probe starts contains a tail call, so
//! that the kernel gives it no per-CPU private stack), and right with more runnable threads than processors.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use alloctrace::profile::{Domain, Metric};
use anyhow::{Context as _, Result, bail, ensure};

use crate::asked::{Asked, size_class};
use crate::machine::{Interpreter, has_program};
use crate::support::{Running, folder, interrupt, load, program, record, run, say, target, tracer};
use crate::{Test, one};

pub const TESTS: &[Test] = &[
    one("kernel::programs_contain_a_tail_call", programs_contain_a_tail_call)
        .only_if(|| has_program("bpftool")),
    one("kernel::more_threads_than_processors", more_threads_than_processors),
    one("kernel::nothing_is_left", nothing_is_left).only_if(|| has_program("bpftool")),
];

const NONE: [&str; 0] = [];

/// Programs that probes start, and those that these continue in.
const OURS: [&str; 10] = [
    "pop",
    "push",
    "pool_return",
    "malloc_enter",
    "malloc_return",
    "hold",
    "empty",
    "empty_return",
    "define",
    "send_stack",
];

fn bpftool(arguments: &[&str]) -> Result<serde_json::Value> {
    let mut command = Command::new("bpftool");
    command.args(["-j"]).args(arguments);
    let finished = run(command)?.succeeded()?;
    Ok(serde_json::from_str(&finished.stdout)?)
}

/// Kprobe programs by their ids: those of the tracer's descriptors, and those with names of ours that nobody holds but a
/// program array.
fn loaded(tracer: u32) -> Result<BTreeMap<u64, String>> {
    let mut own = Vec::new();
    for entry in fs::read_dir(format!("/proc/{tracer}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some(id) = text.lines().find_map(|line| line.strip_prefix("prog_id:")) {
            own.push(id.trim().parse::<u64>()?);
        }
    }
    let mut found = BTreeMap::new();
    for program in bpftool(&["prog", "show"])?.as_array().context("no list of programs")? {
        let (Some(id), Some(name)) = (program["id"].as_u64(), program["name"].as_str()) else { continue };
        let is_kprobe = program["type"] == "kprobe";
        if is_kprobe && (own.contains(&id) || OURS.contains(&name)) {
            found.insert(id, name.to_owned());
        }
    }
    Ok(found)
}

/// The instructions of a program, each on a line; `None` if it has gone meanwhile.
fn dump(id: u64) -> Result<Option<Vec<String>>> {
    let mut command = Command::new("bpftool");
    command.args(["prog", "dump", "xlated", "id", &id.to_string()]);
    let finished = run(command)?;
    if !finished.status.success() {
        return Ok(None);
    }
    Ok(Some(finished.stdout.lines().map(str::to_owned).collect()))
}

/// The deepest place of the stack that a program's text names, in bytes.
fn stack_depth(instructions: &[String]) -> u32 {
    let mut deepest = 0;
    let mut frame_copies: Vec<String> = Vec::new();
    for line in instructions {
        let text = line.split_once(") ").map_or("", |(_, text)| text);
        for (at, _) in text.match_indices("(r10 -") {
            let digits: String = text[at + 6..].chars().take_while(char::is_ascii_digit).collect();
            deepest = deepest.max(digits.parse().unwrap_or(0));
        }
        if let Some((register, "r10")) = text.split_once(" = ") {
            frame_copies.push(register.to_owned());
        } else if let Some((register, number)) = text.split_once(" += -")
            && frame_copies.contains(&register.to_owned())
        {
            deepest = deepest.max(number.parse().unwrap_or(0));
        }
        if let Some((register, _)) = text.split_once(" = ")
            && !text.ends_with(" = r10")
        {
            frame_copies.retain(|copy| copy != register);
        }
    }
    deepest
}

fn programs_contain_a_tail_call(interpreter: &Interpreter) -> Result<()> {
    for flags in [&[][..], &["--perf-events"]] {
        let running = target(interpreter, "steps.py", &NONE)?;
        let folder = folder()?;
        let tracing = tracer(&folder.path().join("x.pb.gz"), &[running.id()], flags)?;
        let mut seen = Vec::new();
        for (id, name) in loaded(tracing.id())? {
            let Some(instructions) = dump(id)? else { continue };
            let calls = instructions
                .iter()
                .filter(|line| line.contains("bpf_tail_call#") || line.contains("(85) call bpf_tail_call"))
                .count();
            let depth = stack_depth(&instructions);
            if flags.is_empty() {
                say(&format!(
                    "{name}: {} instructions, {calls} tail calls, {depth} bytes of stack",
                    instructions.len()
                ));
            }
            ensure!(
                calls > 0,
                "`{name}` has no tail call: the kernel may give it a private stack ({depth} bytes used)"
            );
            seen.push(name);
        }
        for name in OURS {
            ensure!(seen.iter().any(|other| other == name), "`{name}` was not found among {seen:?}");
        }
        interrupt(tracing)?.succeeded()?;
    }
    Ok(())
}

fn kernel_warnings() -> Result<Vec<String>> {
    let mut command = Command::new("dmesg");
    command.arg("--raw");
    let finished = run(command)?;
    let is_bad = |line: &&str| {
        ["WARNING:", "BUG:", "Oops", "general protection", "rcu_sched detected", "soft lockup", "stack guard"]
            .iter()
            .any(|bad| line.contains(bad))
    };
    Ok(finished.stdout.lines().filter(is_bad).map(str::to_owned).collect())
}

/// Several tracers, several threads to a processor, and others who want it too.
fn more_threads_than_processors(interpreter: &Interpreter) -> Result<()> {
    let before = kernel_warnings()?;
    let processors = std::thread::available_parallelism()?.get().min(8);
    let mut hogs = Vec::new();
    for _ in 0..processors {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        hogs.push(Running::start(command)?);
    }
    let folder = folder()?;
    let mut recordings = Vec::new();
    for number in 0..2 * processors {
        let output = folder.path().join(format!("{number}.pb.gz"));
        let mut command = record(&output, &[]);
        command.arg(&interpreter.python).arg("-I").arg(program("crowd.py"));
        recordings.push((output, Running::start(command)?));
    }
    for (output, running) in recordings {
        let finished = running.finish()?.succeeded()?;
        let profile = load(&output)?;
        let asked = Asked(&profile);
        asked.is_whole().context(finished.stderr)?;
        for number in 0..4 {
            // Each thread's own size, each under its own function.
            let kept = asked.sum(Metric::Live, |sample| {
                sample.domain == Domain::Pymalloc
                    && asked.frames(sample).any(|frame| frame.function == format!("keep_{number}"))
            });
            let size = size_class(133 + 16 * number);
            // The list's number and what else is still in use when the function ends.
            let others = (kept.bytes.checked_sub(3000 * size), kept.count.checked_sub(3000));
            let is_little = matches!(others, (Some(0..=256), Some(0..=4)));
            ensure!(is_little, "thread {number}: {kept:?}");
        }
    }
    drop(hogs);
    let new: Vec<String> = kernel_warnings()?.into_iter().filter(|line| !before.contains(line)).collect();
    if !new.is_empty() {
        bail!("the kernel complains: {new:?}");
    }
    Ok(())
}

/// No program, map or link of a tracer outlives it.
fn nothing_is_left(interpreter: &Interpreter) -> Result<()> {
    let running = target(interpreter, "steps.py", &NONE)?;
    let folder = folder()?;
    let tracing = tracer(&folder.path().join("x.pb.gz"), &[running.id()], &[])?;
    let ids: Vec<u64> = {
        let mut ids = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", tracing.id()))?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            ids.extend(
                text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse::<u64>().ok()),
            );
        }
        ids
    };
    ensure!(ids.len() > 5, "only {} maps", ids.len());
    interrupt(tracing)?.succeeded()?;
    // Maps are freed after a grace period.
    for _ in 0..1000 {
        let maps = bpftool(&["map", "show"])?;
        let left = maps
            .as_array()
            .into_iter()
            .flatten()
            // The kernel (6.18) may lose count of a program array that is looked at while it is being emptied.
            .filter(|map| map["type"] != "prog_array")
            .filter(|map| map["id"].as_u64().is_some_and(|id| ids.contains(&id)));
        if left.count() == 0 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    bail!("maps are left")
}
