//! The processes of a recording: how each came in, what its pools said, and whether it still runs.
//!
//! It must not know how processes are found, nor what wakes a recording up.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::allocators::AllocatorWatch;
use super::coverage::{NOTHING_YET, Sight, Tally, look};
use super::recorder::{Recorder, losses};
use super::target::{KnownPlans, Traced};
use super::{Progress, SessionError};
use crate::attach::{Armed, Kernel, disarm, forget_blocks};
use crate::census::arenas::ArenaVariables;
use crate::drain::{Totals, read_totals};
use crate::profile::{Coverage, Followed};

/// Pools are looked at again after this long, then after twice as long and so on, so that something is known of the coverage of a
/// process that ends by itself; a look takes 3 to 10 ms of the tracer's time.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// How a process came into the recording.
#[derive(Debug, Clone, Copy)]
pub enum Origin {
    /// The command, held until it was armed.
    Start,
    /// It was found running.
    Running,
    /// A recorded process's child.
    Fork {
        /// The parent's place in the recording.
        parent: usize,
        /// When, by the monotonic clock.
        nanoseconds: u64,
        /// Pops and pushes of the parent until then.
        parent_events: (u64, u64),
    },
    /// A followed process has turned out to be Python: it has execed, or is the fork of one that was not recorded.
    Found {
        /// Its parent's number, if that is known.
        parent: u32,
        /// When, by the monotonic clock.
        nanoseconds: u64,
        /// Whether it began with a program of its own: a fork holds blocks from before, and nobody knows how many.
        execed: bool,
        /// Whether it may still be that its libraries are not mapped yet.
        is_early: bool,
    },
}

/// A process of the recording.
#[derive(Debug)]
pub struct Watched {
    /// What is armed in it.
    pub traced: Traced,
    allocators: AllocatorWatch,
    /// Whether its program still runs.
    pub running: bool,
    /// Whether it was watched from its first allocation on.
    pub from_start: bool,
    /// Whether the user named it, or started it.
    pub is_root: bool,
    first: Result<Sight, String>,
    /// Where its pools are, once that is known.
    arenas: Option<ArenaVariables>,
    tally: Result<Tally, String>,
    next_look: Instant,
    look_after: Duration,
}

/// All of them, in the order in which they came in.
#[derive(Debug, Default)]
pub struct Processes {
    list: Vec<Watched>,
    /// The latest slot of the kernel half's tables that is in use; slot 0 is no process.
    latest_slot: u16,
    /// Blocks of the first so many that have ended may still be in the live table.
    unforgotten: Vec<u16>,
    /// What disarms those that have ended: it waits for the kernel, and others wait to be armed meanwhile.
    disarming: Vec<JoinHandle<()>>,
}

impl Processes {
    /// Whether one of them still runs.
    pub fn any_runs(&self) -> bool {
        self.list.iter().any(|watched| watched.running)
    }

    /// The place of the process that runs under this number now.
    pub fn running(&self, pid: u32) -> Option<usize> {
        self.list.iter().position(|watched| watched.running && watched.traced.slot.pid == pid)
    }

    /// One of them.
    pub fn get(&self, place: usize) -> Option<&Watched> {
        self.list.get(place)
    }

    /// The places of processes that run no more although nobody has said so.
    pub fn dead(&self) -> Vec<usize> {
        let is_dead = |watched: &Watched| watched.running && watched.traced.has_ended();
        self.list.iter().enumerate().filter(|(_, watched)| is_dead(watched)).map(|(place, _)| place).collect()
    }

    /// The slot for the next process; `None` when all are taken.
    pub fn next_slot(&self) -> Option<u16> {
        let slot = self.latest_slot + 1;
        (u32::from(slot) < tracer_ebpf::abi::PROCESSES).then_some(slot)
    }

    /// A process that was to have `slot` could not be armed, or not in time. If anything was counted for it, no other process may
    /// have that slot: it would be the other's.
    pub fn gave_up(&mut self, kernel: &Kernel, slot: u16) -> Result<(), SessionError> {
        if read_totals(kernel, slot)? != Totals::default() {
            self.latest_slot = slot;
            self.unforgotten.push(slot);
        }
        Ok(())
    }

    /// Adds a process that has just been armed.
    pub fn add(
        &mut self,
        kernel: &Kernel,
        recorder: &mut Recorder,
        traced: Traced,
        origin: Origin,
        is_root: bool,
    ) -> Result<(), SessionError> {
        let armed = monotonic_nanoseconds();
        let slot = traced.slot.number;
        let mut arenas = None;
        if let Origin::Fork { parent, .. } = origin {
            arenas = self.list.get(parent).and_then(|parent| parent.arenas.clone());
        }
        // Nothing was there to be missed if the interpreter has not started even now.
        let from_start = match origin {
            Origin::Start => true,
            Origin::Found { execed, .. } => execed && !traced.has_started(),
            Origin::Running | Origin::Fork { .. } => false,
        };
        let first = if from_start {
            Ok(NOTHING_YET)
        } else {
            look(&traced.target, traced.pages(), &mut arenas, || read_totals(kernel, slot))?
        };
        let followed = self.followed(origin, armed, first.as_ref().ok());
        recorder.add_process(&traced, followed);
        let tally = Err("the process ended before its pools could be read".to_owned());
        let allocators = AllocatorWatch::new(&traced.target, traced.allocators());
        self.latest_slot = slot;
        self.list.push(Watched {
            traced,
            allocators,
            running: true,
            from_start,
            is_root,
            first,
            arenas,
            tally,
            next_look: Instant::now() + FIRST_LOOK,
            look_after: FIRST_LOOK,
        });
        Ok(())
    }

