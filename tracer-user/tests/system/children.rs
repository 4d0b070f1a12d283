//! Processes that come by themselves: children of every kind, `-a`, `--cgroup`, and what is left when they end.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, thread};

use alloctrace::profile::{Amount, Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};

use crate::asked::{Asked, amount};
use crate::attach::Points;
use crate::machine::Interpreter;
use crate::support::{Running, alloctrace, folder, interrupt, load, python, record, run, say};
use crate::{Test, each, once, one};

pub const TESTS: &[Test] = &[
    each("children::of_fork", |interpreter| are_recorded(interpreter, "fork", 3)),
    one("children::of_a_child", |interpreter| are_recorded(interpreter, "grandchild", 2)),
    each("children::of_subprocess", |interpreter| are_recorded(interpreter, "subprocess", 2)),
    one("children::of_multiprocessing_fork", |interpreter| are_recorded(interpreter, "fork", 2)),
    one("children::of_multiprocessing_spawn", |interpreter| are_recorded(interpreter, "spawn", 2)),
    one("children::of_multiprocessing_forkserver", |interpreter| are_recorded(interpreter, "forkserver", 2)),
    one("children::two_hundred", |interpreter| are_recorded(interpreter, "fork", 200)),
    one("children::of_a_moment", of_a_moment),
    one("children::are_left_alone", are_left_alone),
    one("children::that_have_ended_hold_nothing", ended_hold_nothing),
    one("children::all", all),
    one("children::of_a_control_group", of_a_control_group).only_if(|| control_groups().is_some()),
    once("children::of_no_control_group", of_no_control_group),
];

/// Programs that end before they can be armed, some of them: each is in the profile or counted.
fn of_a_moment(interpreter: &Interpreter) -> Result<()> {
    const TEXT: &str = "
import subprocess, sys
for _ in range(40):
    subprocess.check_call([sys.executable, '-S', '-E', '-c', 'pass'])
    subprocess.check_call(['true'])
";
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.arg(&interpreter.python).args(["-c", TEXT]);
    run(command)?.succeeded()?;
    let profile = load(&output)?;
    let recorded = profile.processes.len() as u64 - 1;
    let missed = profile.recording.losses.ended_unarmed_processes;
    say(&format!("{recorded} recorded, {missed} counted"));
    ensure!(recorded + missed == 40, "{recorded} recorded, {missed} missed");
    Ok(())
}

/// Blocks that every child holds: `bytes` objects have a header of 32 bytes and end with a zero.
const HELD: Amount = Amount { bytes: 50 * 100_033, count: 50 };

/// A program whose children wait for files.
struct Family {
    folder: tempfile::TempDir,
    children: HashSet<u32>,
}

impl Family {
    fn new() -> Result<Self> {
        Ok(Self { folder: folder()?, children: HashSet::new() })
    }

    fn command(&self, mut command: Command, interpreter: &Interpreter, kind: &str, number: usize) -> Command {
        let program = python(interpreter, "children.py");
        command.arg(program.get_program()).args(program.get_args());
        command.arg(kind).arg(number.to_string()).arg(self.folder.path());
        command
    }

    /// Reads the numbers of the children.
    fn born(&mut self, running: &mut Running, number: usize) -> Result<()> {
        while self.children.len() < number {
            self.children.insert(running.line()?.parse()?);
        }
        Ok(())
    }

    /// Waits until the tracer has said of each that it is armed.
    ///
    /// `how`: what must be said of how it came in; a fork that execs at once is armed twice.
    fn armed(&self, tracer: &mut Running, how: &str) -> Result<()> {
        let mut missing = self.children.clone();
        while !missing.is_empty() {
            let line = tracer.wait_for("armed process ")?;
            if !line.contains(how) {
                continue;
            }
            let number = line.split("armed process ").nth(1).context("no number")?;
            let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
            missing.remove(&digits.parse()?);
        }
        Ok(())
    }

    fn say(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.folder.path().join(name), "")?)
    }

    fn have_held(&self) {
        for child in &self.children {
            while !self.folder.path().join(format!("held-{child}")).exists() {
                thread::yield_now();
            }
        }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("x.pb.gz")
    }

    fn hold_theirs(&self, profile: &Profile, metric: Metric, expected: Amount) -> Result<()> {
        for child in &self.children {
            let held = held_by(profile, *child, metric);
            ensure!(held == expected, "{child} held {held:?}, of {:?}", profile.processes);
        }
        Ok(())
    }
}

fn held_by(profile: &Profile, pid: u32, metric: Metric) -> Amount {
    let asked = Asked(profile);
    asked.sum(metric, |sample| {
        let process = &profile.processes[sample.process.0 as usize];
        // Before 3.12 a comprehension is a function of its own.
        let function = asked.innermost(sample);
        process.pid == pid
            && sample.domain == Domain::Malloc
            && (function.ends_with("<listcomp>") || function == "hold")
    })
}

fn are_recorded(interpreter: &Interpreter, kind: &str, number: usize) -> Result<()> {
    let mut family = Family::new()?;
    let tracer = record(&family.output(), &["-v"]);
    let mut running = Running::start(family.command(tracer, interpreter, kind, number))?;
    family.born(&mut running, number)?;
    let execs = kind == "subprocess" || kind == "spawn";
    family.armed(&mut running, if execs { "Found" } else { "Fork" })?;
    family.say("go")?;
    family.have_held();
    family.say("end")?;
    running.finish()?.succeeded()?;
    let profile = load(&family.output())?;
    family.hold_theirs(&profile, Metric::Peak, HELD)?;
    let followed: Vec<_> = profile
        .processes
        .iter()
        .filter_map(|process| Some((process.pid, process.followed.as_ref()?)))
        .collect();
    ensure!(followed.len() >= number, "{:?}", profile.processes);
    let after = followed.iter().map(|(_, followed)| followed.armed_after_nanoseconds);
    let blocks: u64 = followed.iter().filter_map(|(_, followed)| followed.blocks_before).sum();
    let losses = &profile.recording.losses;
    ensure!(losses.blocks_before_armed == blocks, "{losses:?}");
    ensure!(losses.unfollowed_processes == 0 && losses.untold_processes == 0, "{losses:?}");
    say(&format!(
        "{}: {} by {kind}, armed after {:.1} ms at the latest, {blocks} blocks before",
        interpreter.label,
        followed.len(),
        after.max().unwrap_or(0) as f64 / 1e6
    ));
    Ok(())
}

