//! Which of a sample's values is meant, and in what unit: the words of `--metric` and `--unit`.
//!
//! It must not know flags or formats; it only names the values.

use std::{fmt, str::FromStr};

use super::{Amount, Values};

/// One of the things that are known of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Not freed when recording ended.
    Live,
    /// Live when the process's live bytes were highest.
    Peak,
    /// Everything allocated while recording.
    Allocated,
    /// Freed before the allocating thread's next allocation.
    Temporary,
    /// Bytes a second that outlive about one second: a flow, which only windows with a tail see.
    Retained,
}

/// What is shown of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Unit {
    /// Bytes.
    #[default]
    Bytes,
    /// Number of blocks.
    Count,
}

/// A word that names no metric or unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{name}`: use one of {known}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: String,
}

impl Metric {
    /// Every metric, in the order of the command line's contract.
    pub const ALL: [Self; 5] = [Self::Live, Self::Peak, Self::Allocated, Self::Temporary, Self::Retained];

    /// The word for it in flags, JSON and profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Peak => "peak",
            Self::Allocated => "allocated",
            Self::Temporary => "temporary",
            Self::Retained => "retained",
        }
    }

    /// This metric's part of a sample's values; `None` for retained flow, which is none of them ([`super::Sample::amount`]).
    pub(super) fn of(self, values: &Values) -> Option<Amount> {
        match self {
            Self::Live => Some(values.live),
            Self::Peak => Some(values.peak),
            Self::Allocated => Some(values.allocated),
            Self::Temporary => Some(values.temporary),
            Self::Retained => None,
        }
    }

    /// Like [`Metric::of`], to write to.
    pub(super) fn of_mut(self, values: &mut Values) -> Option<&mut Amount> {
        match self {
            Self::Live => Some(&mut values.live),
            Self::Peak => Some(&mut values.peak),
            Self::Allocated => Some(&mut values.allocated),
            Self::Temporary => Some(&mut values.temporary),
            Self::Retained => None,
        }
    }
}

impl Unit {
    /// Both units.
    pub const ALL: [Self; 2] = [Self::Bytes, Self::Count];

    /// The word for it in flags and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Count => "count",
        }
    }

    /// This unit's part of an amount.
    pub fn of(self, amount: Amount) -> u64 {
        match self {
            Self::Bytes => amount.bytes,
            Self::Count => amount.count,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Metric {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|metric| metric.name() == name);
        found.ok_or_else(|| UnknownName { what: "metric", name: name.to_owned(), known: known() })
    }
}

impl FromStr for Unit {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|unit| unit.name() == name);
        found.ok_or_else(|| UnknownName { what: "unit", name: name.to_owned(), known: known() })
    }
}
