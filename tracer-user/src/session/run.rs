//! The loop of a recording: signals, records, time, and the ends of processes.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use aya::maps::{MapData, RingBuf};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};

use super::allocators::AllocatorWatch;
use super::command::{Change, Child};
use super::coverage::{NOTHING_YET, Sight, Tally, look};
use super::recorder::{Recorder, losses};
use super::target::Traced;
use super::{Progress, Recorded, Request, SessionError, Subject, system};
use crate::attach::known_kernels::{Verdict, verdict};
use crate::attach::{AttachError, Kernel, Mechanism, Readiness};
use crate::discover::{DiscoverError, Target};
use crate::drain::read_totals;
use crate::profile::{Cost, Coverage, Losses, Profile, Recording};

/// How often progress is told, and the interpreter asked whether it has started.
const TICK: Duration = Duration::from_millis(100);

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
    }
}

/// A process and the first look at its pools.
struct Watched {
    traced: Traced,
    allocators: AllocatorWatch,
    first: Result<Sight, String>,
    from_start: bool,
    tally: Result<Tally, String>,
    running: bool,
}

impl Watched {
    fn look_at_allocators(&mut self, observer: &mut impl Observer) {
        if let Some(line) = self.allocators.look(&self.traced.target) {
            observer.note(&line);
        }
    }
}

struct Session<'a> {
    request: &'a Request,
    kernel: Kernel,
    ring: RingBuf<MapData>,
    readiness: Readiness,
    recorder: Recorder,
    watched: Vec<Watched>,
    started: Option<(SystemTime, Instant)>,
    default_metric: &'static str,
}

/// Why waiting ended.
enum Wake {
    Records,
    Tick,
    Child,
    Interrupt,
    Forward(Signal),
    TimeIsUp,
}

