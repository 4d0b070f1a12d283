//! The sample of blocks that live: those that windows saw allocated and nobody has seen die since.
//!
//! A block that outlives the tail of its window comes in, with the weight of the window. It leaves when a window sees its free,
//! when its address is handed out again, or when a check from outside finds it changed: a block freed unseen is handed out
//! again within microseconds and looks alive, so what a check can notice decides how far the figures can be trusted
//! (`classes.rs` is the alarm). The table has a bound; at the bound it thins itself by chance and scales up. It must not know
//! how a check reads memory; `W` is what it compares.

use std::hash::Hash;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{classes::ClassSurvivors, interval::Estimate, leaks::Leaks, units::Units};

/// What is left of the table's share when it is full.
const THINNING: f64 = 0.8;
/// Most blocks: 2,000 are enough where few windows decide, 8,000 where many do (simulation of window sampling).
pub const MOST_SURVIVORS: usize = 8000;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Number of its process in the recording.
    pub process: u32,
    /// Address in that process.
    pub address: u64,
}

/// How a block came into the sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// Allocated in this window: blocks of one window are there or not together.
    Window(u32),
    /// Drawn by itself, or seen while everything was: each block varies alone.
    Alone,
}

/// A block of the sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survivor<K, W> {
    /// Who allocated it.
    pub stack: K,
    /// Its size class: what the census counts by. 0 for malloc blocks, which it does not.
    pub class: u16,
    /// What the allocator spends on it.
    pub bytes: u64,
    /// How it came in.
    pub origin: Origin,
    /// Blocks that it stands for, without thinning and scale: weight of its window times that of its probe point.
    pub weight: f64,
    /// Time of its allocation since recording began: age is from here.
    pub born: Duration,
    /// Words that do not change while it lives.
    pub words: W,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Nothing speaks against its being the same block.
    Same,
    /// Free, or another block.
    Gone,
}

/// How many blocks left the sample, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Departures {
    /// A window or tail saw the free.
    pub freed: u64,
    /// A window saw the address handed out again: a free that nobody saw.
    pub reused: u64,
    /// A check noticed.
    pub checked: u64,
    /// Left out at the bound; the others stand for them.
    pub thinned: u64,
}

/// The live memory of one stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Live<K> {
    /// The stack.
    pub stack: K,
    /// Bytes that live.
    pub bytes: Estimate,
    /// Blocks that live.
    pub count: Estimate,
    /// Mean age of its bytes, seconds.
    pub age: f64,
}

/// The sample. `K` names a stack, `W` are the words of a block.
#[derive(Debug, Clone)]
pub struct Survivors<K, W> {
    blocks: FxHashMap<Place, Kept<K, W>>,
    bound: usize,
    /// Chance that a new block is kept.
    tau: f64,
    random: fastrand::Rng,
    leaks: Leaks<K>,
    departures: Departures,
}

/// With the number that decides when it is thinned out.
#[derive(Debug, Clone)]
struct Kept<K, W> {
    survivor: Survivor<K, W>,
    draw: f64,
}

impl<K: Copy + Eq + Hash + Ord, W> Survivors<K, W> {
    /// An empty sample of at most `bound` blocks.
    #[must_use]
    pub fn new(bound: usize, seed: u64) -> Self {
        Self {
            blocks: FxHashMap::default(),
            bound: bound.max(1),
            tau: 1.0,
            random: fastrand::Rng::with_seed(seed),
            leaks: Leaks::default(),
            departures: Departures::default(),
        }
    }

    /// A block was alive at the end of its window's tail. `now` is the time since recording began.
    pub fn keep(&mut self, place: Place, survivor: Survivor<K, W>, now: Duration) {
        self.handed_out(place, now);
        let draw = self.random.f64();
        if draw >= self.tau {
            self.departures.thinned += 1;
            return;
        }
        // A pseudo-stack of blocks older than the recording does not grow by being sampled.
        if matches!(survivor.origin, Origin::Window(_)) {
            self.leaks.taken(survivor.stack, now, self.stands_for(&survivor));
        }
        self.blocks.insert(place, Kept { survivor, draw });
        while self.blocks.len() > self.bound {
            self.thin();
        }
    }

    /// A window or tail saw a block freed.
    pub fn freed(&mut self, place: Place, now: Duration) {
        self.departures.freed += u64::from(self.leave(place, now));
    }

    /// A window saw an address handed out: what was there had been freed unseen.
    pub fn handed_out(&mut self, place: Place, now: Duration) {
        self.departures.reused += u64::from(self.leave(place, now));
    }

    /// Asks of every block whether it is still the same, and drops those that are not.
    pub fn check(&mut self, now: Duration, mut look: impl FnMut(Place, &Survivor<K, W>) -> Check) {
        let mut gone: Vec<Place> = Vec::new();
        for (place, kept) in &self.blocks {
            if look(*place, &kept.survivor) == Check::Gone {
                gone.push(*place);
            }
        }
        for place in gone {
            self.departures.checked += u64::from(self.leave(place, now));
        }
    }

    /// A process ended: its blocks are no longer there, and that is not a stack's memory shrinking.
    pub fn process_ended(&mut self, process: u32) {
        let mut stacks: Vec<K> = Vec::new();
        self.blocks.retain(|place, kept| {
            if place.process == process {
                stacks.push(kept.survivor.stack);
            }
            place.process != process
        });
        stacks.sort_unstable();
        // Stacks belong to one process, so what others hold is not touched.
        self.leaks.forget(|stack| stacks.binary_search(&stack).is_ok());
    }

