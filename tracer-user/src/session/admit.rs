//! Which processes come into a recording and leave it: how each is armed, and what is done where that fails.
//!
//! What is to be done is decided in `follow.rs`; this does it. It must not know what wakes the recording up, nor its profile.

use std::time::{Instant, SystemTime};

use rustc_hash::FxHashSet;

use super::SessionError;
use super::follow::Step;
use super::processes::Origin;
use super::run::{Observer, Session};
use super::target::Traced;
use super::windows::Windows;
use crate::attach::{AttachError, Slot};
use crate::discover::{DiscoverError, Target};

impl Session<'_> {
    /// Looks at processes of the finder that have not been looked at.
    pub(super) fn find_more(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
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

    pub(super) fn watch(
        &mut self,
        target: Target,
        origin: Origin,
        is_root: bool,
        observer: &mut impl Observer,
    ) -> Result<(), SessionError> {
        let Some(slot) = self.processes.next_slot().filter(|_| self.recorder.has_room()) else {
            self.losses.unfollowed_processes += 1;
            self.follower.settled(target.pid);
            return Ok(());
        };
        let pid = target.pid;
        // Before it is armed: no child of it is missed.
        match origin {
            Origin::Start | Origin::Running => self.kernel.follow(pid, slot)?,
            // It is followed from its fork to its end; were it followed anew after that, it would be for ever.
            Origin::Fork { .. } | Origin::Found { .. } => {
                if !self.kernel.move_followed(pid, slot)? {
                    return Err(AttachError::Gone { pid }.into());
                }
            }
        }
        let parent = match origin {
            Origin::Fork { parent, .. } => self.processes.get(parent).map(|parent| &parent.traced),
            _ => None,
        };
        let watch = self.windows.as_ref().map_or_else(|| self.request.watch(), Windows::base);
        let armed = Traced::arm(&mut self.kernel, target, slot, parent, &mut self.plans, self.request, watch);
        let is_whole = self.windows.as_ref().is_some_and(Windows::is_whole);
        let added = armed.and_then(|mut traced| {
            traced.is_windowed &= !is_whole;
            tracing::debug!("armed process {pid}, {origin:?}");
            self.processes.add(&self.kernel, &mut self.recorder, traced, origin, is_root)
        });
        if added.is_err() {
            self.processes.gave_up(&mut self.kernel, slot, pid)?;
        }
        added?;
        if let (Some(looks), Some(newest)) = (&self.looks, self.processes.newest()) {
            looks.watch(newest.index, &newest.traced);
        }
        self.started.get_or_insert_with(|| (SystemTime::now(), Instant::now()));
        self.follower.settled(pid);
        self.keep_its_turn();
        // A command is held until this is done, and may be watched as a whole.
        if let Some(windows) = &mut self.windows {
            windows.came(&self.kernel, Slot { pid, number: slot })?;
        }
        self.step_windows(observer)?;
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
                Err(DiscoverError::NotPython { .. }) => {
                    // While a loader may be at work nothing is sure.
                    if !matches!(origin, Origin::Found { is_early: true, .. }) {
                        self.follower.is_other(pid);
                    }
                    return Ok(());
                }
                // It is ending, or becoming another program: its files are gone from under it.
                Err(DiscoverError::Read { .. }) if matches!(origin, Origin::Found { is_early: true, .. }) => {
                    return Ok(());
                }
                // Its end is told as well, and counted then.
                Err(DiscoverError::NoProcess { .. }) => return Ok(()),
                Err(_) if !has_memory(pid) => return Ok(()),
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
                self.follower.ended(pid);
                self.forget(pid)
            }
            Err(error) => {
                self.losses.unfollowed_processes += 1;
                observer.note(&format!("process {pid} is not recorded: {}", chain(&error)));
                self.forget(pid)
            }
        }
    }

    /// Counts forks that ended before they could be armed. `parents`: theirs.
    pub(super) fn count_unarmed(&mut self, parents: Vec<u32>) {
        let of_recorded = parents.into_iter().filter(|parent| self.processes.running(*parent).is_some());
        let unarmed = of_recorded.count() as u64;
        if self.request.follow {
            self.losses.ended_unarmed_processes += unarmed;
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

    pub(super) fn take_step(&mut self, step: Step, observer: &mut impl Observer) -> Result<(), SessionError> {
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
                if !replaced {
                    self.note_end(place);
                }
                if replaced && is_root {
                    observer.note(&format!("process {pid} has replaced itself by another program"));
                }
                Ok(())
            }
        }
    }

    /// Of those that have ended nobody may have told us: the ring buffer may have been full.
    pub(super) fn retire_the_dead(&mut self) -> Result<(), SessionError> {
        for place in self.processes.dead() {
            self.processes.retire(&mut self.kernel, place)?;
            self.note_end(place);
        }
        Ok(())
    }

    /// Whether it was killed for want of memory is asked at the next tick.
    fn note_end(&mut self, place: usize) {
        if let (Some(victims), Some(watched)) = (&mut self.victims, self.processes.get(place)) {
            victims.ended(watched.traced.slot.number);
        }
    }
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
