//! The loop of a recording: what wakes it up, and what is done then.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use aya::maps::{MapData, RingBuf};
use rustc_hash::FxHashSet;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::command::{Change, Child};
use super::find::Finder;
use super::follow::{Follower, Step, Wanted};
use super::processes::{Origin, Processes};
use super::recorder::Recorder;
use super::target::{KnownPlans, Traced};
use super::wakes::{Wake, Wakes};
use super::{Progress, Recorded, Request, SessionError, Subject, system};
use crate::attach::known_kernels::{Verdict, verdict};
use crate::attach::{AttachError, Kernel, Mechanism, Readiness, give_back_large_blocks};
use crate::discover::{DiscoverError, Files, Target};
use crate::drain::ProcessEvent;
use crate::profile::{Cost, Coverage, Losses, Profile, Recording};

/// Somebody who is told how it goes.
pub trait Observer {
    /// Called about ten times a second.
    fn progress(&mut self, progress: Progress);
    /// Something that the user should know; one line.
    fn note(&mut self, line: &str);
    /// The recording has ended; the command may still run.
    fn finished(&mut self, profile: Profile);
}

/// Records. Everything is disarmed when this returns, or is dropped.
pub async fn record(request: &Request, observer: &mut impl Observer) -> Result<Recorded, SessionError> {
    let mut session = Session::load(request, observer)?;
    match &request.subject {
        Subject::Processes(pids) => session.attach_to(pids, observer).await,
        Subject::Command(command) => session.run_command(command, observer).await,
        Subject::Everything => session.attach_to_all(Finder::Everything, observer).await,
        Subject::Cgroup(path) => session.attach_to_all(Finder::cgroup(path)?, observer).await,
    }
}

struct Session<'a> {
    request: &'a Request,
    kernel: Kernel,
    ring: RingBuf<MapData>,
    readiness: Readiness,
    recorder: Recorder,
    processes: Processes,
    follower: Follower,
    /// The command, which is held and armed where it execs; 0: there is none.
    command: u32,
    /// Where more processes may come from.
    finder: Option<Finder>,
    /// What is known of files.
    files: Files,
    plans: KnownPlans,
    /// Those of the finder that have been looked at.
    seen: FxHashSet<u32>,
    started: Option<(SystemTime, Instant)>,
    default_metric: &'static str,
    /// What is lost of whole processes.
    losses: Losses,
}

impl<'a> Session<'a> {
    fn load(request: &'a Request, observer: &mut impl Observer) -> Result<Self, SessionError> {
        give_back_large_blocks();
        check_kernel(request, observer)?;
        let mechanism = match request.mechanism {
            Some(mechanism) => mechanism,
            None => best_mechanism(observer)?,
        };
        let mut kernel = Kernel::load(request.sizes, mechanism)?;
        kernel.watch_processes()?;
        let (ring, readiness) = kernel.take_ring()?;
        let recorder = Recorder::new(request.sizes.accounts, kernel.is_namespaced());
        let wanted = match request.subject {
            _ if !request.follow => Wanted::Named,
            Subject::Everything | Subject::Cgroup(_) => Wanted::All,
            Subject::Processes(_) | Subject::Command(_) => Wanted::Descendants,
        };
        Ok(Self {
            request,
            kernel,
            ring,
            readiness,
            recorder,
            processes: Processes::default(),
            follower: Follower::new(wanted),
            command: 0,
            files: Files::default(),
            plans: KnownPlans::default(),
            finder: None,
            seen: FxHashSet::default(),
            started: None,
            default_metric: "live",
            losses: Losses::default(),
        })
    }

