//! Everything that a recording waits for: signals, records, the clock.
//!
//! It must not know what any of it leads to.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::{SessionError, Steering, system};
use crate::attach::Readiness;

/// How often progress is told, and the interpreter asked whether it has started.
const TICK: Duration = Duration::from_millis(100);

/// Why waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The ring buffer holds something.
    Records,
    /// Ten times a second.
    Tick,
    /// The moment that was asked for has come.
    Retry,
    /// The command has changed.
    Child,
    /// Ctrl-C.
    Interrupt,
    /// A signal for the command.
    Forward(Signal),
    /// The recording has lasted as long as it should, or somebody has ended it.
    TimeIsUp,
    /// A snapshot is due, or wanted.
    Snapshot,
}

/// What is waited for.
#[derive(Debug)]
pub struct Wakes {
    child: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    forwarded: [(tokio::signal::unix::Signal, Signal); 4],
    tick: tokio::time::Interval,
    until: Option<tokio::time::Instant>,
    steering: Steering,
    next_snapshot: Option<tokio::time::Instant>,
}

impl Wakes {
    /// From now on no signal is missed.
    pub fn new(duration: Option<Duration>, steering: &Steering) -> Result<Self, SessionError> {
        let on = |kind: SignalKind| signal(kind).map_err(system("catch signals"));
        let mut tick = tokio::time::interval(steering.tick.unwrap_or(TICK));
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
            next_snapshot: steering.snapshot_every.map(|every| tokio::time::Instant::now() + every),
            steering: steering.clone(),
        })
    }

    /// Waits. `retry`: a moment at which to wake up as well.
    pub async fn next(&mut self, ring: &Readiness, retry: Option<Instant>) -> Result<Wake, SessionError> {
        let until = self.until;
        let time_is_up = sleep_until(until);
        let retry = sleep_until(retry.map(tokio::time::Instant::from_std));
        let snapshot = sleep_until(self.next_snapshot);
        let [terminate, hangup, user1, user2] = &mut self.forwarded;
        // Who is steered is told to end, and signals are for who steers; they are caught all the same, and end nobody.
        let heeds = self.steering.control.is_none();
        tokio::select! {
            biased;
            _ = self.child.recv() => Ok(Wake::Child),
            _ = self.interrupt.recv(), if heeds => Ok(Wake::Interrupt),
            _ = terminate.0.recv(), if heeds => Ok(Wake::Forward(terminate.1)),
            _ = hangup.0.recv(), if heeds => Ok(Wake::Forward(hangup.1)),
            _ = user1.0.recv(), if heeds => Ok(Wake::Forward(user1.1)),
            _ = user2.0.recv(), if heeds => Ok(Wake::Forward(user2.1)),
            () = time_is_up => {
                self.until = None;
                Ok(Wake::TimeIsUp)
            }
            () = self.steering.stopped() => Ok(Wake::TimeIsUp),
            () = snapshot => {
                // Not one after the other where the host stood still.
                self.next_snapshot = self.steering.snapshot_every.map(|every| tokio::time::Instant::now() + every);
                Ok(Wake::Snapshot)
            }
            () = self.steering.snapshot_wanted() => Ok(Wake::Snapshot),
            _ = self.tick.tick() => Ok(Wake::Tick),
            () = retry => Ok(Wake::Retry),
            ready = ring.wait() => ready.map(|()| Wake::Records).map_err(system("wait for the ring buffer")),
        }
    }
}

/// Never comes back without a moment.
async fn sleep_until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