impl<'a> Session<'a> {
    fn load(request: &'a Request, observer: &mut impl Observer) -> Result<Self, SessionError> {
        check_kernel(request, observer)?;
        let mechanism = match request.mechanism {
            Some(mechanism) => mechanism,
            None => best_mechanism(observer)?,
        };
        let mut kernel = Kernel::load(request.sizes, mechanism)?;
        kernel.watch_processes()?;
        let (ring, readiness) = kernel.take_ring()?;
        let recorder = Recorder::new(request.sizes.accounts);
        Ok(Self {
            request,
            kernel,
            ring,
            readiness,
            recorder,
            watched: Vec::new(),
            started: None,
            default_metric: "live",
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
            self.watch(target, false, observer)?;
            descriptors.push(Readiness::new(descriptor).map_err(system("watch a process"))?);
        }
        // Before anybody is told that they may: an interrupt from now on ends the recording, and not us.
        let mut wakes = Wakes::new(self.request.duration)?;
        observer.note("recording; Ctrl-C ends it");
        loop {
            let wake = tokio::select! {
                wake = wakes.next(&self.readiness) => wake?,
                () = ends(&descriptors) => break,
            };
            match wake {
                Wake::Interrupt | Wake::TimeIsUp | Wake::Forward(_) => break,
                Wake::Tick => self.tick(observer)?,
                Wake::Records | Wake::Child => {}
            }
            self.drain(observer)?;
            if self.watched.iter().all(|watched| !watched.running) {
                break;
            }
        }
        let profile = self.finish(observer)?;
        Ok(Recorded { anything: hand_over(profile, observer), ran: true, status: None })
    }

    async fn run_command(
        &mut self,
        command: &[std::ffi::OsString],
        observer: &mut impl Observer,
    ) -> Result<Recorded, SessionError> {
        let mut wakes = Wakes::new(self.request.duration)?;
        let mut child = Child::start(&mut self.kernel, command)?;
        come_first();
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
            let wake = wakes.next(&self.readiness).await?;
            match wake {
                Wake::Interrupt | Wake::TimeIsUp if recording => {
                    recording = false;
                    child.release(&mut self.kernel)?;
                    anything = hand_over(self.finish(observer)?, observer);
                    observer.note("recording has ended; waiting for the command");
                }
                Wake::Forward(signal) => child.send(signal)?,
                Wake::Tick if recording => self.tick(observer)?,
                _ => {}
            }
            if recording {
                self.drain(observer)?;
            }
        };
        if recording {
            self.default_metric = "peak";
            self.kernel.set_held(0)?;
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
                for watched in self.watched.iter_mut().filter(|watched| watched.running) {
                    watched.traced.retire(&mut self.kernel)?;
                    watched.running = false;
                }
                child.hold_at_entry(&mut self.kernel)
            }
            Change::HeldAtEntry => {
                child.passed_entry();
                match Target::inspect("/proc".as_ref(), child.id()) {
                    Ok(target) => {
                        child.hold_at_exit(&mut self.kernel, &target)?;
                        self.watch(target, true, observer)
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
        from_start: bool,
        observer: &mut impl Observer,
    ) -> Result<(), SessionError> {
        // Slot 0 is no process.
        let number = u16::try_from(self.watched.len() + 1).unwrap_or(u16::MAX);
        let traced = Traced::arm(&mut self.kernel, target, number, self.request.bare)?;
        self.started.get_or_insert_with(|| (SystemTime::now(), Instant::now()));
        self.recorder.add_process(&traced);
        let first = if from_start {
            Ok(NOTHING_YET)
        } else {
            look(&traced.target, || read_totals(&self.kernel, number))?
        };
        let tally = Err("the process ended before its pools could be read".to_owned());
        let allocators = AllocatorWatch::new(&traced.target, traced.allocators);
        let mut watched = Watched { traced, allocators, first, from_start, tally, running: true };
        watched.look_at_allocators(observer);
        self.watched.push(watched);
        Ok(())
    }

    /// Compares the pools of every process that still runs with what was seen.
    fn last_look(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        for watched in self.watched.iter_mut().filter(|watched| watched.running) {
            watched.look_at_allocators(observer);
            let slot = watched.traced.slot.number;
            let last = look(&watched.traced.target, || read_totals(&self.kernel, slot))?;
            let totals = read_totals(&self.kernel, slot)?;
            match (&watched.first, last) {
                (Ok(first), Ok(last)) => {
                    watched.tally = Ok(Tally::of(*first, last, &totals, watched.from_start));
                }
                (Err(reason), _) => watched.tally = Err(reason.clone()),
                // What an earlier look said, if there was one, is better than nothing.
                (_, Err(reason)) if watched.tally.is_err() => watched.tally = Err(reason),
                _ => {}
            }
        }
        Ok(())
    }

    fn drain(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        for watched in self.watched.iter_mut().filter(|watched| watched.running) {
            watched.traced.confirm_slot(&mut self.kernel)?;
            // A short program may have ended by the next tick.
            if watched.allocators.text().is_empty() {
                watched.look_at_allocators(observer);
            }
        }
        while let Some(record) = self.ring.next() {
            let Some(replaced) = self.recorder.take(&record) else { continue };
            // A command of ours is held and handled when it execs; others are lost from then on.
            for watched in &mut self.watched {
                if watched.running && watched.traced.slot.pid == replaced && !watched.from_start {
                    watched.traced.retire(&mut self.kernel)?;
                    watched.running = false;
                    observer.note(&format!(
                        "process {replaced} has replaced itself by another program: recording ends"
                    ));
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        let mut progress = Progress::default();
        if let Some((_, started)) = self.started {
            progress.elapsed = started.elapsed();
        }
        for watched in &mut self.watched {
            if watched.running {
                watched.traced.confirm_pointer(&mut self.kernel)?;
                watched.look_at_allocators(observer);
            }
            let totals = read_totals(&self.kernel, watched.traced.slot.number)?;
            progress.events += totals.pops + totals.pushes + totals.mallocs + totals.frees;
            progress.live_bytes += totals.live_bytes;
            progress.losses += sum_of(&losses(std::iter::once(&totals)));
        }
        observer.progress(progress);
        Ok(())
    }

    /// Disarms everything and makes the profile.
    fn finish(&mut self, observer: &mut impl Observer) -> Result<Option<Profile>, SessionError> {
        if self.started.is_some() {
            self.last_look(observer)?;
        }
        let elapsed = self.started.map(|(_, started)| started.elapsed());
        for watched in &mut self.watched {
            self.recorder.set_allocator(&watched.traced, watched.allocators.text());
            watched.traced.disarm();
        }
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
            losses: Losses::default(),
            cost: Cost { target_percent: None, tracer_cpu_percent: own_cpu_percent(elapsed) },
            events: 0,
        };
        let recorder = std::mem::replace(&mut self.recorder, Recorder::new(0));
        recorder.into_profile(&self.kernel, recording).map(Some)
    }

    fn coverage(&self) -> Coverage {
        if self.request.bare {
            return Coverage::Unmeasured { unmeasured: "the probes counted nothing (a bench)".to_owned() };
        }
        let mut sum = Tally::default();
        for watched in &self.watched {
            match &watched.tally {
                Ok(tally) => sum = sum.plus(*tally),
                Err(reason) => return Coverage::Unmeasured { unmeasured: reason.clone() },
            }
        }
        if sum.has_pools() {
            return sum.coverage();
        }
        let used = self.watched.iter().map(|watched| watched.allocators.text()).find(|text| !text.is_empty());
        let used = used.map_or_else(String::new, |text| format!(" but {text}"));
        Coverage::Unmeasured { unmeasured: format!("the process does not use pymalloc{used}") }
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
fn come_first() {
    let _ = rustix::process::setpriority_process(None, -10);
}

/// Whether there was a profile to hand over.
fn hand_over(profile: Option<Profile>, observer: &mut impl Observer) -> bool {
    let Some(profile) = profile else { return false };
    observer.finished(profile);
    true
}

fn sum_of(losses: &Losses) -> u64 {
    let Losses {
        live_table_full,
        stack_table_full,
        thread_table_full,
        thinned: _,
        unresolved_frames,
        truncated_stacks,
        failed_reads,
        ring_full,
        missed_probes,
    } = *losses;
    live_table_full
        + stack_table_full
        + thread_table_full
        + unresolved_frames
        + truncated_stacks
        + failed_reads
        + ring_full
        + missed_probes
}

fn own_cpu_percent(elapsed: Duration) -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    if elapsed.is_zero() { 0.0 } else { used / elapsed.as_secs_f64() * 100.0 }
}

fn process_descriptor(pid: u32) -> Result<OwnedFd, SessionError> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(DiscoverError::NoProcess { pid })?;
    pidfd_open(number, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH => AttachError::Gone { pid }.into(),
        other => system("watch a process")(other),
    })
}

/// Waits until every process has ended.
async fn ends(descriptors: &[Readiness]) {
    for descriptor in descriptors {
        // A descriptor that cannot be watched counts as ended: the recording then ends too early rather than never.
        let _ = descriptor.wait().await;
    }
}

/// Everything that a recording waits for.
struct Wakes {
    child: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    forwarded: [(tokio::signal::unix::Signal, Signal); 4],
    tick: tokio::time::Interval,
    until: Option<tokio::time::Instant>,
}

impl Wakes {
    fn new(duration: Option<Duration>) -> Result<Self, SessionError> {
        let on = |kind: SignalKind| signal(kind).map_err(system("catch signals"));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(Self {
            child: on(SignalKind::child())?,
            interrupt: on(SignalKind::interrupt())?,
            forwarded: [
                (on(SignalKind::terminate())?, Signal::TERM),
                (on(SignalKind::hangup())?, Signal::HUP),
                (on(SignalKind::user_defined1())?, Signal::USR1),
                (on(SignalKind::user_defined2())?, Signal::USR2),
            ],
            tick,
            until: duration.map(|duration| tokio::time::Instant::now() + duration),
        })
    }

    async fn next(&mut self, ring: &Readiness) -> Result<Wake, SessionError> {
        let until = self.until;
        let time_is_up = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let [terminate, hangup, user1, user2] = &mut self.forwarded;
        tokio::select! {
            biased;
            _ = self.child.recv() => Ok(Wake::Child),
            _ = self.interrupt.recv() => Ok(Wake::Interrupt),
            _ = terminate.0.recv() => Ok(Wake::Forward(terminate.1)),
            _ = hangup.0.recv() => Ok(Wake::Forward(hangup.1)),
            _ = user1.0.recv() => Ok(Wake::Forward(user1.1)),
            _ = user2.0.recv() => Ok(Wake::Forward(user2.1)),
            () = time_is_up => {
                self.until = None;
                Ok(Wake::TimeIsUp)
            }
            _ = self.tick.tick() => Ok(Wake::Tick),
            ready = ring.wait() => ready.map(|()| Wake::Records).map_err(system("wait for the ring buffer")),
        }
    }
}
