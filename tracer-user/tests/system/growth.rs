//! Growth mode: resident memory by stack, against what the kernel itself says of the process.

use alloctrace::profile::{Amount, Domain, Metric, Profile, Residence};
use anyhow::{Context as _, Result, bail, ensure};

use crate::asked::Asked;
use crate::machine::Interpreter;
use crate::support::{Running, folder, interrupt, load, python, record, record_program, say, target, tracer};
use crate::{Test, each, free, one};

pub const TESTS: &[Test] = &[
    one("growth::every_way_to_get_memory", every_way),
    one("growth::at_the_peak", at_the_peak),
    one("growth::pages_of_a_file", pages_of_a_file),
    one("growth::fork", fork),
    one("growth::attached", attached),
    one("growth::in_little_room", in_little_room),
    each("growth::list", list),
    free("growth::list_without_a_lock", list),
];

const MIB: u64 = 1 << 20;
const GROWTH: [&str; 2] = ["--mode", "growth"];

/// Each case of `pages.py`, the function that touches most of its memory, and how much of it is left.
const CASES: [(&str, &str, Option<u64>); 14] = [
    ("list", "case_list", None),
    ("dropped_list", "case_dropped_list", None),
    ("growing_list", "case_growing_list", None),
    ("mmap", "touch", Some(100 * MIB)),
    ("mmap_all", "touch", Some(0)),
    ("dontneed", "touch", Some(20 * MIB)),
    ("sparse", "touch", Some(8 * MIB + 128 * 4096)),
    ("brk", "touch", Some(40 * MIB)),
    ("read", "case_read", Some(64 * MIB)),
    ("huge", "touch", Some(55 * MIB)),
    ("zero_page", "touch", Some(16 * MIB)),
    ("threads", "touch", Some(60 * MIB)),
    ("across_threads", "touch", Some(32 * MIB)),
    ("populate", "room", Some(50 * MIB)),
];

/// What stacks hold whose innermost function, or the one that calls it, is `function`.
fn held(profile: &Profile, metric: Metric, function: &str) -> Amount {
    let asked = Asked(profile);
    asked.sum(metric, |sample| {
        let mut names = asked.frames(sample).map(|frame| frame.function.split(".<locals>").next());
        sample.domain == Domain::Resident && names.by_ref().take(2).any(|name| name == Some(function))
    })
}

/// Fails unless a process's stacks are within 2 % of what the kernel says; gives back both.
fn reconciles(profile: &Profile, pid: Option<u32>) -> Result<(i128, u64)> {
    let process = profile.processes.iter().find(|process| pid.is_none_or(|pid| process.pid == pid));
    let residence = process.and_then(|process| process.residence.as_ref()).context("nothing was compared")?;
    let (Some((kernel, stacks)), Residence::Compared { gone_unseen, come_unseen, .. }) =
        (residence.both(), residence)
    else {
        bail!("{residence:?}")
    };
    let percent = residence.difference_percent().unwrap_or(0.0);
    ensure!(percent.abs() <= 2.0, "{percent} % off: {residence:?}");
    let allowed = stacks / 50;
    ensure!(*gone_unseen <= allowed && *come_unseen <= allowed, "corrected too much: {residence:?}");
    Ok((kernel, stacks))
}

fn close(found: u64, expected: u64) -> bool {
    // Half a percent, and what the interpreter itself needs on the way.
    found.abs_diff(expected) <= expected / 200 + MIB / 2
}

fn every_way(interpreter: &Interpreter) -> Result<()> {
    for (case, function, left) in CASES {
        let (profile, finished) = record_program(interpreter, "pages.py", &[case], &GROWTH)?;
        let (kernel, stacks) = reconciles(&profile, None).context(case)?;
        let grown: u64 = finished.stdout.trim().parse().context(case)?;
        let live = profile.total(Metric::Live).bytes;
        say(&format!("{case}: the kernel says {kernel}, stacks {stacks}, the program itself {grown}"));
        ensure!(close(live, stacks), "{case}: live {live}, stacks {stacks}");
        let own = held(&profile, Metric::Live, function).bytes;
        ensure!(close(own, left.unwrap_or(grown)), "{case}: `{function}` holds {own} of {grown}: {left:?}");
        ensure!(profile.recording.mode == "growth");
        ensure!(finished.stderr.contains("the kernel's RssAnon"), "{}", finished.stderr);
        Asked(&profile).has_lost_nothing()?;
    }
    Ok(())
}

