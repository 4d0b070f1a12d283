//! The processes of a recording: how each came in, what its pools said, and whether it still runs.
//!
//! It must not know how processes are found, nor what wakes a recording up.

use std::path::Path;
use std::time::{Duration, Instant};

use super::allocators::AllocatorWatch;
use super::coverage::{NOTHING_YET, Sight, Tally, look};
use super::growth::{BEFORE, Reckoning, reckon};
use super::reclaim::Reclaim;
use super::recorder::{Recorder, add_losses};
use super::target::{KnownPlans, Traced};
use super::windows::Dropped;
use super::{Progress, SessionError};
use crate::attach::{Armed, Kernel, disarm};
use crate::census::arenas::ArenaVariables;
use crate::drain::{Totals, read_totals};
use crate::profile::{Coverage, Followed, Losses, ProcessIndex};

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
    /// Its place in the profile.
    pub index: ProcessIndex,
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
    reckoning: Reckoning,
}

/// All of them, in the order in which they came in, but for those that have given back their slots. A place in the list is good until
/// the next [`Processes::reclaim`].
#[derive(Debug, Default)]
pub struct Processes {
    list: Vec<Watched>,
    reclaim: Reclaim,
    past: Tallies,
}

/// Which processes have ended while others still ran: nothing of theirs lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Their slots.
    pub slots: Vec<u16>,
    /// Whether that is so of those that have given back their slots.
    pub earlier: bool,
}

impl Processes {
    /// Whether one of them still runs.
    pub fn any_runs(&self) -> bool {
        self.list.iter().any(|watched| watched.running)
    }

    /// How many of them run.
    pub fn count_running(&self) -> usize {
        self.list.iter().filter(|watched| watched.running).count()
    }

    /// The place of the process that runs under this number now.
    pub fn running(&self, pid: u32) -> Option<usize> {
        self.list.iter().position(|watched| watched.running && watched.traced.slot.pid == pid)
    }

    /// One of them.
    pub fn get(&self, place: usize) -> Option<&Watched> {
        self.list.get(place)
    }

    /// The one that came last.
    pub fn newest(&self) -> Option<&Watched> {
        self.list.last()
    }

    /// Those that run.
    pub fn all_running(&self) -> impl Iterator<Item = &Traced> {
        self.list.iter().filter(|watched| watched.running).map(|watched| &watched.traced)
    }

    /// All, also those that have ended.
    pub fn all(&self) -> impl Iterator<Item = &Traced> {
        self.list.iter().map(|watched| &watched.traced)
    }

    /// From now on not all of their blocks are seen.
    pub fn are_windowed(&mut self) {
        for watched in &mut self.list {
            watched.traced.is_windowed = true;
            if let Some(reason) = watched.traced.unmeasured() {
                watched.first = Err(reason.to_owned());
                watched.tally = Err(reason.to_owned());
            }
        }
    }

    /// Disarms what was armed all the time beside windows.
    pub fn drop_kept(&mut self, dropped: Dropped) {
        let armed: Vec<Armed> =
            self.list.iter_mut().flat_map(|watched| watched.traced.drop_kept(dropped)).collect();
        disarm(armed);
    }

    /// The places of processes that run no more although nobody has said so.
    pub fn dead(&self) -> Vec<usize> {
        let is_dead = |watched: &Watched| watched.running && watched.traced.has_ended();
        self.list.iter().enumerate().filter(|(_, watched)| is_dead(watched)).map(|(place, _)| place).collect()
    }

    /// The slot for the next process; `None` when all are taken.
    pub fn next_slot(&self) -> Option<u16> {
        self.reclaim.next_slot()
    }

