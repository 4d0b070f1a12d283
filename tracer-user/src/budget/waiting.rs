//! Blocks that a window saw, between its end and the look that they have to outlive to be survivors.
//!
//! Frees are not watched. A block that was freed is handed out again within microseconds and then looks alive, but it is free for some of the
//! time: many looks see it so once. So a window's blocks are looked at eight times in the first second, and what has never been found free,
//! nor as another block, outlives it. It must not know how memory is read; `W` is what a look remembers of a block.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::survivors::{Origin, Place, Survivor};

/// When a window's blocks are looked at, after its end: at once, for whoever is gone before the first look and has been replaced is never
/// found out. What lives for a request is free at some of these, what lives longer at none.
pub const LOOKS: [Duration; 8] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(60),
    Duration::from_millis(120),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];
/// From this look on blocks are taken to be made: 4 % of those that lived changed in the 10 ms after a window (0024-identity.md).
const MADE: usize = 4;
/// Most blocks that wait. A window of 50 ms sees 25,000 traps of 2 us at most.
pub const MOST_WAITING: usize = 32_768;
/// Blocks are thinned by stretches of this size, so that one read serves many: a pool's.
const STRETCH_BITS: u32 = 14;
/// One in 2^64 is none.
const MOST_THINNING: u32 = 63;

/// How long a block has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It may still be in the making.
    Early,
    /// It is made.
    Made,
}

/// What a look remembers of a block.
pub trait Words {
    /// Whether it may be the same block. At [`Stage::Early`] whatever the making of an object changes must not count.
    fn is_same(&self, now: &Self, stage: Stage) -> bool;
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<W> {
    /// The allocator says that it is free, or there is no such block any more.
    Free,
    /// It could not be told this time.
    Unsure,
    /// It is in use, and looks like this.
    There(W),
}

/// A block as its window told of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<K> {
    /// Who took it.
    pub stack: K,
    /// Its size class; 0 for malloc's.
    pub class: u16,
    /// What the allocator spends on it.
    pub bytes: u64,
    /// Blocks that it stands for: its probe point was not armed in each window.
    pub weight: f64,
}

/// How blocks left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blocks that windows told of, without those that they told of again at the same address.
    pub told: u64,
    /// A later window saw the address handed out.
    pub reused: u64,
    /// A look found them free.
    pub free: u64,
    /// A look found another block.
    pub changed: u64,
    /// Left out, so that looks stay cheap; the others stand for them.
    pub thinned: u64,
    /// Could not be looked at, ever.
    pub unseen: u64,
    /// Outlived all looks.
    pub outlived: u64,
}

/// Blocks of one window that have outlived its looks.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlived<K, W> {
    /// Number of the window.
    pub window: u32,
    /// Its blocks.
    pub blocks: Vec<(Place, Survivor<K, W>)>,
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Waiting<K, W> {
    blocks: FxHashMap<Place, Waits<K, W>>,
    windows: BTreeMap<u32, Window>,
    bound: usize,
    salt: u64,
    counts: Counts,
}

#[derive(Debug, Clone)]
struct Waits<K, W> {
    candidate: Candidate<K>,
    window: u32,
    words: Option<W>,
    /// Those words are of a block that is made.
    is_made: bool,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    ended: Duration,
    /// Looks of [`LOOKS`] that are over, whether they were made or came too late.
    looks: usize,
    thinning: u32,
    blocks: usize,
}

impl Window {
    /// Looks whose time has come.
    fn due(&self, now: Duration) -> usize {
        let age = now.saturating_sub(self.ended);
        LOOKS.iter().take_while(|look| **look <= age).count()
    }

    fn next(&self) -> Option<Duration> {
        Some(self.ended.saturating_add(*LOOKS.get(self.looks)?))
    }
}

impl<K: Copy + Eq + Hash, W: Words> Waiting<K, W> {
    /// None; at most `bound`.
    #[must_use]
    pub fn new(bound: usize, salt: u64) -> Self {
        Self {
            blocks: FxHashMap::default(),
            windows: BTreeMap::new(),
            bound: bound.max(1),
            salt,
            counts: Counts::default(),
        }
    }

    /// A window has ended: the blocks that it told of, each address once. One in `2^thinning` is followed. Numbers of windows grow.
    pub fn window(
        &mut self,
        number: u32,
        ended: Duration,
        blocks: impl IntoIterator<Item = (Place, Candidate<K>)>,
        thinning: u32,
    ) {
        let thinning = thinning.min(MOST_THINNING);
        self.windows.insert(number, Window { ended, looks: 0, thinning, blocks: 0 });
        for (place, candidate) in blocks {
            self.counts.told += 1;
            self.handed_out(place);
            // The bound may have thinned the window meanwhile.
            let thinning = self.windows.get(&number).map_or(thinning, |window| window.thinning);
            if !is_drawn(place, number, self.salt, thinning) {
                self.counts.thinned += 1;
                continue;
            }
            self.blocks.insert(place, Waits { candidate, window: number, words: None, is_made: false });
            self.windows.entry(number).and_modify(|window| window.blocks += 1);
            if self.blocks.len() > self.bound {
                self.thin();
            }
        }
    }

    /// The address has been handed out: what was there is free.
    pub fn handed_out(&mut self, place: Place) {
        if let Some(waits) = self.blocks.remove(&place) {
            self.counts.reused += 1;
            self.windows
                .entry(waits.window)
                .and_modify(|window| window.blocks = window.blocks.saturating_sub(1));
        }
    }

