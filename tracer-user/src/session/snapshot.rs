//! What a recording has seen until now, without ending it.
//!
//! Everything is as at the end, but for what only a process that stands still could tell: coverage is that of the latest look, and growth mode's stacks are not compared with the
//! kernel's figures, which takes pages out of the account. It must not know who asks.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant, SystemTime};

use super::SessionError;
use super::looks::Looks;
use super::run::{Observer, Session};
use crate::profile::{ProcessIndex, Profile, Series};

/// A snapshot whose looks at memory have been asked for.
#[derive(Debug)]
pub struct Awaited(Receiver<Vec<(ProcessIndex, Series)>>);

/// Processes that ended, until it is known why.
#[derive(Debug)]
pub struct Victims {
    /// Kills for want of memory, of the whole host, when that was last asked.
    kills: u64,
    /// When they were seen to have become more.
    rose: Option<Instant>,
    /// Slots that ended of late, and when that was told.
    ended: Vec<(u16, Instant)>,
}

/// Between a kill that is counted and the end of its victim, whose memory has to go first.
const TEARDOWN: Duration = Duration::from_secs(10);
/// How long an end waits for a kill that is counted before it, and was not asked for yet.
const WAIT: Duration = Duration::from_secs(1);

impl Default for Victims {
    fn default() -> Self {
        Self { kills: kills(), rose: None, ended: Vec::new() }
    }
}

impl Victims {
    /// The process of this slot has ended.
    pub fn ended(&mut self, slot: u16) {
        self.ended.push((slot, Instant::now()));
    }

    /// Those that ended when somebody had just been killed for want of memory. Which of them it was the kernel's count does not say: with several, all are taken. To be asked at each tick.
    fn take(&mut self) -> Vec<u16> {
        self.judge(kills(), Instant::now())
    }

    fn judge(&mut self, kills: u64, now: Instant) -> Vec<u16> {
        if kills > self.kills {
            self.rose = Some(now);
        }
        self.kills = kills;
        let rose = self.rose.filter(|rose| now.duration_since(*rose) <= TEARDOWN);
        let is_victim = |(_, ended): &(u16, Instant)| rose.is_some_and(|rose| *ended + WAIT >= rose);
        let taken = self.ended.iter().filter(|ended| is_victim(ended)).map(|(slot, _)| *slot).collect();
        self.ended.retain(|ended| !is_victim(ended) && now.duration_since(ended.1) < WAIT);
        taken
    }
}

/// `oom_kill` of /proc/vmstat, which counts a kill before the victim's memory goes (mm/oom_kill.c, `__oom_kill_process`).
fn kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or_default()
}

impl Session<'_> {
    /// Begins one; it is handed over at one of the next ticks.
    pub(super) fn begin_snapshot(&mut self) {
        if self.awaited.is_none() {
            // Without looks there is nothing to wait for.
            let nothing = || channel().1;
            self.awaited = Some(Awaited(self.looks.as_ref().and_then(Looks::ask).unwrap_or_else(nothing)));
        }
    }

    /// Hands over a snapshot that was begun, once the looks at memory are there. A look at gigabytes takes a second, and nobody waits for it.
    pub(super) fn hand_over_snapshot(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        let Some(Awaited(answer)) = &self.awaited else { return Ok(()) };
        let memory = match answer.try_recv() {
            Ok(memory) => memory,
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Vec::new(),
        };
        self.awaited = None;
        if let Some(profile) = self.profile_now(memory, &[])? {
            observer.snapshot(profile);
        }
        Ok(())
    }

    /// Hands over the last accounts of processes that were killed for want of memory.
    pub(super) fn hand_over_victims(&mut self, observer: &mut impl Observer) -> Result<(), SessionError> {
        let slots = self.victims.as_mut().map(Victims::take).unwrap_or_default();
        let pids: Vec<u32> = self
            .processes
            .all()
            .filter(|traced| slots.contains(&traced.slot.number))
            .map(|traced| traced.slot.pid)
            .collect();
        if pids.is_empty() {
            return Ok(());
        }
        if let Some(profile) = self.profile_now(Vec::new(), &slots)? {
            observer.victims(profile, &pids);
        }
        Ok(())
    }

    /// What is known now. `victims`: slots of processes that have ended and whose memory is told as if they lived.
    fn profile_now(
        &mut self,
        memory: Vec<(ProcessIndex, Series)>,
        victims: &[u16],
    ) -> Result<Option<Profile>, SessionError> {
        let Some((start, began)) = self.started else { return Ok(None) };
        let estimates = match &mut self.windows {
            Some(windows) => Some(windows.estimates_now(&self.kernel, &self.processes)?),
            None => None,
        };
        self.processes.tell(&mut self.recorder, |_| {});
        let mut recorder = self.recorder.clone();
        self.processes.add_beginnings(&mut recorder, victims);
        let mut gone = self.processes.gone();
        gone.slots.retain(|slot| !victims.contains(slot));
        self.make_profile(recorder, estimates, memory, (start, began.elapsed()), &gone).map(Some)
    }
}

/// When a recording began.
pub fn nanoseconds_since_epoch(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn victims(kills: u64) -> Victims {
        Victims { kills, rose: None, ended: Vec::new() }
    }

    const NOBODY: [u16; 0] = [];

    /// A kill of hours ago made a victim of whoever ended next.
    #[test]
    fn an_end_is_a_victim_s_only_near_a_kill() {
        let (mut victims, now) = (victims(7), Instant::now());
        assert_eq!(victims.judge(8, now), NOBODY, "somebody else's");
        let later = now + TEARDOWN * 2;
        victims.ended.push((3, later));
        assert_eq!(victims.judge(8, later), NOBODY);
        assert_eq!(victims.judge(9, later + WAIT * 2), NOBODY, "it ended long before that kill");
        assert!(victims.ended.is_empty());
    }

    #[test]
    fn a_kill_may_be_counted_after_the_end_was_told_and_long_before_it() {
        let (mut victims, now) = (victims(7), Instant::now());
        victims.ended.push((3, now));
        assert_eq!(victims.judge(7, now), NOBODY);
        assert_eq!(victims.judge(8, now + WAIT / 2), [3]);
        victims.ended.push((4, now + TEARDOWN / 2));
        assert_eq!(victims.judge(8, now + TEARDOWN / 2), [4], "its memory took so long to go");
        assert_eq!(victims.judge(8, now + TEARDOWN / 2), NOBODY, "once");
    }
}