    /// An account was given back: what comes under its name is another stack's.
    pub fn forget(&mut self, stack: K) {
        self.blocks.retain(|_, kept| kept.survivor.stack != stack);
        self.leaks.forget(|other| other == stack);
    }

    /// All blocks of the sample, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &Survivor<K, W>)> {
        self.blocks.iter().map(|(place, kept)| (*place, &kept.survivor))
    }

    /// Blocks in the sample.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// How blocks left it.
    #[must_use]
    pub fn departures(&self) -> Departures {
        self.departures
    }

    /// Net growth of stacks, from what came and went.
    #[must_use]
    pub fn leaks(&self) -> &Leaks<K> {
        &self.leaks
    }

    /// The live memory of each stack of `process`, in order of stacks. `scale` is `Flows::scale` of the process.
    #[must_use]
    pub fn live(&self, process: u32, scale: f64, now: Duration) -> Vec<Live<K>> {
        let mut rows: Vec<Row<K>> =
            self.of(process).map(|(place, kept)| self.row(place, kept, now)).collect();
        rows.sort_unstable_by_key(|row| (row.stack, row.unit));
        let stacks = rows.chunk_by(|left, right| left.stack == right.stack);
        stacks.map(|rows| live(rows, scale)).collect()
    }

    /// The survivors of each size class of `process`, scaled like [`Survivors::live`]: what `classes::judge` compares.
    #[must_use]
    pub fn classes(&self, process: u32, scale: f64) -> Vec<(u16, ClassSurvivors)> {
        let mut rows: Vec<_> = self
            .of(process)
            .map(|(place, kept)| {
                let row = self.row(place, kept, Duration::ZERO);
                (kept.survivor.class, row.unit, row.count * if row.chance.is_some() { 1.0 } else { scale })
            })
            .collect();
        rows.sort_unstable_by_key(|row| (row.0, row.1));
        let classes = rows.chunk_by(|left, right| left.0 == right.0);
        classes
            .map(|rows| {
                let mut sums = Units::default();
                for unit in rows.chunk_by(|left, right| left.1 == right.1) {
                    sums.add(unit.iter().map(|row| row.2).sum(), 1.0);
                }
                (rows[0].0, ClassSurvivors { blocks: sums.total(), effective: sums.effective() })
            })
            .collect()
    }

    fn of(&self, process: u32) -> impl Iterator<Item = (Place, &Kept<K, W>)> {
        self.blocks
            .iter()
            .filter(move |(place, _)| place.process == process)
            .map(|(place, kept)| (*place, kept))
    }

    fn row(&self, place: Place, kept: &Kept<K, W>, now: Duration) -> Row<K> {
        let Survivor { stack, bytes, weight, born, .. } = kept.survivor;
        let count = weight / self.tau;
        let age = now.saturating_sub(born).as_secs_f64();
        let alone = kept.survivor.origin == Origin::Alone;
        let chance = alone.then(|| (self.tau / weight).min(1.0));
        Row { stack, unit: unit(place, kept), chance, bytes: count * bytes as f64, count, age }
    }

    /// Bytes that a block stands for.
    fn stands_for(&self, survivor: &Survivor<K, W>) -> f64 {
        survivor.weight * survivor.bytes as f64 / self.tau
    }

    fn leave(&mut self, place: Place, now: Duration) -> bool {
        let Some(kept) = self.blocks.remove(&place) else { return false };
        let bytes = self.stands_for(&kept.survivor);
        if matches!(kept.survivor.origin, Origin::Window(_)) {
            self.leaks.gone(kept.survivor.stack, now, bytes);
        }
        true
    }

    fn thin(&mut self) {
        self.tau *= THINNING;
        let before = self.blocks.len();
        self.blocks.retain(|_, kept| kept.draw < self.tau);
        self.departures.thinned += (before - self.blocks.len()) as u64;
    }
}

/// What varies together: a window, or a block of its own.
fn unit<K, W>(place: Place, kept: &Kept<K, W>) -> (Origin, u64) {
    match kept.survivor.origin {
        Origin::Window(_) => (kept.survivor.origin, 0),
        Origin::Alone => (Origin::Alone, place.address),
    }
}

/// One block, weighed.
struct Row<K> {
    stack: K,
    unit: (Origin, u64),
    /// Chance with which a block that came in alone is in the sample.
    chance: Option<f64>,
    bytes: f64,
    count: f64,
    age: f64,
}

/// One stack. Windows vary as wholes; a block that came in alone varies by the chance with which it was drawn and not thinned.
fn live<K: Copy + Eq>(rows: &[Row<K>], scale: f64) -> Live<K> {
    let estimate = |value: fn(&Row<K>) -> f64| {
        let mut units = Units::default();
        for unit in rows.chunk_by(|left, right| left.unit == right.unit) {
            let sum: f64 = unit.iter().map(value).sum();
            match unit[0].chance {
                Some(chance) => units.add(sum, 1.0 - chance),
                None => units.add(sum * scale, 1.0),
            }
        }
        units.estimate()
    };
    let (bytes, aged) =
        rows.iter().fold((0.0, 0.0), |sum, row| (sum.0 + row.bytes, sum.1 + row.bytes * row.age));
    let age = if bytes > 0.0 { aged / bytes } else { 0.0 };
    Live { stack: rows[0].stack, bytes: estimate(|row| row.bytes), count: estimate(|row| row.count), age }
}

#[cfg(test)]
mod tests;
