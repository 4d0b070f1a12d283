//! The loop of a recording: what wakes it up, and what is done then.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use aya::maps::{MapData, RingBuf};
use rustc_hash::FxHashSet;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::command::{Change, Child};
use super::estimates::Estimates;
use super::find::Finder;
use super::follow::{Follower, Wanted, leave_out_the_dead};
use super::looks::Looks;
use super::preparation::{
    check_kernel, come_first, follow_number, open_many_files, own_cpu_percent, own_cpu_seconds, possible,
};
use super::processes::{Gone, Origin, Processes};
use super::recorder::Recorder;
use super::snapshot::{Awaited, Victims, nanoseconds_since_epoch};
use super::target::KnownPlans;
use super::wakes::{Wake, Wakes};
use super::windows::Windows;
use super::{Mode, Progress, Recorded, Request, SessionError, Subject, system};
use crate::attach::{AttachError, Kernel, Mechanism, Readiness, give_back_large_blocks};
use crate::discover::{DiscoverError, Files, Target};
use crate::drain::ProcessEvent;
use crate::profile::{Cost, Coverage, Losses, ProcessIndex, Profile, Recording, Series};

/// Records that are read in a row: more than the ring buffer holds of the smallest.
const MOST_RECORDS: u32 = 1 << 19;

/// Somebody who is told how it goes.
pub trait Observer {
    /// Called about ten times a second.
    fn progress(&mut self, progress: Progress);
    /// Something that the user should know; one line.
    fn note(&mut self, line: &str);
    /// The recording has ended; the command may still run.
    fn finished(&mut self, profile: Profile);
    /// What was seen until now; the recording goes on.
    fn snapshot(&mut self, _profile: Profile) {}
    /// These were killed for want of memory: what is known, with their memory as it was at their end.
    fn victims(&mut self, _profile: Profile, _pids: &[u32]) {}
}

/// Records. Everything is disarmed when this returns, or is dropped.
pub async fn record(request: &Request, observer: &mut impl Observer) -> Result<Recorded, SessionError> {
    check_kernel(request, observer)?;
    let request = &possible(request, observer)?;
    let mut session = Session::load(request)?;
    match &request.subject {
        Subject::Processes(pids) => session.attach_to(pids, observer).await,
        Subject::Command(command) => session.run_command(command, observer).await,
        Subject::Everything => session.attach_to_all(Finder::Everything, observer).await,
        Subject::Cgroup(path) => session.attach_to_all(Finder::cgroup(path)?, observer).await,
        Subject::Named(words) => session.attach_to_all(Finder::Named(words.clone()), observer).await,
    }
}

pub(super) struct Session<'a> {
    pub(super) request: &'a Request,
    pub(super) kernel: Kernel,
    pub(super) ring: RingBuf<MapData>,
    pub(super) readiness: Readiness,
    pub(super) recorder: Recorder,
    pub(super) processes: Processes,
    pub(super) follower: Follower,
    /// The command, which is held and armed where it execs; 0: there is none.
    pub(super) command: u32,
    /// Where more processes may come from.
    pub(super) finder: Option<Finder>,
    /// What is known of files.
    pub(super) files: Files,
    pub(super) plans: KnownPlans,
    /// Those of the finder that have been looked at.
    pub(super) seen: FxHashSet<u32>,
    pub(super) started: Option<(SystemTime, Instant)>,
    pub(super) default_metric: &'static str,
    /// What has happened to processes and waits.
    told: Vec<ProcessEvent>,
    /// What is lost of whole processes.
    pub(super) losses: Losses,
    /// Processes that ran when this was last asked.
    number: usize,
    /// In budget mode.
    pub(super) windows: Option<Windows>,
    /// What memory is made of; not in benches.
    pub(super) looks: Option<Looks>,
    /// CPU time that we had used when the recording began.
    own_cpu: f64,
    /// A snapshot that was begun.
    pub(super) awaited: Option<Awaited>,
    /// Where processes that are killed for want of memory leave their last account.
    pub(super) victims: Option<Victims>,
}

