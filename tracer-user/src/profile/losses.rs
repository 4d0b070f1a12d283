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
    /// Stacks of processes that had ended, given up to bound the tracer's memory: their bytes are under the marker "other stacks".
    pub merged_stacks: u64,
    /// Accounts whose stack never came, or came in part: their bytes are under the marker "stack not received".
    pub unreceived_stacks: u64,
}

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
            (merged_stacks, "stacks of ended processes merged"),
            (unreceived_stacks, "stacks not received"),
        ]
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
}