    async fn attach_to(
        &mut self,
        pids: &[u32],
        observer: &mut impl Observer,
    ) -> Result<Recorded, SessionError> {
        // All are looked at before any is armed: a wrong number costs nothing.
        let mut targets = Vec::new();
        for pid in pids {
            targets.push((Target::inspect("/proc".as_ref(), *pid)?, process_descriptor(*pid)?));
        }
        come_first();
        let mut descriptors = Vec::new();
        for (target, descriptor) in targets {
            self.watch(target, Origin::Running, true, observer)?;
            descriptors.push(Readiness::new(descriptor).map_err(system("watch a process"))?);
        }
        // Before anybody is told that they may: an interrupt from now on ends the recording, and not us.
        let mut wakes = Wakes::new(self.request.duration)?;
        observer.note("recording; Ctrl-C ends it");
        loop {
            let retry = self.follower.next_try();
            let wake = tokio::select! {
                wake = wakes.next(&self.readiness, retry) => wake?,
                () = ends(&mut descriptors) => {
                    // What their children do is in the ring by now.
                    self.drain(observer)?;
                    self.retire_the_dead()?;
                    Wake::Records
                }
            };
            if matches!(wake, Wake::Interrupt | Wake::TimeIsUp | Wake::Forward(_)) {
                break;
            }
            self.serve(wake, observer)?;
            if !self.processes.any_runs() {
                break;
            }
        }
        let profile = self.finish(observer)?;
        Ok(Recorded { anything: hand_over(profile, observer), ran: true, status: None })
    }

    /// Every Python process that `finder` finds, now and later, until somebody ends it.
    async fn attach_to_all(
        &mut self,
        finder: Finder,
        observer: &mut impl Observer,
    ) -> Result<Recorded, SessionError> {
        // Told of what starts from now on, then a look at what runs: none is missed in between.
        self.kernel.tell_all_execs()?;
        let mut wakes = Wakes::new(self.request.duration)?;
        come_first();
        self.finder = Some(finder);
        self.started = Some((SystemTime::now(), Instant::now()));
        self.find_more(observer)?;
        observer.note("recording; Ctrl-C ends it");
        loop {
            let wake = wakes.next(&self.readiness, self.follower.next_try()).await?;
            if matches!(wake, Wake::Interrupt | Wake::TimeIsUp | Wake::Forward(_)) {
                break;
            }
            self.serve(wake, observer)?;
        }
        let profile = self.finish(observer)?;
        Ok(Recorded { anything: hand_over(profile, observer), ran: true, status: None })
    }

    /// Looks at processes of the finder that have not been looked at.
    fn find_more(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        let Some(finder) = &self.finder else { return Ok(()) };
        let found: FxHashSet<u32> = finder.processes()?.into_iter().collect();
        // A number that is gone may come back as another process.
        self.seen.retain(|pid| found.contains(pid));
        for pid in found {
            if self.seen.insert(pid) && self.processes.running(pid).is_none() {
                self.try_to_watch(pid, Origin::Running, observer)?;
            }
        }
        Ok(())
    }

    async fn run_command(
        &mut self,
        command: &[std::ffi::OsString],
        observer: &mut impl Observer,
    ) -> Result<Recorded, SessionError> {
        let mut wakes = Wakes::new(self.request.duration)?;
        let mut child = Child::start(&mut self.kernel, command)?;
        come_first();
        self.command = child.id();
        self.kernel.follow(self.command, 0)?;
        let mut anything = false;
        let mut ran = false;
        let mut recording = true;
        let status = loop {
            match child.change(&self.kernel)? {
                Some(Change::Ended(status)) => break status,
                Some(held) if recording => {
                    ran = true;
                    self.held(&mut child, &held, observer)?;
                    child.go_on()?;
                }
                Some(_) => child.go_on()?,
                None => {}
            }
            let wake = wakes.next(&self.readiness, self.follower.next_try()).await?;
            match wake {
                Wake::Interrupt | Wake::TimeIsUp if recording => {
                    recording = false;
                    child.release(&mut self.kernel)?;
                    anything = hand_over(self.finish(observer)?, observer);
                    observer.note("recording has ended; waiting for the command");
                }
                Wake::Forward(signal) => child.send(signal)?,
                wake if recording => self.serve(wake, observer)?,
                _ => {}
            }
        };
        if recording {
            self.default_metric = "peak";
            self.kernel.set_held(0)?;
            // Its end may have come before what was told of it; what runs still is its children.
            self.drain(observer)?;
            if let Some(place) = self.processes.running(self.command) {
                self.processes.retire(&mut self.kernel, place)?;
            }
            anything = hand_over(self.finish(observer)?, observer);
        }
        Ok(Recorded { anything, ran, status: Some(status) })
    }

