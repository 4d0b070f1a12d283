//! What the estimates of a recording in budget mode stand on: its windows, and how it is known what lives.
//!
//! It must not know how windows are made, nor who prints this.

use super::estimated::root_of_squares;

/// By what it is told what lives, where that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LiveBy {
    /// Pools read from outside, which count for the stack that opened each, and malloc's blocks: exact for all stacks together.
    #[default]
    Pools,
    /// A sample of the blocks that outlived the tail of the window that saw them taken: estimated, with intervals.
    Survivors,
}

/// What is known of what lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live<'a> {
    /// It is, by these.
    By(LiveBy),
    /// It is not, and bytes a second that outlive about one second stand in its place.
    Retained {
        /// Why it is not.
        why: &'a str,
    },
    /// It is not.
    Unknown {
        /// Why.
        why: &'a str,
    },
}

/// The windows of a recording in budget mode.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct WindowSummary {
    /// How many were opened.
    pub opened: u64,
    /// Those of them that watched pymalloc's blocks; the others watched malloc's.
    pub full: u64,
    /// Those of them whose blocks have been looked at for a second; retained flow is known where there are any.
    pub tails: u64,
    /// Whether it is known what lives; by pools, also what lived at the peak.
    pub knows_live: bool,
    /// By what it is known, where it is.
    pub live_by: LiveBy,
    /// Why it is not, where it was meant to be, or what of it is missing.
    pub live_unknown: Option<String>,
    /// Whether retained flow stands in live's place: too few blocks that are used again would be noticed.
    pub retained_in_place_of_live: bool,
    /// Blocks in the sample of what lives, at the end.
    pub survivors: u64,
    /// Looks at what lives. By pools the highest of them is the peak.
    pub looks: u64,
    /// The longest time between two of them: a peak that was shorter may have been missed.
    pub longest_look_gap_nanoseconds: u64,
    /// Half the width of the 95 % interval of all allocated bytes; `null`: too few windows to know.
    pub allocated_bytes_error: Option<u64>,
    /// How many times as long as by itself a process took in windows that watch all blocks, at the most; `null`: not known.
    pub slowdown: Option<f64>,
    /// Why no more were opened before the recording ended; `null`: they were.
    pub stopped: Option<String>,
}

impl WindowSummary {
    /// What is known of what lives, in one.
    #[must_use]
    pub fn live(&self) -> Live<'_> {
        let why = self.live_unknown.as_deref().unwrap_or("windows saw no frees");
        match (self.knows_live, self.retained_in_place_of_live) {
            (true, _) => Live::By(self.live_by),
            (false, true) => Live::Retained { why },
            (false, false) => Live::Unknown { why },
        }
    }

    /// Of a stretch of which everything was counted, beside others that have windows.
    pub(super) fn counted() -> Self {
        Self { knows_live: true, live_by: LiveBy::Pools, allocated_bytes_error: Some(0), ..Self::default() }
    }

    /// What was done since an earlier moment of the same recording. What is known is what is known now.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            opened: self.opened.saturating_sub(earlier.opened),
            full: self.full.saturating_sub(earlier.full),
            tails: self.tails.saturating_sub(earlier.tails),
            looks: self.looks.saturating_sub(earlier.looks),
            ..self.clone()
        }
    }

    /// This stretch and the next: what was done is added, what lives is what is known at the end, and the worst of both is said.
    pub(super) fn then(&self, next: &Self) -> Self {
        let errors = self.allocated_bytes_error.zip(next.allocated_bytes_error);
        Self {
            opened: self.opened.saturating_add(next.opened),
            full: self.full.saturating_add(next.full),
            tails: self.tails.saturating_add(next.tails),
            looks: self.looks.saturating_add(next.looks),
            longest_look_gap_nanoseconds: self
                .longest_look_gap_nanoseconds
                .max(next.longest_look_gap_nanoseconds),
            // Other windows saw each.
            allocated_bytes_error: errors.map(|(one, other)| root_of_squares([one, other])),
            slowdown: self.slowdown.into_iter().chain(next.slowdown).reduce(f64::max),
            ..next.clone()
        }
    }

    /// Whether live bytes are those of pools, and with them those of the peak.
    #[must_use]
    pub fn is_live_by_pools(&self) -> bool {
        self.live() == Live::By(LiveBy::Pools)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_of_earlier_versions_say_the_same_as_then() {
        let read = |json: &str| serde_json::from_str::<WindowSummary>(json).unwrap();
        assert_eq!(read(r#"{"opened": 3, "knows_live": true, "looks": 9}"#).live(), Live::By(LiveBy::Pools));
        let unknown = read(r#"{"knows_live": false, "live_unknown": "mimalloc"}"#);
        assert_eq!(unknown.live(), Live::Unknown { why: "mimalloc" });
        assert_eq!(read("{}").live(), Live::Unknown { why: "windows saw no frees" });
    }

    #[test]
    fn stretches_add_up_to_the_whole() {
        let at = |opened, error| WindowSummary {
            opened,
            full: opened / 2,
            tails: opened / 3,
            looks: opened * 2,
            knows_live: true,
            longest_look_gap_nanoseconds: opened,
            allocated_bytes_error: Some(error),
            slowdown: Some(opened as f64),
            ..WindowSummary::default()
        };
        let (first, both) = (at(30, 3), at(75, 4));
        assert_eq!(first.then(&both.since(&first)), WindowSummary { allocated_bytes_error: Some(5), ..both });
        let unknown = WindowSummary { allocated_bytes_error: None, slowdown: None, ..first.clone() };
        let sum = first.then(&unknown);
        assert_eq!((sum.allocated_bytes_error, sum.slowdown), (None, Some(30.0)));
        let mixed = unknown.then(&WindowSummary::counted());
        assert!(mixed.is_live_by_pools());
    }

    #[test]
    fn retained_flow_says_why_it_stands_there() {
        let summary = WindowSummary {
            retained_in_place_of_live: true,
            live_unknown: Some("few are noticed".to_owned()),
            ..WindowSummary::default()
        };
        assert_eq!(summary.live(), Live::Retained { why: "few are noticed" });
    }
}