fn are_left_alone(interpreter: &Interpreter) -> Result<()> {
    let mut family = Family::new()?;
    let tracer = record(&family.output(), &["--no-follow"]);
    let mut running = Running::start(family.command(tracer, interpreter, "fork", 1))?;
    family.born(&mut running, 1)?;
    let child = *family.children.iter().next().context("no child")?;
    // The parent is armed all the time; the child has its breakpoints no longer, and pays for none.
    Points::of(child)?.wait_until_restored()?;
    family.say("go")?;
    family.have_held();
    family.say("end")?;
    running.finish()?.succeeded()?;
    let profile = load(&family.output())?;
    ensure!(profile.processes.len() == 1, "{:?}", profile.processes);
    ensure!(Asked(&profile).function(Metric::Allocated, Domain::Malloc, "hold") == amount(0, 0));
    Ok(())
}

fn ended_hold_nothing(interpreter: &Interpreter) -> Result<()> {
    let mut family = Family::new()?;
    // Started by hand: the parent goes on after its child has ended.
    let text = format!(
        "import sys; sys.argv = ['', 'none', '1', {0:?}]; exec(open({1:?}).read().split('if __name__')[0]); \
         main('fork', 1, {0:?}); open({0:?} + '/over', 'w'); wait_for({0:?}, 'really-end')",
        family.folder.path(),
        crate::support::program("children.py"),
    );
    let mut tracer = record(&family.output(), &["-v"]);
    tracer.arg(&interpreter.python).args(["-I", "-c", &text]);
    let mut running = Running::start(tracer)?;
    family.born(&mut running, 1)?;
    family.armed(&mut running, "Fork")?;
    family.say("go")?;
    family.have_held();
    family.say("end")?;
    while !family.folder.path().join("over").exists() {
        thread::yield_now();
    }
    running.signal(rustix::process::Signal::INT)?;
    running.wait_for("recording has ended")?;
    family.say("really-end")?;
    running.finish()?;
    let profile = load(&family.output())?;
    family.hold_theirs(&profile, Metric::Peak, HELD)?;
    family.hold_theirs(&profile, Metric::Live, Amount::default())?;
    let ended: Vec<u32> =
        profile.processes.iter().filter(|process| process.ended).map(|process| process.pid).collect();
    ensure!(ended == family.children.iter().copied().collect::<Vec<_>>(), "{:?}", profile.processes);
    Ok(())
}

/// One that runs already, and one that starts later.
fn found_by(interpreter: &Interpreter, flags: &[&str], enter: impl Fn(&Running) -> Result<()>) -> Result<()> {
    let (mut early, mut late) = (Family::new()?, Family::new()?);
    let start = |family: &Family| {
        Running::start(family.command(Command::new("/usr/bin/env"), interpreter, "child", 1))
    };
    let mut first = start(&early)?;
    early.born(&mut first, 1)?;
    enter(&first)?;
    let mut tracer = alloctrace();
    tracer.args(["record", "-v", "--mode", "exact", "-o"]).arg(early.output()).args(flags);
    let mut tracer = Running::start(tracer)?;
    early.armed(&mut tracer, "Running")?;
    let mut second = start(&late)?;
    enter(&second)?;
    late.born(&mut second, 1)?;
    late.armed(&mut tracer, "")?;
    for family in [&early, &late] {
        family.say("go")?;
        family.have_held();
    }
    interrupt(tracer)?.succeeded()?;
    let profile = load(&early.output())?;
    for (family, running) in [(early, first), (late, second)] {
        family.hold_theirs(&profile, Metric::Live, HELD)?;
        family.say("end")?;
        running.finish()?.succeeded()?;
    }
    Ok(())
}

fn all(interpreter: &Interpreter) -> Result<()> {
    found_by(interpreter, &["-a"], |_| Ok(()))
}

/// Where control groups can be made: the unified hierarchy, or one of the old ones.
fn control_groups() -> Option<&'static Path> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"];
    places.into_iter().map(Path::new).find(|place| place.join("cgroup.procs").exists())
}

fn of_a_control_group(interpreter: &Interpreter) -> Result<()> {
    let place = control_groups().context("no control groups")?;
    let group = place.join(format!("alloctrace-test-{}", std::process::id()));
    fs::create_dir_all(group.join("below"))?;
    let enter =
        |running: &Running| Ok(fs::write(group.join("below/cgroup.procs"), running.id().to_string())?);
    let flag = group.to_string_lossy().into_owned();
    let found = found_by(interpreter, &["--cgroup", &flag], enter);
    // They can be removed once their processes are gone.
    let _ = fs::remove_dir(group.join("below")).and_then(|()| fs::remove_dir(&group));
    found
}

fn of_no_control_group() -> Result<()> {
    let mut command = alloctrace();
    command.args(["record", "--cgroup", "/no/such/group"]);
    let finished = run(command)?;
    ensure!(finished.code() == Some(2), "{:?}", finished.status);
    ensure!(finished.one_line()?.contains("found no control group `/no/such/group`"));
    Ok(())
}
