//! What processes use, and what our probes take of it.
//!
//! The CPU time of a process that runs is as old as the last tick of its processor (kernel/sched/cputime.c, `thread_group_cputime`): right over a second,
//! and wrong by 40 % over a window of 5 ms; user time is sampled by ticks besides. The target's own work is the CPU time less what traps took, and what
//! a trap takes is the kernel's own clock around the program, with the trap itself beside it. It must not know windows.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::SessionError;
use crate::attach::{Kernel, RunStatistics, Slot, keep_statistics};
use crate::budget::costs::TrapCost;
use crate::drain::{Totals, read_totals};

/// A trap beside its program: entry, the emulated instruction, the way back. A program that does nothing is 0.3 to 0.5 us on a quiet machine; taken
/// too high until ticks tell.
const TRAP_NANOSECONDS: f64 = 1000.0;
const TRAP: Duration = Duration::from_nanos(1000);

/// The readings of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meter {
    /// CPU time since its start, of all threads; `None`: it has ended.
    cpu: Option<Duration>,
    /// User time of that, in ticks of the kernel: a tick is all the one or all the other.
    user: Option<Duration>,
    pops: u64,
    mallocs: u64,
    pools: u64,
    kept: u64,
    /// Pushes and calls of `free`.
    ends: u64,
}

/// What a process did in a stretch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Did {
    /// CPU time, with what traps took of it.
    pub cpu: Duration,
    /// User time, which has few of the traps; by ticks, so that it is right over hundreds of them.
    pub user: Duration,
    /// Traps that counted something: a call of malloc has two, its entry and its return.
    pub traps: u64,
    /// Blocks that malloc's family handed out.
    pub mallocs: u64,
    /// Openings of pools.
    pub pools: u64,
    /// Blocks at points that are armed all the time.
    pub kept: u64,
}

/// Events that are rare beside the others and are watched all the time, where that fits: by them it is known how much of its work a process got done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    /// Blocks at points that are hit seldom.
    Kept,
    /// Openings of pools.
    Pools,
    /// And calls of malloc.
    PoolsAndMallocs,
}

impl Did {
    /// What is left of it without a part of it.
    pub fn without(self, part: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(part.cpu),
            user: self.user.saturating_sub(part.user),
            traps: self.traps.saturating_sub(part.traps),
            mallocs: self.mallocs.saturating_sub(part.mallocs),
            pools: self.pools.saturating_sub(part.pools),
            kept: self.kept.saturating_sub(part.kept),
        }
    }

    /// The same of two stretches.
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            user: self.user + other.user,
            traps: self.traps + other.traps,
            mallocs: self.mallocs + other.mallocs,
            pools: self.pools + other.pools,
            kept: self.kept + other.kept,
        }
    }

    /// The events that tell how much was done.
    pub const fn events(&self, by: Events) -> u64 {
        match by {
            Events::Kept => self.kept,
            Events::Pools => self.pools,
            Events::PoolsAndMallocs => self.pools + self.mallocs,
        }
    }
}

impl Meter {
    /// Now.
    pub fn read(kernel: &Kernel, slot: Slot) -> Result<Self, SessionError> {
        let (cpu, user) = (cpu_time(slot.pid, Clock::Running), cpu_time(slot.pid, Clock::User));
        Ok(Self { cpu, user, ..Self::of(&read_totals(kernel, slot.number)?) })
    }

    /// Of a process that has ended: its number may be another's by now.
    pub fn read_ended(kernel: &Kernel, slot: u16) -> Result<Self, SessionError> {
        Ok(Self::of(&read_totals(kernel, slot)?))
    }

    const fn of(totals: &Totals) -> Self {
        let Totals { pops, mallocs, pools, kept, pushes, frees, .. } = *totals;
        Self { cpu: None, user: None, pops, mallocs, pools, kept, ends: pushes + frees }
    }