fn at_the_peak(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "pages.py", &["mmap_all"], &GROWTH)?;
    let peak = held(&profile, Metric::Peak, "touch").bytes;
    ensure!(close(peak, 300 * MIB), "{peak} at the peak");
    let all = held(&profile, Metric::Allocated, "touch").bytes;
    ensure!(close(all, 368 * MIB), "{all} in all");
    Ok(())
}

/// Those that are written to become the process's own; those that are read do not.
fn pages_of_a_file(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let file = folder.path().join("bytes");
    std::fs::write(&file, vec![1_u8; 32 << 20])?;
    let file = file.to_str().context("a name")?;
    let (profile, _) = record_program(interpreter, "pages.py", &["private_file", file], &GROWTH)?;
    reconciles(&profile, None)?;
    let own = held(&profile, Metric::Live, "case_private_file").bytes;
    ensure!(close(own, 16 * MIB), "{own} of 16 MiB");
    Ok(())
}

/// A child starts with its parent's pages, which are nobody's growth; a copy of a page that it writes to is in place of the other.
fn fork(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &["--mode", "growth", "-v"]);
    let program = python(interpreter, "pages.py");
    command.arg(program.get_program()).args(program.get_args()).arg("fork");
    let mut running = Running::start(command)?;
    let child: u32 = running.line()?.parse()?;
    running.wait_for(&format!("armed process {child},"))?;
    running.write("go\n")?;
    let grown: u64 = running.line()?.parse()?;
    // The child waits; the recording ends with both of them there.
    running.signal(rustix::process::Signal::INT)?;
    running.wait_for("recording has ended")?;
    running.write("end\n")?;
    running.finish()?.succeeded()?;
    let profile = load(&output)?;
    let (kernel, stacks) = reconciles(&profile, Some(child))?;
    say(&format!("child: the kernel says {kernel}, stacks {stacks}, the program itself {grown}"));
    ensure!(close(stacks, 30 * MIB), "{stacks} in the child");
    let parent = profile.processes.iter().find(|process| process.pid != child).context("no parent")?;
    let (_, parent_stacks) = reconciles(&profile, Some(parent.pid))?;
    ensure!(close(parent_stacks, 44 * MIB), "{parent_stacks} in the parent");
    Ok(())
}

/// What was there before is no growth, and is not missed when it goes.
fn attached(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut running = target(interpreter, "pages.py", &["attached"])?;
    let pid = running.id();
    let tracer = tracer(&output, &[pid], &GROWTH)?;
    running.write("go\n")?;
    ensure!(running.line()? == "done");
    let finished = interrupt(tracer)?.succeeded()?;
    let profile = load(&output)?;
    let (kernel, stacks) = reconciles(&profile, Some(pid))?;
    say(&format!("attached: the kernel says {kernel}, stacks {stacks}"));
    let Some(Residence::Compared { gone_before, .. }) = profile.processes[0].residence else {
        bail!("nothing compared")
    };
    ensure!(close(gone_before, 30 * MIB), "{gone_before} of what was there has gone: {}", finished.stderr);
    let own = held(&profile, Metric::Live, "case_attached").bytes;
    ensure!(close(own, 50 * MIB), "{own} of 50 MiB");
    Ok(())
}

/// Pages past the table's room are thinned out, and stand for each other.
fn in_little_room(interpreter: &Interpreter) -> Result<()> {
    let flags = ["--mode", "growth", "--live-blocks", "20000"];
    let (profile, finished) = record_program(interpreter, "pages.py", &["mmap"], &flags)?;
    ensure!(profile.recording.losses.thinned > 0, "{}", finished.stderr);
    let own = held(&profile, Metric::Live, "touch").bytes;
    let share = own as f64 / (100 * MIB) as f64;
    say(&format!("live pages of a thinned account: {share:.4} of the truth"));
    ensure!((0.93..1.07).contains(&share), "{own} is {share} of what it should be");
    Ok(())
}

fn list(interpreter: &Interpreter) -> Result<()> {
    let (profile, finished) = record_program(interpreter, "pages.py", &["list"], &GROWTH)?;
    reconciles(&profile, None)?;
    let grown: u64 = finished.stdout.trim().parse()?;
    let own = held(&profile, Metric::Live, "case_list").bytes;
    ensure!(close(own, grown), "`case_list` holds {own} of {grown}");
    Ok(())
}
