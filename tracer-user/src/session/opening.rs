//! Arming what a window watches, and waiting until it is over.
//!
//! It must not know when windows open, nor what they say.

use std::time::{Duration, Instant};

use super::SessionError;
use super::meter::{Events, Meter};
use super::target::Traced;
use crate::attach::{Armed, Kernel, Pops, Watch};
use crate::budget::governor::Window;

/// How often a window looks whether it has met its limit of traps: at two million a second it is passed by 2,000.
pub const LOOK: Duration = Duration::from_millis(1);

/// Arms those that can be: who has ended meanwhile is left out.
///
/// `pops`: which of a process's pops, where `watch` has any.
pub fn arm<'a, 'b>(
    kernel: &mut Kernel,
    running: Vec<&'a Traced>,
    watch: Watch,
    pops: impl Fn(&Traced) -> Pops<'b>,
) -> Result<(Vec<&'a Traced>, Vec<Armed>), SessionError> {
    let (mut chosen, mut armed) = (Vec::new(), Vec::new());
    for traced in running {
        match traced.open(kernel, watch, pops(traced)) {
            Ok(links) => {
                chosen.push(traced);
                armed.extend(links);
            }
            Err(_) if traced.has_ended() => {}
            // It may be about to end, or to be another program. The others go on.
            Err(error) => {
                if traced.is_first_failure() {
                    tracing::warn!("process {} is left out of windows: {error}", traced.slot.pid);
                }
            }
        }
    }
    Ok((chosen, armed))
}

/// What they have done so far.
pub fn read(kernel: &Kernel, chosen: &[&Traced]) -> Result<Vec<Meter>, SessionError> {
    chosen.iter().map(|traced| Meter::read(kernel, traced.slot)).collect()
}

/// Waits until so many of the rare events have come, but not for long.
///
/// Windows at random times lie at random places of the program's time. Where they are weighed by events they must lie at random places among these: those that open while none come would all
/// begin with the first event of a burst, and see what only bursts begin with.
pub fn wait_for_events(
    kernel: &Kernel,
    running: &[&Traced],
    events: u64,
    by: Events,
) -> Result<(), SessionError> {
    const LONGEST: Duration = Duration::from_millis(250);
    let (before, end) = (read(kernel, running)?, Instant::now() + LONGEST);
    while Instant::now() < end && sum(&read(kernel, running)?, &before, by) < events {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// The events of all of them.
fn sum(now: &[Meter], before: &[Meter], by: Events) -> u64 {
    now.iter().zip(before).map(|(now, before)| now.since(before).events(by)).sum()
}

/// Waits until a window is over, or has seen what it may: so many traps, or so many of the rare events. `meanwhile` is called now and then.
pub fn wait(
    kernel: &Kernel,
    chosen: &[&Traced],
    before: &[Meter],
    window: Window,
    (events, by): (u64, Events),
    mut meanwhile: impl FnMut(&Kernel) -> Result<(), SessionError>,
) -> Result<(), SessionError> {
    let end = Instant::now() + window.length;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK));
        let now = read(kernel, chosen)?;
        let traps: u64 = now.iter().zip(before).map(|(now, before)| now.since(before).traps).sum();
        if traps >= window.traps || sum(&now, before, by) >= events {
            return Ok(());
        }
        meanwhile(kernel)?;
    }
}