    /// A hold of the command: the moment to find out what it runs, or to read its memory for the last time.
    fn held(
        &mut self,
        child: &mut Child,
        held: &Change,
        observer: &mut impl Observer,
    ) -> Result<(), SessionError> {
        match held {
            Change::HeldAfterExec => {
                if let Some(place) = self.processes.running(child.id()) {
                    self.processes.retire(&mut self.kernel, place)?;
                }
                child.hold_at_entry(&mut self.kernel)
            }
            Change::HeldAtEntry => {
                child.passed_entry();
                match Target::inspect("/proc".as_ref(), child.id()) {
                    Ok(target) => {
                        child.hold_at_exit(&mut self.kernel, &target)?;
                        self.watch(target, Origin::Start, true, observer)
                    }
                    // A shell, `env`, a launcher: what it execs may be Python.
                    Err(DiscoverError::NotPython { .. } | DiscoverError::NoProcess { .. }) => Ok(()),
                    Err(error) => {
                        observer.note(&error.to_string());
                        Ok(())
                    }
                }
            }
            Change::HeldAtExit => self.last_look(observer),
            Change::Ended(_) => Ok(()),
        }
    }

    fn watch(
        &mut self,
        target: Target,
        origin: Origin,
        is_root: bool,
        observer: &mut impl Observer,
    ) -> Result<(), SessionError> {
        let Some(slot) = self.processes.next_slot() else {
            self.losses.unfollowed_processes += 1;
            self.follower.settled(target.pid);
            return Ok(());
        };
        let pid = target.pid;
        // Before it is armed: no child of it is missed.
        self.kernel.follow(pid, slot)?;
        let parent = match origin {
            Origin::Fork { parent, .. } => self.processes.get(parent).map(|parent| &parent.traced),
            _ => None,
        };
        let armed = Traced::arm(&mut self.kernel, target, slot, parent, &mut self.plans, self.request.bare);
        let added = armed.and_then(|traced| {
            tracing::debug!("armed process {pid}, {origin:?}");
            self.processes.add(&self.kernel, &mut self.recorder, traced, origin, is_root)
        });
        if added.is_err() {
            self.processes.gave_up(&self.kernel, slot)?;
        }
        added?;
        self.started.get_or_insert_with(|| (SystemTime::now(), Instant::now()));
        self.follower.settled(pid);
        // What it uses now is known before anybody is told that it is recorded.
        self.processes.look_at_allocators(&mut self.kernel, true, |line| observer.note(line))
    }

    /// Watches a process that came by itself, if it is Python. What fails concerns that process only: it may be gone by now.
    fn try_to_watch(
        &mut self,
        pid: u32,
        origin: Origin,
        observer: &mut impl Observer,
    ) -> Result<(), SessionError> {
        if matches!(origin, Origin::Found { .. })
            && let Some(finder) = &self.finder
            && !finder.wants(pid)?
        {
            return self.forget(pid);
        }
        let target = match origin {
            Origin::Fork { parent, .. } => match self.processes.get(parent) {
                Some(parent) => parent.traced.target.of_fork(pid),
                None => return Ok(()),
            },
            _ => match Target::inspect_with(&mut self.files, "/proc".as_ref(), pid) {
                // Its malloc is not there yet; it is asked again.
                Ok(Target { c_library: None, .. })
                    if matches!(origin, Origin::Found { is_early: true, .. }) =>
                {
                    return Ok(());
                }
                Ok(target) => target,
                Err(DiscoverError::NotPython { .. }) => return Ok(()),
                // It is ending, or becoming another program: its files are gone from under it.
                Err(DiscoverError::Read { .. }) if matches!(origin, Origin::Found { is_early: true, .. }) => {
                    return Ok(());
                }
                Err(DiscoverError::NoProcess { .. }) => return self.forget(pid),
                Err(_) if !has_memory(pid) => return self.forget(pid),
                Err(error) => {
                    self.losses.unfollowed_processes += 1;
                    observer.note(&format!("{error}: it is not recorded"));
                    return self.forget(pid);
                }
            },
        };
        match self.watch(target, origin, false, observer) {
            Ok(()) => Ok(()),
            // It has ended meanwhile, and whatever failed failed for that.
            Err(error) if is_gone(&error) || !has_memory(pid) => {
                self.losses.ended_unarmed_processes += u64::from(matches!(origin, Origin::Fork { .. }));
                self.forget(pid)
            }
            Err(error) => {
                self.losses.unfollowed_processes += 1;
                observer.note(&format!("process {pid} is not recorded: {}", chain(&error)));
                self.forget(pid)
            }
        }
    }

