//! Decides what becomes of a process that appears by itself: a child, a new program, a process that `-a` or `--cgroup` asks for.
//!
//! A child that runs its parent's program is armed at once. One that has become another program is asked whether it is Python
//! now, and again a little later: the loader maps `libpython` some milliseconds after the exec, an embedding program whenever it
//! likes. It must not know how anything is armed.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::drain::ProcessEvent;

/// The first time that a new program is asked again; then after twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_millis(2);
/// How often it is asked: for 8 s in all.
const TRIES: u32 = 13;
/// Those of the first half second, in which a loader may be at work.
const EARLY_TRIES: u32 = 8;

/// Which processes are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Those that are named, and their descendants.
    Descendants,
    /// Those that are named, and no others.
    Named,
    /// Every one that has a chance to be Python.
    All,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Arm it as its parent is armed.
    ArmFork {
        /// Which.
        pid: u32,
        /// Its parent.
        parent: u32,
        /// When it began.
        nanoseconds: u64,
        /// Pops and pushes of the parent until then.
        parent_events: (u64, u64),
    },
    /// It has copies of its parent's breakpoints that nobody needs: remove them.
    Wipe {
        /// Which.
        pid: u32,
        /// Whose.
        parent: u32,
    },
    /// Ask whether it is Python.
    Inspect {
        /// Which.
        pid: u32,
        /// Its parent, or 0.
        parent: u32,
        /// When it became what it is.
        nanoseconds: u64,
        /// Whether it began with a program of its own; a fork began with its parent's memory.
        execed: bool,
        /// Whether it may still be that its libraries are not mapped yet.
        is_early: bool,
    },
    /// What ran under this number runs no more.
    Retire {
        /// Which.
        pid: u32,
        /// Whether it is another program now, and not gone.
        replaced: bool,
    },
    /// It is no Python, as far as can be told: it is not asked again before its next exec. Its children are.
    GiveUp {
        /// Which.
        pid: u32,
    },
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    parent: u32,
    nanoseconds: u64,
    execed: bool,
    is_named_python: bool,
    next_try: Instant,
    tries: u32,
}

/// Takes out the forks of processes whose end has been told as well: their numbers may be others' by now. Gives back the parents of
/// those that ended as what they were born.
pub fn leave_out_the_dead(told: &mut Vec<ProcessEvent>) -> Vec<u32> {
    // From the last one on: of a number that comes twice each fork meets its own end.
    let mut ended: FxHashMap<u32, bool> = FxHashMap::default();
    let mut parents = Vec::new();
    let mut rest: Vec<ProcessEvent> = Vec::with_capacity(told.len());
    for event in told.drain(..).rev() {
        match event {
            ProcessEvent::Exit { pid } => {
                ended.insert(pid, false);
            }
            ProcessEvent::Exec { pid, .. } => {
                if let Some(has_execed) = ended.get_mut(&pid) {
                    *has_execed = true;
                }
            }
            ProcessEvent::Fork { pid, parent, shares_memory, .. } => {
                if let Some(has_execed) = ended.remove(&pid) {
                    if !has_execed && !shares_memory {
                        parents.push(parent);
                    }
                    continue;
                }
            }
        }
        rest.push(event);
    }
    rest.reverse();
    *told = rest;
    parents
}

/// Followed processes that are not recorded yet.
#[derive(Debug)]
pub struct Follower {
    wanted: Wanted,
    parents: FxHashMap<u32, u32>,
    pending: FxHashMap<u32, Pending>,
    missed: u64,
}

