//! How points are armed on this kernel: found out by asking it, not by its version.

use super::{AttachError, syscall};
use syscall::MultiSupport;

/// How points are armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// One `uprobe_multi` link for all points of a program, in one process (Linux 6.10).
    Multi,
    /// The same in every process that maps the file, because the link's process filter is wrong (Linux 6.6 to 6.9): others are
    /// slowed down by traps that count nothing.
    MultiEverywhere,
    /// A perf event for each point (any kernel; needs CAP_SYS_ADMIN since July 2025, and is slow to disarm).
    Perf,
}

impl Mechanism {
    /// The best that this kernel has.
    ///
    /// # Errors
    /// When it lets us load no program.
    pub fn best() -> Result<Self, AttachError> {
        let support = syscall::multi_support();
        let refused = |source| AttachError::Refused { call: "BPF_PROG_LOAD", extra: "", source };
        Ok(match support.map_err(refused)? {
            MultiSupport::ByProcess => Self::Multi,
            MultiSupport::ByThread => Self::MultiEverywhere,
            MultiSupport::None => Self::Perf,
        })
    }

    /// What a user should know about it, in a line; nothing about the usual one.
    #[must_use]
    pub const fn note(self) -> Option<&'static str> {
        match self {
            Self::Multi => None,
            Self::MultiEverywhere => Some(
                "this kernel cannot keep probes to one process (before Linux 6.10): other processes of the same interpreter run slower meanwhile",
            ),
            Self::Perf => Some(
                "this kernel has no uprobe_multi (before Linux 6.6): points are armed one by one, and disarming takes a while",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_usual_mechanism_is_not_worth_a_word() {
        assert_eq!(Mechanism::Multi.note(), None);
        assert!(Mechanism::MultiEverywhere.note().is_some_and(|note| note.contains("6.10")));
        assert!(Mechanism::Perf.note().is_some_and(|note| note.contains("6.6")));
    }
}
