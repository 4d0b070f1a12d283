//! What a recording in growth mode says of one process as a whole: its stacks against the kernel's own figures.
//!
//! It must not know how either was counted.

/// Bytes of resident anonymous memory, or why they are not known.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Residence {
    /// Compared when the recording ended.
    Compared {
        /// The kernel's figure (`RssAnon`) when the recording began.
        before: u64,
        /// The same at its end.
        after: u64,
        /// Of what was resident at the beginning: what has gone, or has come anew.
        gone_before: u64,
        /// What the stacks held by their own books.
        stacks: u64,
        /// Of that: what the page table said had gone. It was taken off the stacks.
        gone_unseen: u64,
        /// What the page table had beyond that. It is in a row of its own.
        come_unseen: u64,
    },
    /// Not compared; the text says why.
    Uncompared {
        /// The reason, one line.
        uncompared: String,
    },
}

impl Residence {
    /// Where both are known: what the kernel says has come since the beginning, and what the stacks held before anything was corrected.
    #[must_use]
    pub fn both(&self) -> Option<(i128, u64)> {
        match self {
            Self::Compared { before, after, gone_before, stacks, .. } => {
                Some((i128::from(*after) - i128::from(*before) + i128::from(*gone_before), *stacks))
            }
            Self::Uncompared { .. } => None,
        }
    }

    /// How far the stacks are off, in percent of what the kernel says; `None` where that is nothing.
    #[must_use]
    pub fn difference_percent(&self) -> Option<f64> {
        let (kernel, stacks) = self.both()?;
        (kernel > 0).then(|| (stacks as f64 - kernel as f64) * 100.0 / kernel as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_and_has_gone_is_no_growth_of_the_stacks() {
        let residence = Residence::Compared {
            before: 1000,
            after: 1500,
            gone_before: 300,
            stacks: 840,
            gone_unseen: 50,
            come_unseen: 10,
        };
        assert_eq!(residence.both(), Some((800, 840)));
        assert!((residence.difference_percent().unwrap() - 5.0).abs() < 1e-9);
        assert_eq!(Residence::Uncompared { uncompared: String::new() }.both(), None);
    }
}