    /// A process that was to have `slot` could not be armed, or not in time. If anything was counted for it, it is to be forgotten before
    /// another has that slot.
    pub fn gave_up(&mut self, kernel: &mut Kernel, slot: u16, pid: u32) -> Result<(), SessionError> {
        if kernel.is_active(u32::from(slot))? || read_totals(kernel, slot)? != Totals::default() {
            self.reclaim.take_slot(slot);
            self.reclaim.begin(slot, Vec::new());
        }
        // Its end or its next program would be taken for that of the slot's next process. One that has ended is not followed, unless
        // it was named after its end.
        if Path::new("/proc").join(pid.to_string()).exists() {
            kernel.move_followed(pid, 0)?;
        } else {
            kernel.unfollow(pid)?;
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
        let first = if let Some(reason) = traced.unmeasured() {
            Err(reason.to_owned())
        } else if from_start {
            Ok(NOTHING_YET)
        } else {
            look(&traced.target, traced.pages(), &mut arenas, || read_totals(kernel, slot))?
        };
        let followed = self.followed(origin, armed, first.as_ref().ok());
        let index = recorder.add_process(&traced, followed);
        self.reclaim.take_slot(slot);
        let tally = match &first {
            Err(reason) if traced.unmeasured().is_some() => Err(reason.clone()),
            _ => Err("the process ended before its pools could be read".to_owned()),
        };
        let allocators = AllocatorWatch::new(&traced.target, traced.allocators());
        self.list.push(Watched {
            traced,
            index,
            allocators,
            running: true,
            from_start,
            is_root,
            first,
            arenas,
            tally,
            next_look: Instant::now() + FIRST_LOOK,
            look_after: FIRST_LOOK,
            reckoning: Reckoning::default(),
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
        self.reclaim.begin(watched.traced.slot.number, armed);
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
        self.reclaim.look(kernel)
    }

    /// Goes on to give back what those have used that have ended. `note`: as for [`Processes::tell`].
    pub fn reclaim(
        &mut self,
        kernel: &mut Kernel,
        recorder: &mut Recorder,
        note: impl FnMut(&str),
    ) -> Result<(), SessionError> {
        let closed = self.reclaim.step(kernel, recorder)?;
        if closed.is_empty() {
            return Ok(());
        }
        self.tell(recorder, note);
        for (slot, _) in &closed {
            if let Some(place) = self.list.iter().position(|watched| watched.traced.slot.number == *slot) {
                self.past.add(&self.list.remove(place));
            }
        }
        recorder.close_processes(&closed);
        closed.into_iter().try_for_each(|(slot, _)| self.reclaim.done(kernel, slot))
    }

    /// Those whose accounts are about to be given back.
    pub fn leaving(&self) -> Vec<u16> {
        self.reclaim.leaving()
    }

    /// When there is more to give back.
    pub fn next_step(&self) -> Option<Instant> {
        self.reclaim.is_busy().then(Instant::now)
    }

    /// Compares the pools of every process that still runs with what was seen.
    pub fn last_look(&mut self, kernel: &Kernel) -> Result<(), SessionError> {
        let mut running = self.list.iter_mut().filter(|watched| watched.running);
        running.try_for_each(|watched| watched.look(kernel))
    }

    /// In growth mode: stops counting for one process, or for all that run, and compares its stacks with what the kernel says.
    pub fn reckon(
        &mut self,
        kernel: &mut Kernel,
        recorder: &mut Recorder,
        only: Option<u32>,
    ) -> Result<(), SessionError> {
        for watched in &mut self.list {
            let (pid, slot) = (watched.traced.slot.pid, watched.traced.slot.number);
            let Some(beginning) = &watched.traced.beginning else { continue };
            if watched.reckoning.residence.is_some() || only.is_some_and(|only| only != pid) {
                continue;
            }
            if watched.running {
                watched.traced.stop(kernel)?;
                watched.reckoning = reckon(kernel, slot, pid, beginning)?;
            } else {
                watched.reckoning = Reckoning::of_ended();
            }
            recorder.set_residence(&watched.traced, &watched.reckoning);
        }
        Ok(())
    }

    /// In growth mode: adds what these had when their recording began.
    pub fn add_beginnings(&self, recorder: &mut Recorder, slots: &[u16]) {
        for watched in self.list.iter().filter(|watched| slots.contains(&watched.traced.slot.number)) {
            if let Some(beginning) = &watched.traced.beginning {
                recorder.add_pages(&watched.traced, BEFORE, beginning.bytes());
            }
        }
    }

    /// Disarms everything, and returns when that is done.
    pub fn disarm(&mut self) {
        let armed: Vec<Armed> =
            self.list.iter_mut().flat_map(|watched| watched.traced.take_armed()).collect();
        disarm(armed);
        self.reclaim.stop();
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
    pub fn progress(
        &self,
        kernel: &Kernel,
        recorder: &Recorder,
        progress: &mut Progress,
    ) -> Result<(), SessionError> {
        let (events, mut losses): (u64, Losses) = recorder.of_ended();
        progress.events += events;
        for watched in &self.list {
            let totals = read_totals(kernel, watched.traced.slot.number)?;
            progress.events += totals.events_seen();
            if watched.running {
                progress.live_bytes += totals.live_bytes;
            }
            add_losses(&mut losses, &totals);
        }
        progress.losses += losses.sum();
        Ok(())
    }

    /// Those that have ended while others still ran. In growth mode all children that have ended: their memory is the kernel's again, while that of a
    /// command is shown as it was at its end.
    pub fn gone(&self) -> Gone {
        let some_run = self.any_runs();
        let is_growth = self.list.iter().any(|watched| watched.traced.beginning.is_some());
        let earlier = some_run || is_growth;
        let has_left = |watched: &&Watched| !watched.running && (some_run || !watched.is_root);
        let ended = self.list.iter().filter(|watched| earlier && has_left(watched));
        Gone { slots: ended.map(|watched| watched.traced.slot.number).collect(), earlier }
    }

    /// The coverage of all of them together.
    pub fn coverage(&self) -> Coverage {
        let mut tallies = self.past.clone();
        self.list.iter().for_each(|watched| tallies.add(watched));
        tallies.coverage()
    }
}

/// The coverage of several processes.
#[derive(Debug, Clone)]
struct Tallies {
    sum: Tally,
    measured: u32,
    unmeasured: u32,
    why: String,
}

impl Default for Tallies {
    fn default() -> Self {
        Self { sum: Tally::default(), measured: 0, unmeasured: 0, why: "nothing was recorded".to_owned() }
    }
}

impl Tallies {
    fn add(&mut self, watched: &Watched) {
        match &watched.tally {
            Ok(tally) if tally.has_pools() => {
                self.sum = self.sum.plus(*tally);
                self.measured += 1;
            }
            Ok(_) => {
                let used = watched.allocators.text();
                let used = if used.is_empty() { used } else { format!(" but {used}") };
                self.why = format!("the process does not use pymalloc{used}");
                self.unmeasured += 1;
            }
            Err(reason) => {
                self.why.clone_from(reason);
                self.unmeasured += 1;
            }
        }
    }

    fn coverage(self) -> Coverage {
        if self.measured == 0 {
            return Coverage::Unmeasured { unmeasured: self.why };
        }
        self.sum.coverage(self.unmeasured)
    }
}

impl Watched {
    fn look(&mut self, kernel: &Kernel) -> Result<(), SessionError> {
        if self.traced.unmeasured().is_some() {
            return Ok(());
        }
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