impl Follower {
    /// Nobody yet.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, parents: FxHashMap::default(), pending: FxHashMap::default(), missed: 0 }
    }

    /// What an event leads to.
    pub fn take(&mut self, event: ProcessEvent, now: Instant) -> Option<Step> {
        match event {
            ProcessEvent::Fork { pid, parent, shares_memory, nanoseconds, parent_events } => {
                if self.wanted == Wanted::Named {
                    return (!shares_memory).then_some(Step::Wipe { pid, parent });
                }
                self.parents.insert(pid, parent);
                // In its parent's memory it is its parent, until it execs.
                (!shares_memory).then_some(Step::ArmFork { pid, parent, nanoseconds, parent_events })
            }
            ProcessEvent::Exec { pid, nanoseconds, is_named_python } => {
                if self.wanted != Wanted::Named {
                    let parent = self.parents.get(&pid).copied().unwrap_or(0);
                    let (execed, next_try, tries) = (true, now, 0);
                    self.ask(pid, Pending { parent, nanoseconds, execed, is_named_python, next_try, tries });
                }
                Some(Step::Retire { pid, replaced: true })
            }
            ProcessEvent::Exit { pid } => {
                self.parents.remove(&pid);
                self.ended(pid);
                Some(Step::Retire { pid, replaced: false })
            }
        }
    }

    /// When to call [`Follower::due`].
    pub fn next_try(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.next_try).min()
    }

    /// Those that are to be asked now.
    pub fn due(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        self.pending.retain(|pid, pending| {
            if pending.next_try > now {
                return true;
            }
            if pending.tries >= TRIES {
                steps.push(Step::GiveUp { pid: *pid });
                return false;
            }
            pending.next_try = now + FIRST_RETRY * (1 << pending.tries);
            pending.tries += 1;
            let Pending { parent, nanoseconds, execed, tries, .. } = *pending;
            steps.push(Step::Inspect {
                pid: *pid,
                parent,
                nanoseconds,
                execed,
                is_early: tries <= EARLY_TRIES,
            });
            true
        });
        steps
    }

    /// A fork whose parent is not recorded, or not yet: it may be Python all the same.
    pub fn ask_fork(&mut self, pid: u32, parent: u32, nanoseconds: u64, now: Instant) {
        let (execed, is_named_python, next_try, tries) = (false, false, now, 0);
        self.ask(pid, Pending { parent, nanoseconds, execed, is_named_python, next_try, tries });
    }

    fn ask(&mut self, pid: u32, pending: Pending) {
        self.pending.insert(pid, pending);
    }

    /// It has ended. If it was Python by its name and was not recorded yet, nobody ever will see what it took: it is counted.
    pub fn ended(&mut self, pid: u32) {
        let was_python = self.pending.remove(&pid).is_some_and(|pending| pending.is_named_python);
        self.missed += u64::from(was_python);
    }

    /// Programs that were Python by their name, and ended before they were recorded.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// It is recorded now, or never will be.
    pub fn settled(&mut self, pid: u32) {
        self.pending.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 5;

    fn fork(pid: u32, shares_memory: bool) -> ProcessEvent {
        ProcessEvent::Fork { pid, parent: 1, shares_memory, nanoseconds: AT, parent_events: (3, 2) }
    }

    #[test]
    fn a_fork_is_armed_and_a_vfork_waits_for_its_exec() {
        let (mut follower, now) = (Follower::new(Wanted::Descendants), Instant::now());
        let armed = Step::ArmFork { pid: 2, parent: 1, nanoseconds: AT, parent_events: (3, 2) };
        assert_eq!(follower.take(fork(2, false), now), Some(armed));
        assert_eq!(follower.take(fork(3, true), now), None);
        assert_eq!(follower.next_try(), None);
        let exec = ProcessEvent::Exec { pid: 3, nanoseconds: 9, is_named_python: false };
        assert_eq!(follower.take(exec, now), Some(Step::Retire { pid: 3, replaced: true }));
        let asked = Step::Inspect { pid: 3, parent: 1, nanoseconds: 9, execed: true, is_early: true };
        assert_eq!(follower.due(now), [asked]);
    }

    #[test]
    fn a_program_that_ends_at_once_is_counted_if_it_was_python() {
        let (mut follower, now) = (Follower::new(Wanted::Descendants), Instant::now());
        for (pid, is_named_python) in [(3, true), (4, false), (5, true)] {
            follower.take(ProcessEvent::Exec { pid, nanoseconds: 9, is_named_python }, now);
        }
        follower.settled(5);
        for pid in [3, 4, 5] {
            follower.take(ProcessEvent::Exit { pid }, now);
        }
        assert_eq!(follower.missed(), 1);
    }

    #[test]
    fn a_fork_of_a_process_that_is_not_recorded_is_asked_itself() {
        let (mut follower, now) = (Follower::new(Wanted::Descendants), Instant::now());
        follower.ask_fork(7, 1, AT, now);
        let asked = Step::Inspect { pid: 7, parent: 1, nanoseconds: AT, execed: false, is_early: true };
        assert_eq!(follower.due(now), [asked]);
    }

    #[test]
    fn a_program_is_asked_again_and_given_up_in_the_end() {
        let (mut follower, mut now) = (Follower::new(Wanted::Descendants), Instant::now());
        follower.take(ProcessEvent::Exec { pid: 3, nanoseconds: 9, is_named_python: false }, now);
        let mut asked = 0;
        let begun = now;
        while let Some(next) = follower.next_try() {
            assert!(next >= now);
            now = next;
            match follower.due(now)[..] {
                [Step::Inspect { .. }] => asked += 1,
                [Step::GiveUp { pid: 3 }] => break,
                ref other => panic!("{other:?}"),
            }
        }
        assert_eq!(asked, TRIES);
        assert!(now - begun > Duration::from_secs(8) && follower.next_try().is_none());
    }

    /// Number 7 is given out three times; only its last owner still runs.
    #[test]
    fn a_number_that_comes_again_is_another_process() {
        let exit = |pid| ProcessEvent::Exit { pid };
        let exec = |pid| ProcessEvent::Exec { pid, nanoseconds: AT, is_named_python: false };
        let mut told =
            vec![fork(7, false), exit(7), fork(8, false), fork(7, false), exec(7), exit(7), fork(7, false)];
        assert_eq!(leave_out_the_dead(&mut told), [1], "one has ended as what it was born");
        assert_eq!(told, [exit(7), fork(8, false), exec(7), exit(7), fork(7, false)]);
        let (mut follower, now) = (Follower::new(Wanted::Descendants), Instant::now());
        let steps: Vec<Step> = told.into_iter().filter_map(|event| follower.take(event, now)).collect();
        assert!(matches!(steps.last(), Some(Step::ArmFork { pid: 7, .. })));
    }

    #[test]
    fn nobody_is_asked_who_has_ended_or_is_settled() {
        let (mut follower, now) = (Follower::new(Wanted::All), Instant::now());
        for pid in [3, 4] {
            follower.take(ProcessEvent::Exec { pid, nanoseconds: 9, is_named_python: false }, now);
        }
        follower.take(ProcessEvent::Exit { pid: 3 }, now);
        follower.settled(4);
        assert_eq!(follower.due(now), []);
    }

    #[test]
    fn without_following_a_child_is_wiped() {
        let (mut follower, now) = (Follower::new(Wanted::Named), Instant::now());
        assert_eq!(follower.take(fork(2, false), now), Some(Step::Wipe { pid: 2, parent: 1 }));
        assert_eq!(follower.take(fork(3, true), now), None);
        follower.take(ProcessEvent::Exec { pid: 1, nanoseconds: 9, is_named_python: false }, now);
        assert_eq!(follower.next_try(), None);
    }
}
