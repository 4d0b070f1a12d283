//! Coverage: what the probes saw of pymalloc against what its pools say, read from outside.
//!
//! Two independent witnesses. Events contradict themselves: a block that comes back and was never seen to leave, a block
//! that leaves and was never seen to come back. And the pools count: the blocks in use must have changed by as many as were
//! seen to leave less those seen to come back.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::census::arenas::{ArenaVariables, find_arenas};
use crate::census::mimalloc::{PageLayout, blocks_in_pages};
use crate::census::pools::{blocks_in_use, scan_blocks_in_use};
use crate::discover::layout::{ArenaSource, InterpreterLayout};
use crate::discover::memory::{Mapping, ProcessMemory, ReadMemory, mappings};
use crate::discover::{Interpreter, Target};
use crate::drain::Totals;
use crate::profile::Coverage;

/// Blocks in use and what had been seen until then, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// Σ `pool.ref.count`.
    pub blocks: u64,
    /// Pops seen.
    pub pops: u64,
    /// Pushes seen.
    pub pushes: u64,
    /// Pops and pushes seen while the pools were read: the blocks are those of some moment among these events.
    pub moved: u64,
}

/// The moment at which nothing has been allocated.
pub const NOTHING_YET: Sight = Sight { blocks: 0, pops: 0, pushes: 0, moved: 0 };

const PROC: &str = "/proc";
const ENDED: &str = "the process has ended";

/// Tries of [`look`] on a process that runs.
const TRIES: usize = 3;

/// After this long there is no further try: the target is still armed, and who has pressed Ctrl-C waits.
const PATIENCE: Duration = Duration::from_millis(20);

/// Counts the blocks of a process, as near as can be to one moment: of several tries the one in which least happened.
///
/// `pages`: where its mimalloc keeps things, if that is recorded. `tables` keeps what was found in the process from one look to the next.
pub fn look<E>(
    target: &Target,
    pages: Option<PageLayout>,
    tables: &mut Option<ArenaVariables>,
    mut totals: impl FnMut() -> Result<Totals, E>,
) -> Result<Result<Sight, String>, E> {
    let mut best: Option<Sight> = None;
    let mut reason = ENDED.to_owned();
    let reader = match Reader::new(target, pages, tables.take()) {
        Ok(reader) => reader,
        Err(reason) => return Ok(Err(reason)),
    };
    let started = Instant::now();
    for _ in 0..TRIES {
        let before = totals()?;
        let counted = reader.count();
        let after = totals()?;
        let moved = (after.pops - before.pops) + (after.pushes - before.pushes);
        match counted {
            Err(why) => reason = why,
            Ok(blocks) => {
                let sight = Sight {
                    blocks,
                    pops: before.pops.midpoint(after.pops),
                    pushes: before.pushes.midpoint(after.pushes),
                    moved,
                };
                if best.is_none_or(|best| moved < best.moved) {
                    best = Some(sight);
                }
                if moved == 0 || started.elapsed() > PATIENCE {
                    break;
                }
            }
        }
    }
    *tables = reader.tables;
    Ok(best.ok_or(reason))
}

/// Reads the pools of one process. Finding the tables of arenas takes ten times as long as reading the pools, so it is done
/// before the clock of [`look`] runs.
struct Reader<'a> {
    target: &'a Target,
    pages: Option<PageLayout>,
    memory: ProcessMemory,
    tables: Option<ArenaVariables>,
}

impl<'a> Reader<'a> {
    fn new(
        target: &'a Target,
        pages: Option<PageLayout>,
        known: Option<ArenaVariables>,
    ) -> Result<Self, String> {
        let memory = ProcessMemory::open(Path::new(PROC), target.pid).map_err(|error| error.to_string())?;
        // Searched for once, if a search it takes; each new interpreter of 3.12 and later has tables of its own.
        if known.is_some() && target.interpreter.layout.pools.arenas == ArenaSource::Static {
            return Ok(Self { target, pages, memory, tables: known });
        }
        let mapped = mappings(Path::new(PROC), target.pid).map_err(|error| error.to_string())?;
        let Interpreter { layout, runtime, .. } = target.interpreter;
        let tables = match layout.free_threading {
            Some(_) => None,
            None => find_arenas(&memory, &mapped, &layout, runtime).ok(),
        };
        Ok(Self { target, pages, memory, tables })
    }

    fn count(&self) -> Result<u64, String> {
        let mapped = mappings(Path::new(PROC), self.target.pid).map_err(|error| error.to_string())?;
        let Interpreter { layout, runtime, .. } = &self.target.interpreter;
        count(&self.memory, &mapped, (layout, *runtime), self.pages, self.tables.as_ref())
    }
}

