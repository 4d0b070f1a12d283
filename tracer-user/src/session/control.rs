//! How somebody else steers a recording that runs: asks for a snapshot, or ends it.
//!
//! It must not know who that is, nor what a snapshot holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// Shared with whoever steers; nothing is lost that was said before anybody listened.
#[derive(Debug, Default)]
pub struct Control {
    snapshot: Notify,
    stop: Notify,
}

impl Control {
    /// Has a snapshot taken now. Asked for several times before it is, it is taken once.
    pub fn ask_for_snapshot(&self) {
        self.snapshot.notify_one();
    }

    /// Ends the recording; what it saw is handed over as at any end.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

/// What a recording is steered by.
#[derive(Debug, Clone, Default)]
pub struct Steering {
    /// Who steers; `None`: nobody does.
    pub control: Option<Arc<Control>>,
    /// How often a snapshot is taken unasked; `None`: never.
    pub snapshot_every: Option<Duration>,
    /// Whether processes that are killed for want of memory leave their last account (`Observer::victim`).
    pub keeps_victims: bool,
    /// How often processes are looked after; `None`: ten times a second, which takes 0.5 % of a processor.
    pub tick: Option<Duration>,
    /// What memory is made of is looked at by another recording of the same processes.
    pub leaves_out_looks: bool,
}

impl Steering {
    /// Comes back when a snapshot is wanted.
    pub(super) async fn snapshot_wanted(&self) {
        match &self.control {
            Some(control) => control.snapshot.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Comes back when the recording is to end.
    pub(super) async fn stopped(&self) {
        match &self.control {
            Some(control) => control.stop.notified().await,
            None => std::future::pending().await,
        }
    }
}