    /// What is missing of a process that came in by itself.
    fn followed(&self, origin: Origin, armed: u64, first: Option<&Sight>) -> Option<Followed> {
        let followed = |parent, nanoseconds, (before, error)| Followed {
            parent,
            armed_after_nanoseconds: armed.saturating_sub(nanoseconds),
            blocks_before: before,
            blocks_before_error: error,
        };
        match origin {
            Origin::Start | Origin::Running => None,
            Origin::Found { parent, nanoseconds, execed, .. } => {
                let inherited = execed.then_some(NOTHING_YET);
                Some(followed(parent, nanoseconds, unseen(first, inherited.as_ref(), (0, 0))))
            }
            Origin::Fork { parent, nanoseconds, parent_events } => {
                let parent = self.list.get(parent)?;
                let before = unseen(first, parent.first.as_ref().ok(), parent_events);
                Some(followed(parent.traced.slot.pid, nanoseconds, before))
            }
        }
    }

    /// The program of a process is no more: it has ended, or replaced itself.
    pub fn retire(&mut self, kernel: &mut Kernel, place: usize) -> Result<(), SessionError> {
        let Some(watched) = self.list.get_mut(place).filter(|watched| watched.running) else { return Ok(()) };
        watched.running = false;
        let armed = watched.traced.retire(kernel)?;
        self.disarming.retain(|thread| !thread.is_finished());
        self.disarming.push(std::thread::spawn(move || disarm(armed)));
        self.unforgotten.push(watched.traced.slot.number);
        Ok(())
    }

    /// What is to be done now and then while they run.
    pub fn tick(&mut self, kernel: &mut Kernel, known: &mut KnownPlans) -> Result<(), SessionError> {
        let now = Instant::now();
        for watched in self.list.iter_mut().filter(|watched| watched.running) {
            watched.traced.confirm_pointer(kernel)?;
            watched.traced.look_for_mallocs(kernel, known);
            // A process that was armed before its interpreter has started is compared with nothing, whenever that is.
            if now >= watched.next_look && watched.traced.has_started() {
                watched.look(kernel)?;
                watched.look_after *= 2;
                watched.next_look = now + watched.look_after;
            }
        }
        // Blocks of the dead take the places of others only when places are rare.
        if !self.unforgotten.is_empty() && kernel.live_fill()? > 0.25 {
            let taken = forget_blocks(kernel, &self.unforgotten)?;
            tracing::debug!(taken, "blocks of processes that have ended");
            self.unforgotten.clear();
        }
        Ok(())
    }

    /// Compares the pools of every process that still runs with what was seen.
    pub fn last_look(&mut self, kernel: &Kernel) -> Result<(), SessionError> {
        let mut running = self.list.iter_mut().filter(|watched| watched.running);
        running.try_for_each(|watched| watched.look(kernel))
    }

    /// Disarms everything, and returns when that is done.
    pub fn disarm(&mut self) {
        let armed: Vec<Armed> =
            self.list.iter_mut().flat_map(|watched| watched.traced.take_armed()).collect();
        disarm(armed);
        for thread in self.disarming.drain(..) {
            // Dropping links cannot panic; and if it did, they would be gone.
            let _ = thread.join();
        }
    }

    /// Looks at the tables of allocators of those that run, and says what has changed. `only_new`: of those only of which nothing is
    /// known yet; a short program may have ended by the next tick.
    pub fn look_at_allocators(
        &mut self,
        kernel: &mut Kernel,
        only_new: bool,
        mut note: impl FnMut(&str),
    ) -> Result<(), SessionError> {
        for watched in self.list.iter_mut().filter(|watched| watched.running) {
            watched.traced.confirm_slot(kernel)?;
            if (!only_new || watched.allocators.text().is_empty())
                && let Some(line) = watched.allocators.look(&watched.traced.target)
            {
                note(&line);
            }
        }
        Ok(())
    }

    /// Hands over what is known of their allocators, and what users should know of that; once.
    pub fn tell(&mut self, recorder: &mut Recorder, mut note: impl FnMut(&str)) {
        for watched in &mut self.list {
            recorder.add_mallocs(&watched.traced);
            recorder.set_allocator(&watched.traced, watched.allocators.text());
            for line in watched.traced.mallocs.take_notes() {
                note(&line);
            }
        }
    }