    /// A process that is not recorded. It stays followed, for it may have children that are Python, unless every exec is told anyway.
    fn forget(&mut self, pid: u32) -> Result<(), SessionError> {
        self.follower.settled(pid);
        if self.finder.is_some() {
            self.kernel.unfollow(pid)?;
        }
        Ok(())
    }

    /// Does what is due after a wake-up.
    fn serve(&mut self, wake: Wake, observer: &mut impl Observer) -> Result<(), SessionError> {
        self.drain(observer)?;
        for step in self.follower.due(Instant::now()) {
            self.take_step(step, observer)?;
        }
        if wake == Wake::Tick {
            // Who enters a control group need not exec; who starts on the host does, or is a child.
            if matches!(self.finder, Some(Finder::Cgroup(_))) {
                self.find_more(observer)?;
            }
            self.tick(observer)?;
        }
        Ok(())
    }

    fn drain(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        self.processes.look_at_allocators(&mut self.kernel, true, |line| observer.note(line))?;
        // Steps arm processes, and records of theirs come meanwhile; those are taken the next time.
        let mut told = Vec::new();
        while let Some(record) = self.ring.next() {
            told.extend(self.recorder.take(&record));
        }
        for event in told {
            // The command itself is held where it execs, and handled there.
            let is_command = |pid: u32| pid == self.command;
            if matches!(event, ProcessEvent::Exec { pid, .. } if is_command(pid)) {
                if self.processes.running(self.command).is_none() {
                    self.kernel.follow(self.command, 0)?;
                }
                continue;
            }
            if let Some(step) = self.follower.take(event, Instant::now()) {
                self.take_step(step, observer)?;
            }
        }
        Ok(())
    }

    fn take_step(&mut self, step: Step, observer: &mut impl Observer) -> Result<(), SessionError> {
        match step {
            Step::ArmFork { pid, parent, nanoseconds, parent_events } => {
                let Some(place) = self.processes.running(parent) else {
                    self.follower.ask_fork(pid, parent, nanoseconds, Instant::now());
                    return Ok(());
                };
                self.try_to_watch(pid, Origin::Fork { parent: place, nanoseconds, parent_events }, observer)
            }
            Step::Wipe { pid, parent } => {
                let place = self.processes.running(parent);
                if let Some(parent) = place.and_then(|place| self.processes.get(place)) {
                    parent.traced.wipe(&mut self.kernel, pid);
                }
                Ok(self.kernel.unfollow(pid)?)
            }
            Step::Inspect { pid, parent, nanoseconds, execed, is_early } => {
                self.try_to_watch(pid, Origin::Found { parent, nanoseconds, execed, is_early }, observer)
            }
            Step::GiveUp { pid } => self.forget(pid),
            Step::Retire { pid, replaced } => {
                let Some(place) = self.processes.running(pid) else { return Ok(()) };
                let is_root = self.processes.get(place).is_some_and(|watched| watched.is_root);
                self.processes.retire(&mut self.kernel, place)?;
                if replaced && is_root {
                    observer.note(&format!("process {pid} has replaced itself by another program"));
                }
                Ok(())
            }
        }
    }

    /// Of those that have ended nobody may have told us: the ring buffer may have been full.
    fn retire_the_dead(&mut self) -> Result<(), SessionError> {
        for place in self.processes.dead() {
            self.processes.retire(&mut self.kernel, place)?;
        }
        Ok(())
    }

    fn tick(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        self.retire_the_dead()?;
        self.processes.tick(&mut self.kernel, &mut self.plans)?;
        self.processes.look_at_allocators(&mut self.kernel, false, |line| observer.note(line))?;
        let mut progress = Progress::default();
        if let Some((_, started)) = self.started {
            progress.elapsed = started.elapsed();
        }
        self.processes.progress(&self.kernel, &mut progress)?;
        self.processes.tell(&mut self.recorder, |note| observer.note(note));
        observer.progress(progress);
        Ok(())
    }

    fn last_look(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        self.processes.look_at_allocators(&mut self.kernel, false, |line| observer.note(line))?;
        self.processes.last_look(&self.kernel)
    }