/// Counts the blocks of a process, all of them or none.
fn count(
    memory: &impl ReadMemory,
    mapped: &[Mapping],
    (layout, runtime): (&InterpreterLayout, u64),
    pages: Option<PageLayout>,
    tables: Option<&ArenaVariables>,
) -> Result<u64, String> {
    let mut blocks = 0;
    if let Some(pages) = pages {
        let census = blocks_in_pages(memory, mapped, pages).map_err(|error| error.to_string())?;
        tracing::debug!(?census, "mimalloc's pages");
        blocks = census.blocks;
    }
    if layout.free_threading.is_none() {
        let census = match tables {
            Some(tables) => blocks_in_use(memory, mapped, layout, tables),
            None => scan_blocks_in_use(memory, mapped, layout),
        };
        blocks += census.map_err(|error| error.to_string())?.blocks();
    }
    // Of one that has ended nothing is mapped, or can be read from some moment on; to who looks for segments, pools and arenas that is
    // as if there were none, or not so many. Its own data can be read as long as everything can.
    if mapped.is_empty() || memory.read_u64(runtime).is_err() {
        return Err(ENDED.to_owned());
    }
    Ok(blocks)
}

/// Events seen and missed, of one process or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    pops: f64,
    missed_pops: f64,
    pushes: f64,
    missed_pushes: f64,
    uncertain: f64,
    /// Blocks in use at either moment.
    blocks: f64,
}

impl Tally {
    /// Compares two moments, `from` and `to`, with the contradictions that were counted between them.
    ///
    /// `from_start`: the process was watched from its first allocation, so that every unknown push is a missed pop;
    /// otherwise they are blocks from before, and only the pools can tell.
    pub fn of(from: Sight, to: Sight, totals: &Totals, from_start: bool) -> Self {
        let pops = (to.pops - from.pops) as f64;
        let pushes = (to.pushes - from.pushes) as f64;
        // True allocations less true frees, against the same of what was seen.
        let grown = to.blocks as f64 - from.blocks as f64;
        // Blocks that were seen but have no place in the live table come back unknown as well.
        let left_out = totals.thinned + totals.live_table_full;
        let contradicted_pops =
            if from_start { totals.unknown_pushes.saturating_sub(left_out) as f64 } else { 0.0 };
        Self {
            pops,
            missed_pops: contradicted_pops.max(grown - (pops - pushes)),
            pushes,
            missed_pushes: (totals.repeated_pops as f64).max((pops - pushes) - grown),
            // The midpoint is at most half of what happened away from the moment of each pool's reading.
            uncertain: (from.moved + to.moved) as f64 / 2.0,
            blocks: (from.blocks + to.blocks) as f64,
        }
    }

    /// With another process's.
    pub fn plus(self, other: Self) -> Self {
        Self {
            pops: self.pops + other.pops,
            missed_pops: self.missed_pops + other.missed_pops,
            pushes: self.pushes + other.pushes,
            missed_pushes: self.missed_pushes + other.missed_pushes,
            uncertain: self.uncertain + other.uncertain,
            blocks: self.blocks + other.blocks,
        }
    }

    /// Whether there is anything of pymalloc's that could have been measured.
    pub fn has_pools(self) -> bool {
        self.pops + self.pushes + self.blocks > 0.0
    }