impl<'a> Session<'a> {
    fn load(request: &'a Request) -> Result<Self, SessionError> {
        give_back_large_blocks();
        let mechanism = match request.mechanism {
            Some(mechanism) => mechanism,
            None => Mechanism::best()?,
        };
        let mut kernel = Kernel::load(request.sizes, mechanism)?;
        kernel.watch_processes()?;
        if request.mode == Mode::Growth {
            kernel.watch_faults()?;
        }
        let windows = match request.mode {
            Mode::Budget { percent } => {
                let attached = !matches!(request.subject, Subject::Command(_));
                Some(Windows::new(&mut kernel, percent, attached)?)
            }
            Mode::Exact | Mode::Growth => None,
        };
        let (ring, readiness) = kernel.take_ring()?;
        let recorder = Recorder::new(request.sizes.accounts, kernel.is_namespaced());
        let looks = if request.bare || request.steering.leaves_out_looks {
            None
        } else {
            Some(Looks::start().map_err(system("start a thread"))?)
        };
        let wanted = match request.subject {
            _ if !request.follow => Wanted::Named,
            Subject::Everything | Subject::Cgroup(_) | Subject::Named(_) => Wanted::All,
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
            told: Vec::new(),
            losses: Losses::default(),
            number: 0,
            windows,
            looks,
            // A command is ours to start: what that took counts.
            own_cpu: if request.steering.control.is_some() { own_cpu_seconds() } else { 0.0 },
            awaited: None,
            victims: request.steering.keeps_victims.then(Victims::default),
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
        come_first(0);
        open_many_files();
        let mut descriptors = Vec::new();
        for (target, descriptor) in targets {
            self.watch(target, Origin::Running, true, observer)?;
            descriptors.push(Readiness::new(descriptor).map_err(system("watch a process"))?);
        }
        // Before anybody is told that they may: an interrupt from now on ends the recording, and not us.
        let mut wakes = Wakes::new(self.request.duration, &self.request.steering)?;
        observer.note("recording; Ctrl-C ends it");
        loop {
            let retry = self.next_step();
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
        self.hand_over_victims(observer)?;
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
        let mut wakes = Wakes::new(self.request.duration, &self.request.steering)?;
        come_first(0);
        open_many_files();
        self.finder = Some(finder);
        self.started = Some((SystemTime::now(), Instant::now()));
        self.find_more(observer)?;
        observer.note("recording; Ctrl-C ends it");
        loop {
            let wake = wakes.next(&self.readiness, self.next_step()).await?;
            if matches!(wake, Wake::Interrupt | Wake::TimeIsUp | Wake::Forward(_)) {
                break;
            }
            self.serve(wake, observer)?;
        }
        self.hand_over_victims(observer)?;
        let profile = self.finish(observer)?;
        Ok(Recorded { anything: hand_over(profile, observer), ran: true, status: None })
    }

    /// Has windows do what is due.
    pub(super) fn step_windows(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        let Some(windows) = &mut self.windows else { return Ok(()) };
        let was_whole = windows.is_whole();
        let blocks = || {
            // Processes may write as fast as this reads.
            for _ in 0..MOST_RECORDS {
                let Some(record) = self.ring.next() else { break };
                self.told.extend(self.recorder.take(&record));
            }
            self.recorder.take_blocks()
        };
        windows.step(&mut self.kernel, &self.processes, blocks, |line| observer.note(line))?;
        if was_whole && !windows.is_whole() {
            self.processes.are_windowed();
        }
        if let Some(dropped) = windows.take_dropped() {
            self.processes.drop_kept(dropped);
        }
        Ok(())
    }

    /// Windows say for the last time what they know of processes whose accounts are about to be given back.
    fn close_windows(&mut self) -> Result<(), SessionError> {
        let leaving = self.processes.leaving();
        let Some(windows) = self.windows.as_mut().filter(|_| !leaving.is_empty()) else { return Ok(()) };
        match windows.close(&self.kernel, &self.processes, &leaving)? {
            Some(known) => self.recorder.add_estimates(known),
            None => self.recorder.are_exact(leaving),
        }
        Ok(())
    }

    /// When there is something to do without being told.
    fn next_step(&self) -> Option<Instant> {
        let window = self.windows.as_ref().and_then(Windows::next_step).filter(|_| self.processes.any_runs());
        let reclaim = self.processes.next_step();
        self.follower.next_try().into_iter().chain(reclaim).chain(window).min()
    }

    async fn run_command(
        &mut self,
        command: &[std::ffi::OsString],
        observer: &mut impl Observer,
    ) -> Result<Recorded, SessionError> {
        let mut wakes = Wakes::new(self.request.duration, &self.request.steering)?;
        let mut child = Child::start(&mut self.kernel, command)?;
        come_first(0);
        open_many_files();
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
            let wake = wakes.next(&self.readiness, self.next_step()).await?;
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
            Change::HeldAtExit => {
                if let Some(windows) = &mut self.windows {
                    windows.look(&self.kernel, &self.processes)?;
                }
                self.processes.reckon(&mut self.kernel, &mut self.recorder, Some(child.id()))?;
                // It has tidied up behind itself; of a short one there is no other look.
                if let (Some(looks), Some(place)) = (&self.looks, self.processes.running(child.id()))
                    && let Some(watched) = self.processes.get(place)
                {
                    looks.settle(watched.index);
                }
                self.last_look(observer)
            }
            Change::Ended(_) => Ok(()),
        }
    }

    /// Does what is due after a wake-up.
    fn serve(&mut self, wake: Wake, observer: &mut impl Observer) -> Result<(), SessionError> {
        self.drain(observer)?;
        if self.windows.is_some() {
            self.step_windows(observer)?;
            self.close_windows()?;
        }
        self.processes.reclaim(&mut self.kernel, &mut self.recorder, |line| observer.note(line))?;
        for account in self.recorder.take_given_back() {
            self.windows.iter_mut().for_each(|windows| windows.forget(account));
        }
        for step in self.follower.due(Instant::now()) {
            self.take_step(step, observer)?;
        }
        if wake == Wake::Snapshot {
            self.begin_snapshot();
        }
        if wake == Wake::Tick {
            self.hand_over_snapshot(observer)?;
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
        self.read_ring();
        let mut told = std::mem::take(&mut self.told);
        self.count_unarmed(leave_out_the_dead(&mut told));
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

    /// Reads all that was sent; what happened to processes waits.
    fn read_ring(&mut self) {
        while let Some(record) = self.ring.next() {
            self.told.extend(self.recorder.take(&record));
        }
        if let Some(windows) = &mut self.windows {
            windows.opened(self.recorder.take_openings());
            // What comes as a window closes.
            self.recorder.take_blocks();
        }
    }

    fn tick(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        self.retire_the_dead()?;
        // Before anything of theirs is given back.
        self.hand_over_victims(observer)?;
        self.keep_its_turn();
        self.processes.tick(&mut self.kernel, &mut self.plans)?;
        self.processes.look_at_allocators(&mut self.kernel, false, |line| observer.note(line))?;
        let mut progress = Progress::default();
        if let Some((_, started)) = self.started {
            progress.elapsed = started.elapsed();
        }
        self.processes.progress(&self.kernel, &self.recorder, &mut progress)?;
        self.processes.tell(&mut self.recorder, |note| observer.note(note));
        observer.progress(progress);
        Ok(())
    }

    /// Asks for a processor as the number of processes wants it.
    pub(super) fn keep_its_turn(&mut self) {
        let number = self.processes.count_running();
        follow_number(std::mem::replace(&mut self.number, number), number);
    }

    fn last_look(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        self.processes.look_at_allocators(&mut self.kernel, false, |line| observer.note(line))?;
        self.processes.last_look(&self.kernel)
    }

    /// Disarms everything and makes the profile.
    fn finish(&mut self, observer: &mut impl Observer) -> Result<Option<Profile>, SessionError> {
        if self.started.is_some() {
            self.processes.reckon(&mut self.kernel, &mut self.recorder, None)?;
            self.last_look(observer)?;
        }
        let elapsed = self.started.map(|(_, started)| started.elapsed());
        if let Some(windows) = &mut self.windows {
            windows.last_look(&mut self.kernel, &self.processes)?;
        }
        // Who opened the pools that it saw.
        self.read_ring();
        // Taken: what is told last must not open another.
        let estimates = match &mut self.windows.take() {
            Some(windows) => Some(windows.finish(&mut self.kernel, &self.processes)?),
            None => None,
        };
        self.processes.disarm();
        let memory = self.looks.take().map(Looks::finish).unwrap_or_default();
        self.processes.tell(&mut self.recorder, |note| observer.note(note));
        self.drain(observer)?;
        let (Some((start, _)), Some(elapsed)) = (self.started, elapsed) else { return Ok(None) };
        let recorder = std::mem::replace(&mut self.recorder, Recorder::new(0, false));
        self.make_profile(recorder, estimates, memory, (start, elapsed), &self.processes.gone()).map(Some)
    }

    /// The profile of what has been received. `memory`: what was seen of each process's memory over time; `span`: when it began and how long it has lasted.
    pub(super) fn make_profile(
        &self,
        mut recorder: Recorder,
        mut estimates: Option<Estimates>,
        memory: Vec<(ProcessIndex, Series)>,
        (start, elapsed): (SystemTime, Duration),
        gone: &Gone,
    ) -> Result<Profile, SessionError> {
        let requested =
            memory.iter().filter_map(|(_, series)| series.requested_at_most()).reduce(|sum, of| sum + of);
        if let (Some(estimates), Some(requested)) = (&mut estimates, requested) {
            estimates.doubt(requested);
        }
        let estimated = estimates.as_ref().filter(|estimates| estimates.known.is_some());
        let knows_live = estimated.is_none_or(|estimates| estimates.summary.knows_live);
        let recording = Recording {
            mode: self.request.mode.name().to_owned(),
            seen_fraction: estimates.as_ref().map_or(1.0, |estimates| estimates.seen_fraction),
            start_nanoseconds: nanoseconds_since_epoch(start),
            duration_nanoseconds: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            default_metric: if knows_live { self.default_metric } else { "allocated" }.to_owned(),
            coverage: self.coverage(),
            live_bytes_error: 0,
            windows: estimated.map(|estimates| estimates.summary.clone()),
            losses: Losses {
                untold_processes: self.kernel.untold()?,
                ended_unarmed_processes: self.losses.ended_unarmed_processes + self.follower.missed(),
                ..self.losses.clone()
            },
            cost: Cost {
                target_percent: estimates.as_ref().and_then(|estimates| estimates.cost_percent),
                tracer_cpu_percent: own_cpu_percent(self.own_cpu, elapsed),
            },
            events: 0,
        };
        for (process, series) in memory {
            recorder.set_memory(process, series);
        }
        if let Some(known) = estimates.and_then(|estimates| estimates.known) {
            recorder.add_estimates(known);
        }
        recorder.into_profile(&self.kernel, recording, gone)
    }

    fn coverage(&self) -> Coverage {
        if self.request.bare {
            return Coverage::Unmeasured { unmeasured: "the probes counted nothing (a bench)".to_owned() };
        }
        self.processes.coverage()
    }
}

/// Whether there was a profile to hand over.
fn hand_over(profile: Option<Profile>, observer: &mut impl Observer) -> bool {
    let Some(profile) = profile else { return false };
    observer.finished(profile);
    true
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
