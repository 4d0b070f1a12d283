//! What became of everything that was to be pushed.
//!
//! It must not know how it is sent.

/// Of one receiver, or of all together. Each profile that was handed over is in exactly one of `sent`, `failed`, `dropped_full`, `dropped_refused` and `waiting`, once for each receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Arrived.
    pub sent: u64,
    /// Given up: the receiver failed at it again and again, or it could not be encoded.
    pub failed: u64,
    /// Requests that were made again.
    pub retried: u64,
    /// Given up because too much was waiting.
    pub dropped_full: u64,
    /// Refused for good, as a whole or in part.
    pub dropped_refused: u64,
    /// Not sent yet.
    pub waiting: u64,
    /// What went wrong last, and where; `None`: nothing has since something arrived.
    pub last_error: Option<String>,
}

impl Counts {
    /// Those of two receivers.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let Self { sent, failed, retried, dropped_full, dropped_refused, waiting, last_error } = other;
        Self {
            sent: self.sent + sent,
            failed: self.failed + failed,
            retried: self.retried + retried,
            dropped_full: self.dropped_full + dropped_full,
            dropped_refused: self.dropped_refused + dropped_refused,
            waiting: self.waiting + waiting,
            last_error: self.last_error.or(last_error),
        }
    }

    /// All that is lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.failed + self.dropped_full + self.dropped_refused
    }
}