    /// Adds what they did to the progress.
    pub fn progress(&self, kernel: &Kernel, progress: &mut Progress) -> Result<(), SessionError> {
        for watched in &self.list {
            let totals = read_totals(kernel, watched.traced.slot.number)?;
            progress.events += totals.pops + totals.pushes + totals.mallocs + totals.frees;
            if watched.running {
                progress.live_bytes += totals.live_bytes;
            }
            progress.losses += losses(std::iter::once(&totals)).sum();
        }
        Ok(())
    }

    /// Slots of those that have ended while others still ran: nothing of theirs lives.
    pub fn gone(&self) -> Vec<u16> {
        if !self.any_runs() {
            return Vec::new();
        }
        let ended = self.list.iter().filter(|watched| !watched.running);
        ended.map(|watched| watched.traced.slot.number).collect()
    }

    /// The coverage of all of them together.
    pub fn coverage(&self) -> Coverage {
        let mut sum = Tally::default();
        let (mut measured, mut unmeasured) = (0, 0);
        let mut why = "nothing was recorded".to_owned();
        for watched in &self.list {
            match &watched.tally {
                Ok(tally) if tally.has_pools() => {
                    sum = sum.plus(*tally);
                    measured += 1;
                }
                Ok(_) => {
                    let used = watched.allocators.text();
                    let used = if used.is_empty() { used } else { format!(" but {used}") };
                    why = format!("the process does not use pymalloc{used}");
                    unmeasured += 1;
                }
                Err(reason) => {
                    why.clone_from(reason);
                    unmeasured += 1;
                }
            }
        }
        if measured == 0 {
            return Coverage::Unmeasured { unmeasured: why };
        }
        sum.coverage(unmeasured)
    }
}

impl Watched {
    fn look(&mut self, kernel: &Kernel) -> Result<(), SessionError> {
        let slot = self.traced.slot.number;
        let pages = self.traced.pages();
        let last = look(&self.traced.target, pages, &mut self.arenas, || read_totals(kernel, slot))?;
        let totals = read_totals(kernel, slot)?;
        match (&self.first, last) {
            (Ok(first), Ok(last)) => self.tally = Ok(Tally::of(*first, last, &totals, self.from_start)),
            (Err(reason), _) => self.tally = Err(reason.clone()),
            // What an earlier look said, if there was one, is better than nothing.
            (_, Err(reason)) if self.tally.is_err() => self.tally = Err(reason),
            _ => {}
        }
        Ok(())
    }
}

/// What the kernel half's clock says.
fn monotonic_nanoseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// What a process holds, less what it was born with, less what it was seen to take since it was armed; and how far that may be off.
///
/// `born`: an earlier look at whoever held those blocks, and `events` its pops and pushes until the fork. `None` where nobody knows.
fn unseen(sight: Option<&Sight>, born: Option<&Sight>, events: (u64, u64)) -> (Option<u64>, u64) {
    let (Some(sight), Some(born)) = (sight, born) else { return (None, 0) };
    let net = |pops: u64, pushes: u64| i128::from(pops) - i128::from(pushes);
    let inherited = i128::from(born.blocks) + net(events.0, events.1) - net(born.pops, born.pushes);
    let unseen = i128::from(sight.blocks) - inherited - net(sight.pops, sight.pushes);
    // Each look is true of some moment among the events that it spans, so it is off by half of them at the utmost.
    let error = sight.moved.saturating_add(born.moved).div_ceil(2);
    (Some(u64::try_from(unseen.max(0)).unwrap_or(u64::MAX)), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn sight(blocks: u64, pops: u64, pushes: u64, moved: u64) -> Sight {
        Sight { blocks, pops, pushes, moved }
    }

    #[test]
    fn what_a_fork_took_before_it_was_armed() {
        // The parent had 1,000 blocks after 50 pops and 10 pushes, and took 200 more and gave 40 until the fork.
        let parent = sight(1_000, 50, 10, 0);
        // The child was born with 1,160, and was then seen to take 30 and give 5: of 1,192 blocks 7 are not accounted for.
        let child = sight(1_192, 30, 5, 0);
        assert_eq!(unseen(Some(&child), Some(&parent), (250, 50)), (Some(7), 0));
    }

    #[test]
    fn pools_that_change_while_they_are_read_leave_an_error() {
        let (parent, child) = (sight(1_000, 0, 0, 4), sight(1_100, 0, 0, 7));
        assert_eq!(unseen(Some(&child), Some(&parent), (0, 0)), (Some(100), 6));
    }

    #[test]
    fn fewer_blocks_than_it_was_born_with_are_none_before() {
        let (parent, child) = (sight(1_000, 0, 0, 0), sight(990, 0, 0, 0));
        assert_eq!(unseen(Some(&child), Some(&parent), (0, 0)), (Some(0), 0));
        assert_eq!(unseen(None, Some(&parent), (0, 0)), (None, 0));
    }
}