    /// Half of the blocks of the window that has most.
    fn thin(&mut self) {
        let most = self.windows.iter_mut().max_by_key(|(_, window)| window.blocks);
        let Some((&number, window)) = most.filter(|(_, window)| window.thinning < MOST_THINNING) else {
            return;
        };
        window.thinning += 1;
        let (thinning, salt, before) = (window.thinning, self.salt, self.blocks.len());
        self.blocks.retain(|place, waits| waits.window != number || is_drawn(*place, number, salt, thinning));
        let left_out = before - self.blocks.len();
        window.blocks = window.blocks.saturating_sub(left_out);
        self.counts.thinned += left_out as u64;
    }

    /// When the next look is due.
    #[must_use]
    pub fn next_look(&self) -> Option<Duration> {
        self.windows.values().filter_map(Window::next).min()
    }

    /// The blocks that a look at this time is for, in no order.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = (Place, &Candidate<K>)> {
        let is_due = move |window: &Window| window.due(now) > window.looks;
        self.blocks
            .iter()
            .filter(move |(_, waits)| self.windows.get(&waits.window).is_some_and(is_due))
            .map(|(place, waits)| (*place, &waits.candidate))
    }

    /// What a look at `now` has found at the places that were due; gives what has outlived its looks.
    pub fn looked(&mut self, now: Duration, mut find: impl FnMut(Place) -> Seen<W>) -> Vec<Outlived<K, W>> {
        let mut over: BTreeMap<u32, Outlived<K, W>> = BTreeMap::new();
        let due: BTreeMap<u32, (usize, Window)> = self
            .windows
            .iter()
            .map(|(number, window)| (*number, (window.due(now), *window)))
            .filter(|(_, (due, window))| *due > window.looks)
            .collect();
        let counts = &mut self.counts;
        let mut left: FxHashMap<u32, usize> = FxHashMap::default();
        self.blocks.retain(|place, waits| {
            let Some((looks, window)) = due.get(&waits.window) else { return true };
            let is_kept = waits.look(find(*place), *looks, counts);
            if is_kept && *looks < LOOKS.len() {
                *left.entry(waits.window).or_default() += 1;
                return true;
            }
            let outlived = over.entry(waits.window).or_insert_with(|| Outlived::of(waits.window));
            if is_kept {
                outlived.blocks.extend(waits.outlive(*place, window, counts));
            }
            false
        });
        for (number, (looks, _)) in due {
            if looks == LOOKS.len() {
                self.windows.remove(&number);
                over.entry(number).or_insert_with(|| Outlived::of(number));
            } else if let Some(window) = self.windows.get_mut(&number) {
                window.looks = looks;
                window.blocks = left.get(&number).copied().unwrap_or(0);
                over.remove(&number);
            }
        }
        over.into_values().collect()
    }

    /// A process ended: what is not known to have outlived its window is left out.
    pub fn process_ended(&mut self, process: u32) {
        self.leave_out(|place, _| place.process == process);
    }

    /// A stack is no longer what it was.
    pub fn forget(&mut self, stack: K) {
        self.leave_out(|_, waits| waits.candidate.stack == stack);
    }

    fn leave_out(&mut self, is_out: impl Fn(&Place, &Waits<K, W>) -> bool) {
        let windows = &mut self.windows;
        self.blocks.retain(|place, waits| {
            let is_out = is_out(place, waits);
            if is_out && let Some(window) = windows.get_mut(&waits.window) {
                window.blocks = window.blocks.saturating_sub(1);
            }
            !is_out
        });
    }

    /// Blocks that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Windows whose looks are not over.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// How blocks left.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl<K, W> Outlived<K, W> {
    fn of(window: u32) -> Self {
        Self { window, blocks: Vec::new() }
    }
}

impl<K: Copy, W: Words> Waits<K, W> {
    /// Whether it may still live; `looks` are over with this one.
    fn look(&mut self, seen: Seen<W>, looks: usize, counts: &mut Counts) -> bool {
        let now = match seen {
            Seen::Free => {
                counts.free += 1;
                return false;
            }
            Seen::Unsure => return true,
            Seen::There(now) => now,
        };
        let stage = if self.is_made { Stage::Made } else { Stage::Early };
        if self.words.as_ref().is_some_and(|words| !words.is_same(&now, stage)) {
            counts.changed += 1;
            return false;
        }
        // What it looked like while it was made says nothing later.
        if !self.is_made && (looks >= MADE || self.words.is_none()) {
            self.words = Some(now);
            self.is_made = looks >= MADE;
        }
        true
    }

    fn outlive(
        &mut self,
        place: Place,
        window: &Window,
        counts: &mut Counts,
    ) -> Option<(Place, Survivor<K, W>)> {
        let Some(words) = self.words.take() else {
            counts.unseen += 1;
            return None;
        };
        counts.outlived += 1;
        let Candidate { stack, class, bytes, weight } = self.candidate;
        let weight = weight * 2_f64.powi(i32::try_from(window.thinning).unwrap_or(0));
        let (origin, born) = (Origin::Window(self.window), window.ended);
        Some((place, Survivor { stack, class, bytes, origin, weight, born, words }))
    }
}

/// Whether a window follows what is at a place; with a larger `thinning` never more than with a smaller one.
fn is_drawn(place: Place, window: u32, salt: u64, thinning: u32) -> bool {
    let mut mixed = (place.address >> STRETCH_BITS) ^ u64::from(place.process) << 50;
    // The finaliser of splitmix64, twice: windows must draw independently of each other.
    for number in [salt ^ u64::from(window), salt.rotate_left(32)] {
        mixed = (mixed ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed.leading_zeros() >= thinning
}

#[cfg(test)]
mod tests;