    /// What has come since.
    pub fn since(&self, before: &Self) -> Did {
        let difference = |now: Option<Duration>, before: Option<Duration>| {
            now.zip(before).map(|(now, before)| now.saturating_sub(before)).unwrap_or_default()
        };
        let pops = self.pops.saturating_sub(before.pops);
        let mallocs = self.mallocs.saturating_sub(before.mallocs);
        let pools = self.pools.saturating_sub(before.pools);
        let ends = self.ends.saturating_sub(before.ends);
        Did {
            cpu: difference(self.cpu, before.cpu),
            user: difference(self.user, before.user),
            traps: pops + 2 * mallocs + pools + ends,
            mallocs,
            pools,
            kept: self.kept.saturating_sub(before.kept),
        }
    }
}

/// `CPUCLOCK_VIRT` and `CPUCLOCK_SCHED` (include/linux/posix-timers_types.h), the last two bits of a process's clock.
#[derive(Debug, Clone, Copy)]
enum Clock {
    User = 1,
    Running = 2,
}

fn cpu_time(pid: u32, which: Clock) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: it writes the number of a clock to the variable.
    let found = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    let clock = clock & !3 | which as libc::clockid_t;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes a time to the variable.
    let read = found == 0 && unsafe { libc::clock_gettime(clock, &raw mut time) } == 0;
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    read.then(|| Duration::new(time.tv_sec.unsigned_abs(), nanoseconds))
}

/// Processors that are online.
pub fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |number| u32::try_from(number.get()).unwrap_or(u32::MAX))
}

/// What a trap takes.
#[derive(Debug)]
pub struct TrapClock {
    cost: TrapCost,
    begin: RunStatistics,
    /// A run of a program in the latest stretch, in nanoseconds.
    run: f64,
    /// Without CAP_SYS_ADMIN the kernel does not count, and what a trap takes is taken from ticks and from the process's pace alone.
    _counting: Option<OwnedFd>,
}

impl TrapClock {
    /// From now on it is measured.
    pub fn start() -> Self {
        Self {
            cost: TrapCost::default(),
            begin: RunStatistics::default(),
            run: 0.0,
            _counting: keep_statistics().ok(),
        }
    }

    /// What comes now counts.
    pub fn begin(&mut self, kernel: &Kernel) -> Result<(), SessionError> {
        self.begin = kernel.run_statistics()?;
        Ok(())
    }

    /// Learns from what has come, if traps did their usual work. `traps`: those of our processes, of which there may be fewer than runs.
    pub fn end(&mut self, kernel: &Kernel, traps: u64, is_usual: bool) -> Result<(), SessionError> {
        let seen = kernel.run_statistics()?.since(self.begin);
        let runs = seen.runs.min(traps);
        self.run = seen.nanoseconds as f64 / seen.runs.max(1) as f64;
        if is_usual && let Some(each) = seen.nanoseconds.checked_div(seen.runs) {
            let cost = Duration::from_nanos(each.saturating_mul(runs))
                + TRAP * u32::try_from(runs).unwrap_or(u32::MAX);
            self.cost.observe(cost, Duration::ZERO, runs);
        }
        Ok(())
    }

    /// What a trap takes, in nanoseconds.
    pub fn nanoseconds(&self) -> f64 {
        self.cost.nanoseconds()
    }

    /// A run of a program in the latest stretch.
    pub fn run_seconds(&self) -> f64 {
        self.run * 1e-9
    }

    /// The program of a trap, on the average.
    pub fn program_seconds(&self) -> f64 {
        (self.nanoseconds() - TRAP_NANOSECONDS).max(0.0) * 1e-9
    }

    /// What of a stretch was the process's own work.
    pub fn progress(&self, did: Did) -> Duration {
        let taken = Duration::try_from_secs_f64(did.traps as f64 * self.nanoseconds() * 1e-9);
        did.cpu.saturating_sub(taken.unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cpu_time_goes_on() {
        for clock in [Clock::Running, Clock::User] {
            let before = cpu_time(std::process::id(), clock).unwrap();
            let mut sum = 0_u64;
            while cpu_time(std::process::id(), clock).unwrap() == before {
                sum = std::hint::black_box(sum + 1);
            }
        }
        // `PID_MAX_LIMIT` (include/linux/threads.h) is no process's number.
        assert!(cpu_time(4 << 20, Clock::Running).is_none(), "no such process");
    }
}
