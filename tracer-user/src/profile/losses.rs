//! What a recording lost, by cause. Every loss has its words here, once.
//!
//! It must not know who counts it, nor who prints it.

/// Everything that was lost, by cause.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Losses {
    /// Blocks that found no place in the live table: their frees cannot be seen.
    pub live_table_full: u64,
    /// Events whose stack found no place: their bytes are under the marker "other stacks".
    pub stack_table_full: u64,
    /// Events whose thread found no place in the thread table.
    pub thread_table_full: u64,
    /// Allocations left out by thinning (the others are scaled up for them).
    pub thinned: u64,
    /// Frames whose name or line could not be found.
    pub unresolved_frames: u64,
    /// Stacks cut at the depth limit.
    pub truncated_stacks: u64,
    /// Reads of target memory that failed during a walk.
    pub failed_reads: u64,
    /// Records that found the ring buffer full (each is sent again at the stack's next event).
    pub ring_full: u64,
    /// Probes that the kernel skipped (nested hits).
    pub missed_probes: u64,
    /// Blocks that followed processes took before they were armed, and still held then.
    pub blocks_before_armed: u64,
    /// Python processes that should have been followed and were not: no place for them, or they could not be armed.
    pub unfollowed_processes: u64,
    /// Python processes, by their name or as forks of such, that ended before they could be armed: what they took is not in the profile.
    pub ended_unarmed_processes: u64,
    /// Forks, execs and ends that the kernel half could not tell of.
    pub untold_processes: u64,
    /// Stacks given up to bound memory, of processes that had ended or too small to keep for long: their bytes are under a marker that says so.
    pub merged_stacks: u64,
    /// Accounts whose stack never came, or came in part: their bytes are under the marker "stack not received".
    pub unreceived_stacks: u64,
}

/// What stands in place of the stacks of [`Losses::merged_stacks`] whose processes had ended.
pub const ENDED_STACKS: &str = "other stacks (process ended)";

/// What [`Losses::blocks_before_armed`] is called.
pub const BLOCKS_BEFORE_ARMED: &str = "blocks that followed processes took before they were armed";

impl Losses {
    /// Each cause with what it counts, in the order in which users are told.
    #[must_use]
    pub fn causes(&self) -> [(u64, &'static str); 15] {
        let Self {
            live_table_full,
            stack_table_full,
            thread_table_full,
            thinned,
            unresolved_frames,
            truncated_stacks,
            failed_reads,
            ring_full,
            missed_probes,
            blocks_before_armed,
            unfollowed_processes,
            ended_unarmed_processes,
            untold_processes,
            merged_stacks,
            unreceived_stacks,
        } = *self;
        [
            (live_table_full, "blocks without a place in the live table"),
            (stack_table_full, "events without a place for their stack (record with more `--stacks`)"),
            (thread_table_full, "events without a place for their thread"),
            (thinned, "allocations thinned out"),
            (unresolved_frames, "unresolved frames"),
            (truncated_stacks, "truncated stacks"),
            (failed_reads, "failed reads"),
            (ring_full, "records that found the ring buffer full"),
            (missed_probes, "missed probes"),
            (blocks_before_armed, BLOCKS_BEFORE_ARMED),
            (unfollowed_processes, "processes that could not be followed"),
            (ended_unarmed_processes, "processes that ended before they were armed"),
            (untold_processes, "forks, execs or ends of processes untold"),
            (merged_stacks, "stacks merged to save room"),
            (unreceived_stacks, "stacks not received"),
        ]
    }

    /// Both, cause by cause.
    #[must_use]
    pub fn with(&self, other: &Self, each: impl Fn(u64, u64) -> u64) -> Self {
        let Self {
            live_table_full,
            stack_table_full,
            thread_table_full,
            thinned,
            unresolved_frames,
            truncated_stacks,
            failed_reads,
            ring_full,
            missed_probes,
            blocks_before_armed,
            unfollowed_processes,
            ended_unarmed_processes,
            untold_processes,
            merged_stacks,
            unreceived_stacks,
        } = *self;
        Self {
            live_table_full: each(live_table_full, other.live_table_full),
            stack_table_full: each(stack_table_full, other.stack_table_full),
            thread_table_full: each(thread_table_full, other.thread_table_full),
            thinned: each(thinned, other.thinned),
            unresolved_frames: each(unresolved_frames, other.unresolved_frames),
            truncated_stacks: each(truncated_stacks, other.truncated_stacks),
            failed_reads: each(failed_reads, other.failed_reads),
            ring_full: each(ring_full, other.ring_full),
            missed_probes: each(missed_probes, other.missed_probes),
            blocks_before_armed: each(blocks_before_armed, other.blocks_before_armed),
            unfollowed_processes: each(unfollowed_processes, other.unfollowed_processes),
            ended_unarmed_processes: each(ended_unarmed_processes, other.ended_unarmed_processes),
            untold_processes: each(untold_processes, other.untold_processes),
            merged_stacks: each(merged_stacks, other.merged_stacks),
            unreceived_stacks: each(unreceived_stacks, other.unreceived_stacks),
        }
    }

    /// All of them together but what was thinned out, which is scaled up for.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let without = Self { thinned: 0, ..self.clone() };
        without.causes().iter().fold(0, |sum, (number, _)| sum.saturating_add(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_words_and_counts_but_thinning() {
        let losses = Losses { live_table_full: 1, untold_processes: 20, thinned: 300, ..Losses::default() };
        assert_eq!(losses.sum(), 21);
        let told = losses.causes().iter().filter(|(number, _)| *number > 0).count();
        assert_eq!(told, 3);
        assert!(losses.causes().iter().all(|(_, words)| !words.is_empty()));
    }

    #[test]
    fn both_are_added_and_taken_cause_by_cause() {
        let few = serde_json::to_value(Losses::default()).unwrap();
        let numbered = |first: u64| {
            let keys = few.as_object().unwrap().keys().cloned();
            let map: serde_json::Map<_, _> =
                keys.zip(first..).map(|(key, number)| (key, number.into())).collect();
            serde_json::from_value::<Losses>(map.into()).unwrap()
        };
        let (one, other) = (numbered(1), numbered(1000));
        let sum = one.with(&other, u64::saturating_add);
        let numbers = |losses: &Losses| losses.causes().map(|(number, _)| number);
        let (ones, others) = (numbers(&one), numbers(&other));
        assert_eq!(numbers(&sum).to_vec(), ones.iter().zip(others).map(|(a, b)| a + b).collect::<Vec<_>>());
        assert_eq!(sum.with(&one, u64::saturating_sub), other);
    }
}