    /// As shares; `unmeasured_processes`: how many are not in it.
    pub fn coverage(self, unmeasured_processes: u32) -> Coverage {
        let share = |seen: f64, missed: f64| if seen + missed == 0.0 { 1.0 } else { seen / (seen + missed) };
        Coverage::Measured {
            allocations: share(self.pops, self.missed_pops),
            frees: share(self.pushes, self.missed_pushes),
            uncertainty: 1.0 - share(self.pops.min(self.pushes), self.uncertain),
            unmeasured_processes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::layout::layout;
    use crate::discover::memory::parse_mappings;
    use crate::plan::MimallocVersion;
    use std::cell::Cell;
    use std::io;

    /// Memory without pools, that of a process which ends when it has been read so often.
    struct Ending(Cell<usize>);

    impl ReadMemory for Ending {
        fn read(&self, _: u64, buffer: &mut [u8]) -> io::Result<()> {
            let left = self.0.get().checked_sub(1).ok_or(io::ErrorKind::UnexpectedEof)?;
            self.0.set(left);
            buffer.fill(0);
            Ok(())
        }
    }

    fn counted(reads: usize, mapped: &str, pages: Option<PageLayout>) -> Result<u64, String> {
        let row = (layout(3, 8).unwrap(), 0x1000);
        count(&Ending(Cell::new(reads)), &parse_mappings(mapped), row, pages, None)
    }

    /// Its blocks would all have been freed, and nobody had seen it.
    #[test]
    fn a_process_that_has_ended_is_not_one_without_blocks() {
        let ended = Err(ENDED.to_owned());
        let an_arena = "40000000-40040000 rw-p 00000000 00:00 0 ";
        let mimalloc = || Some(PageLayout::new(MimallocVersion::V2_1, false));
        // Its mappings are gone a moment before its memory.
        assert_eq!(counted(usize::MAX, "", None), ended);
        assert_eq!(counted(usize::MAX, "", mimalloc()), ended);
        // 64 pools, of which the last was read in time; and one place where a segment of mimalloc's could be.
        assert_eq!(counted(64, an_arena, None), ended);
        assert_eq!(counted(65, an_arena, mimalloc()), ended);
        assert_eq!(counted(65, an_arena, None), Ok(0));
        assert_eq!(counted(66, an_arena, mimalloc()), Ok(0));
    }

    fn measured(from: Sight, to: Sight, totals: Totals, from_start: bool) -> (f64, f64) {
        match Tally::of(from, to, &totals, from_start).coverage(0) {
            Coverage::Measured { allocations, frees, .. } => (allocations, frees),
            Coverage::Unmeasured { unmeasured } => panic!("{unmeasured}"),
        }
    }

    #[test]
    fn everything_seen() {
        let to = Sight { blocks: 400, pops: 1000, pushes: 600, moved: 0 };
        assert_eq!(measured(NOTHING_YET, to, Totals::default(), true), (1.0, 1.0));
    }

    #[test]
    fn a_pop_that_was_missed_and_lives() {
        let to = Sight { blocks: 401, pops: 999, pushes: 599, moved: 0 };
        let (allocations, frees) = measured(NOTHING_YET, to, Totals::default(), true);
        assert!((allocations - 0.999).abs() < 1e-9 && frees == 1.0, "{allocations} {frees}");
    }

    #[test]
    fn a_pop_that_was_missed_and_freed() {
        let to = Sight { blocks: 400, pops: 999, pushes: 600, moved: 0 };
        let totals = Totals { unknown_pushes: 1, ..Totals::default() };
        let (allocations, _) = measured(NOTHING_YET, to, totals, true);
        assert!((allocations - 0.999).abs() < 1e-9, "{allocations}");
    }

    #[test]
    fn a_block_without_a_place_is_no_miss() {
        let to = Sight { blocks: 400, pops: 1000, pushes: 600, moved: 0 };
        let totals = Totals { unknown_pushes: 300, thinned: 290, live_table_full: 10, ..Totals::default() };
        assert_eq!(measured(NOTHING_YET, to, totals, true), (1.0, 1.0));
    }

    #[test]
    fn a_push_that_was_missed() {
        let to = Sight { blocks: 400, pops: 1000, pushes: 599, moved: 0 };
        let (allocations, frees) = measured(NOTHING_YET, to, Totals::default(), true);
        assert!(allocations == 1.0 && (frees - 599.0 / 600.0).abs() < 1e-9, "{frees}");
    }

    #[test]
    fn blocks_from_before_are_no_misses() {
        let from = Sight { blocks: 500, pops: 0, pushes: 0, moved: 0 };
        let to = Sight { blocks: 100, pops: 10, pushes: 410, moved: 0 };
        let totals = Totals { unknown_pushes: 400, ..Totals::default() };
        assert_eq!(measured(from, to, totals, false), (1.0, 1.0));
    }

    /// `PYTHONMALLOC=malloc`: no events and no pools are no coverage.
    #[test]
    fn a_process_without_pools_has_no_coverage() {
        let nothing = Tally::of(NOTHING_YET, NOTHING_YET, &Totals::default(), true);
        assert!(!nothing.has_pools());
        let idle = Sight { blocks: 3, pops: 0, pushes: 0, moved: 0 };
        assert!(nothing.plus(Tally::of(idle, idle, &Totals::default(), false)).has_pools());
    }

    #[test]
    fn what_happened_while_the_pools_were_read_is_uncertain() {
        let from = Sight { blocks: 500, pops: 100, pushes: 100, moved: 10 };
        let to = Sight { blocks: 507, pops: 1100, pushes: 1100, moved: 30 };
        let coverage = Tally::of(from, to, &Totals::default(), false).coverage(0);
        let Coverage::Measured { allocations, frees, uncertainty, .. } = coverage else {
            panic!("{coverage:?}")
        };
        assert!((allocations - 1000.0 / 1007.0).abs() < 1e-9 && frees == 1.0, "{allocations} {frees}");
        assert!((uncertainty - 20.0 / 1020.0).abs() < 1e-9, "{uncertainty}");
    }
}
