//! Processes that come one after the other: what ended ones used is given back, and later ones get it.

use std::fs;
use std::path::Path;

use alloctrace::profile::{Amount, Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};

use crate::asked::Asked;
use crate::machine::Interpreter;
use crate::support::{Running, folder, load, python, record, say};
use crate::{Test, one};

pub const TESTS: &[Test] = &[
    one("workers::in_little_room", |interpreter| in_little_room(interpreter, "fork", 300, "12000")),
    one("workers::of_programs_in_little_room", |interpreter| {
        in_little_room(interpreter, "exec", 60, "24000")
    }),
    one("workers::more_than_there_are_slots", more_than_slots),
    one("workers::with_one_number", with_one_number).only_if(can_choose_numbers),
];

fn can_choose_numbers() -> bool {
    fs::OpenOptions::new().write(true).open("/proc/sys/kernel/ns_last_pid").is_ok()
}

/// Records workers; gives back the profile, and the process number of each.
fn recorded(
    interpreter: &Interpreter,
    kind: &str,
    number: usize,
    flags: &[&str],
) -> Result<(Profile, Vec<u32>)> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut tracer = record(&output, &[&["-v"], flags].concat());
    let program = python(interpreter, "workers.py");
    tracer.arg(program.get_program()).args(program.get_args());
    tracer.arg(kind).arg(number.to_string()).arg(folder.path());
    let mut running = Running::start(tracer)?;
    let mut pids = Vec::new();
    for place in 0..number {
        pids.push(serve(&mut running, kind, place, folder.path())?);
    }
    running.finish()?.succeeded()?;
    Ok((load(&output)?, pids))
}

/// Lets a worker go once it is armed.
fn serve(running: &mut Running, kind: &str, place: usize, folder: &Path) -> Result<u32> {
    let line = running.line()?;
    let (pid, own) = line.split_once(' ').context("no number")?;
    ensure!(own.parse() == Ok(place), "worker {own} came after {place}");
    let how = if kind == "exec" { "Found" } else { "Fork" };
    loop {
        let line = running.wait_for(&format!("armed process {pid},"))?;
        if line.contains(how) {
            break;
        }
    }
    fs::write(folder.join(format!("go-{place}")), "")?;
    Ok(pid.parse()?)
}

/// What a worker holds at its end; a `bytes` object has a header of 32 bytes and ends with a zero.
fn held(place: usize) -> Amount {
    let count = 10 + place as u64 % 7;
    Amount { bytes: count * 100_033, count }
}

/// What workers with this number held at their highest, in the order in which they came.
fn held_by(profile: &Profile, pid: u32) -> Vec<Amount> {
    let asked = Asked(profile);
    let places = (0..profile.processes.len()).filter(|place| profile.processes[*place].pid == pid);
    let held = |place| {
        asked.sum(Metric::Peak, |sample| {
            let function = asked.innermost(sample);
            // Start-up has comprehensions of its own, of which it depends on the moment of arming how much is seen.
            let is_ours = asked
                .frames(sample)
                .next()
                .is_some_and(|frame| frame.file.as_deref().is_some_and(|file| file.ends_with("workers.py")));
            // Before 3.12 a comprehension is a function of its own, and its list is malloc's as well.
            is_ours
                && sample.process.0 as usize == place
                && sample.domain == Domain::Malloc
                && (function.ends_with("<listcomp>") || function == "hold")
        })
    };
    places.map(held).collect()
}

/// Whether the blocks are all there. Their list takes up to three of malloc's blocks as well, of which one is left.
fn is_whole(amount: Amount, place: usize) -> bool {
    let expected = held(place);
    let more = |whole: u64, part: u64| whole.checked_sub(part).unwrap_or(u64::MAX);
    more(amount.count, expected.count) <= 1 && more(amount.bytes, expected.bytes) < 400
}

fn check(profile: &Profile, pids: &[u32]) -> Result<()> {
    for (place, pid) in pids.iter().enumerate() {
        let held = held_by(profile, *pid);
        ensure!(
            held.iter().any(|held| is_whole(*held, place)),
            "worker {place}, process {pid}, held {held:?}; lost {:?}",
            profile.recording.losses
        );
    }
    let losses = &profile.recording.losses;
    ensure!(losses.stack_table_full == 0, "{losses:?}");
    ensure!(losses.unfollowed_processes == 0 && losses.untold_processes == 0, "{losses:?}");
    let asked = Asked(profile);
    let full = asked.markers().into_iter().find(|marker| marker.contains("stack table is full"));
    ensure!(full.is_none(), "{full:?}");
    Ok(())
}

/// Together they have several times as many stacks as there is room for.
fn in_little_room(interpreter: &Interpreter, kind: &str, number: usize, room: &str) -> Result<()> {
    in_little_room_with(interpreter, kind, number, room, &[])
}

/// The same in another mode.
pub fn in_little_room_with(
    interpreter: &Interpreter,
    kind: &str,
    number: usize,
    room: &str,
    flags: &[&str],
) -> Result<()> {
    let (profile, pids) = recorded(interpreter, kind, number, &[&["--stacks", room], flags].concat())?;
    let (samples, room) = (profile.samples.len(), room.parse::<usize>()?);
    say(&format!("{}: {samples} stacks of {number} workers in room for {room}", interpreter.label));
    check(&profile, &pids)?;
    if kind == "fork" {
        // Programs of their own have thousands each at their start, more than the tracer keeps.
        ensure!(profile.recording.losses.merged_stacks == 0, "{:?}", profile.recording.losses);
    }
    // What is recorded of one program or another differs by when it was armed.
    let times = if kind == "fork" { 3 } else { 1 };
    ensure!(samples > times * room, "{samples} stacks would have fitted into {room}");
    Ok(())
}

/// There are 1,023 process slots.
fn more_than_slots(interpreter: &Interpreter) -> Result<()> {
    let (profile, pids) = recorded(interpreter, "fork", 1100, &["--stacks", "400000"])?;
    ensure!(profile.processes.len() == 1101, "{} processes", profile.processes.len());
    for (place, pid) in pids.iter().enumerate() {
        ensure!(held_by(&profile, *pid).iter().any(|held| is_whole(*held, place)), "worker {place}");
    }
    Ok(())
}

/// The kernel gives each the number of the one before: each is a process of its own, with its own amounts.
fn with_one_number(interpreter: &Interpreter) -> Result<()> {
    let (profile, pids) = recorded(interpreter, "same", 12, &[])?;
    ensure!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    let held = held_by(&profile, pids[0]);
    ensure!(held.len() == pids.len(), "{} processes", held.len());
    ensure!(held.iter().enumerate().all(|(place, held)| is_whole(*held, place)), "{held:?}");
    Ok(())
}