    /// Disarms everything and makes the profile.
    fn finish(&mut self, observer: &mut impl Observer) -> Result<Option<Profile>, SessionError> {
        if self.started.is_some() {
            self.last_look(observer)?;
        }
        let elapsed = self.started.map(|(_, started)| started.elapsed());
        self.processes.disarm();
        self.processes.tell(&mut self.recorder, |note| observer.note(note));
        self.drain(observer)?;
        let (Some((start, _)), Some(elapsed)) = (self.started, elapsed) else { return Ok(None) };
        let recording = Recording {
            mode: "exact".to_owned(),
            seen_fraction: 1.0,
            start_nanoseconds: start
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
            duration_nanoseconds: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            default_metric: self.default_metric.to_owned(),
            coverage: self.coverage(),
            live_bytes_error: 0,
            losses: Losses { untold_processes: self.kernel.untold()?, ..self.losses.clone() },
            cost: Cost { target_percent: None, tracer_cpu_percent: own_cpu_percent(elapsed) },
            events: 0,
        };
        let recorder = std::mem::replace(&mut self.recorder, Recorder::new(0, false));
        recorder.into_profile(&self.kernel, recording, &self.processes.gone()).map(Some)
    }

    fn coverage(&self) -> Coverage {
        if self.request.bare {
            return Coverage::Unmeasured { unmeasured: "the probes counted nothing (a bench)".to_owned() };
        }
        self.processes.coverage()
    }
}

/// Refuses kernels that are known to fail, unless asked not to.
fn check_kernel(request: &Request, observer: &mut impl Observer) -> Result<(), SessionError> {
    // Without it nothing is known, and nothing is refused.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim_end();
    match verdict(release) {
        Verdict::Fine => {}
        Verdict::Refused(reason) if !request.any_kernel => {
            return Err(AttachError::BadKernel { release: release.to_owned(), reason }.into());
        }
        Verdict::Warned(reason) | Verdict::Refused(reason) => {
            observer.note(&format!("beware of the kernel {release}: {reason}"));
        }
    }
    Ok(())
}

/// The best that this kernel has; a word about it where it is not the usual one.
fn best_mechanism(observer: &mut impl Observer) -> Result<Mechanism, SessionError> {
    let mechanism = Mechanism::best()?;
    if let Some(note) = mechanism.note() {
        observer.note(note);
    }
    Ok(mechanism)
}

/// Asks for a processor before others: a tracer that waits too long for one finds its ring buffer full. After a command has
/// been started, which must not inherit it; and without the right to, things are as they were.
///
/// And for more files than most may have open: each process takes about six.
fn come_first() {
    let _ = rustix::process::setpriority_process(None, -10);
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Whether an error says that there is no such process any more.
const fn is_gone(error: &SessionError) -> bool {
    matches!(error, SessionError::Attach(AttachError::Gone { .. }) | SessionError::Discover(_))
}

/// Whether a process has not ended: one that has is listed until its parent asks for its status, but has no memory.
fn has_memory(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/maps")).is_ok_and(|text| !text.is_empty())
}

/// An error and its causes, in one line.
fn chain(error: &SessionError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Whether there was a profile to hand over.
fn hand_over(profile: Option<Profile>, observer: &mut impl Observer) -> bool {
    let Some(profile) = profile else { return false };
    observer.finished(profile);
    true
}

fn own_cpu_percent(elapsed: Duration) -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    if elapsed.is_zero() { 0.0 } else { used / elapsed.as_secs_f64() * 100.0 }
}

/// What becomes readable when a process ends.
pub fn process_descriptor(pid: u32) -> Result<OwnedFd, SessionError> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(DiscoverError::NoProcess { pid })?;
    pidfd_open(number, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH => AttachError::Gone { pid }.into(),
        other => system("watch a process")(other),
    })
}

/// Waits until every process has ended; those are forgotten then.
async fn ends(descriptors: &mut Vec<Readiness>) {
    if descriptors.is_empty() {
        return std::future::pending().await;
    }
    for descriptor in descriptors.iter() {
        // A descriptor that cannot be watched counts as ended: the recording then ends too early rather than never.
        let _ = descriptor.wait().await;
    }
    descriptors.clear();
}
