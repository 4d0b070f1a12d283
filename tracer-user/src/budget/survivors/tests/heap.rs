//! A plain heap for tests: blocks that live and die, addresses handed out again last in first out, and windows that look at some of it.
//!
//! Many designs (random places of windows) look at one trace at once. It follows the simulation of window sampling on which
//! budget mode stands, at a fifth of its load.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::super::super::{
    chance::exponential,
    flows::{Flows, Taken, View},
};
use super::super::{Check, Origin, Place, Survivor, Survivors};

/// Seconds.
pub const WINDOW: f64 = 0.005;
pub const PERIOD: f64 = 0.5;
pub const TAIL: f64 = 0.05;
const CHECK: f64 = 1.0;

/// One stack of a workload.
pub struct Source {
    pub name: &'static str,
    pub class: u16,
    pub bytes: u64,
    /// Blocks in a second, at a time.
    pub rate: Box<dyn Fn(f64) -> f64>,
    /// The highest it gets.
    pub peak: f64,
    /// How long a block lives, from a number in 0..1.
    pub life: Box<dyn Fn(f64) -> f64>,
}

/// What lies at an address.
#[derive(Clone, Copy, Default)]
struct Block {
    alive: bool,
    print: u64,
}

/// A random choice of windows, and what it saw.
pub struct Design {
    random: fastrand::Rng,
    pub survivors: Survivors<usize, u64>,
    pub flows: Flows<usize>,
    number: u32,
    begin: f64,
    /// Blocks that the window saw, by address, while it or its tail is open.
    seen: HashMap<u64, (usize, Duration)>,
    taken: HashMap<usize, Taken>,
}

/// The heap, and those who look.
pub struct Heap {
    pub sources: Vec<Source>,
    pub designs: Vec<Design>,
    /// Share of reuses that words notice.
    noticed: f64,
    random: fastrand::Rng,
    blocks: Vec<Block>,
    free: HashMap<u16, Vec<u64>>,
    /// Bytes that live, and bytes allocated, by source.
    pub live: Vec<f64>,
    pub allocated: Vec<f64>,
    prints: u64,
}

enum Event {
    Allocate(usize),
    Free(usize, u64),
    /// A design's window opens, closes, and its tail ends.
    Open(usize),
    Close(usize),
    End(usize),
    Check,
}

fn key(now: f64) -> u64 {
    (now * 1e9) as u64
}

impl Heap {
    pub fn new(sources: Vec<Source>, designs: u64, bound: usize, noticed: f64) -> Self {
        let count = sources.len();
        let designs = (0..designs).map(|seed| Design {
            random: fastrand::Rng::with_seed(1000 + seed),
            survivors: Survivors::new(bound, seed),
            flows: Flows::default(),
            number: 0,
            begin: 0.0,
            seen: HashMap::new(),
            taken: HashMap::new(),
        });
        Self {
            designs: designs.collect(),
            noticed,
            random: fastrand::Rng::with_seed(11),
            blocks: Vec::new(),
            free: HashMap::new(),
            live: vec![0.0; count],
            allocated: vec![0.0; count],
            prints: 0,
            sources,
        }
    }

    /// Runs for `seconds`, then all blocks are checked once more.
    pub fn run(&mut self, seconds: f64) {
        let mut events: Vec<Event> = Vec::new();
        let mut queue = BinaryHeap::new();
        let push = |queue: &mut BinaryHeap<_>, events: &mut Vec<Event>, now: f64, event| {
            queue.push(Reverse((key(now), events.len())));
            events.push(event);
        };
        (0..self.sources.len())
            .for_each(|source| push(&mut queue, &mut events, 0.0, Event::Allocate(source)));
        for design in 0..self.designs.len() {
            let place = self.designs[design].random.f64() * (PERIOD - WINDOW - TAIL);
            push(&mut queue, &mut events, place, Event::Open(design));
        }
        push(&mut queue, &mut events, CHECK, Event::Check);
        while let Some(Reverse((now, index))) = queue.pop() {
            let now = now as f64 / 1e9;
            if now >= seconds {
                break;
            }
            match events[index] {
                Event::Allocate(source) => {
                    let next = now + exponential(1.0 / self.sources[source].peak, &mut self.random);
                    push(&mut queue, &mut events, next, Event::Allocate(source));
                    let (rate, peak) = ((self.sources[source].rate)(now), self.sources[source].peak);
                    if self.random.f64() * peak < rate {
                        let address = self.allocate(source, now);
                        let life = (self.sources[source].life)(self.random.f64());
                        push(&mut queue, &mut events, now + life, Event::Free(source, address));
                    }
                }
                Event::Free(source, address) => self.release(source, address, now),
                Event::Open(design) => {
                    let design_number = design;
                    let design = &mut self.designs[design];
                    design.number += 1;
                    design.begin = now;
                    push(&mut queue, &mut events, now + WINDOW, Event::Close(design_number));
                }
                Event::Close(design) => push(&mut queue, &mut events, now + TAIL, Event::End(design)),
                Event::End(design) => {
                    let next = self.end(design, now);
                    push(&mut queue, &mut events, next, Event::Open(design));
                }
                Event::Check => {
                    self.check(now);
                    push(&mut queue, &mut events, now + CHECK, Event::Check);
                }
            }
        }
        self.check(seconds);
        for design in &mut self.designs {
            design.flows.pass(seconds);
        }
    }

    fn allocate(&mut self, source: usize, now: f64) -> u64 {
        let Source { class, bytes, .. } = self.sources[source];
        let address = self.free.entry(class).or_default().pop().unwrap_or_else(|| {
            self.blocks.push(Block::default());
            self.blocks.len() as u64 - 1
        });
        let old = self.blocks[address as usize].print;
        self.prints += 1;
        let print = if self.random.f64() < self.noticed || old == 0 { self.prints } else { old };
        self.blocks[address as usize] = Block { alive: true, print };
        self.live[source] += bytes as f64;
        self.allocated[source] += bytes as f64;
        let (place, at) = (Place { process: 0, address }, Duration::from_secs_f64(now));
        for design in self.designs.iter_mut().filter(|design| design.in_window(now)) {
            design.survivors.handed_out(place, at);
            design.seen.insert(address, (source, at));
            let taken = design.taken.entry(source).or_default();
            taken.bytes += bytes as f64;
            taken.count += 1.0;
        }
        address
    }

    fn release(&mut self, source: usize, address: u64, now: f64) {
        self.blocks[address as usize].alive = false;
        self.live[source] -= self.sources[source].bytes as f64;
        self.free.entry(self.sources[source].class).or_default().push(address);
        let (place, at) = (Place { process: 0, address }, Duration::from_secs_f64(now));
        for design in self.designs.iter_mut().filter(|design| design.in_tail(now)) {
            design.survivors.freed(place, at);
            design.seen.remove(&address);
        }
    }

    /// A tail ends: what is left has survived. The time of the next window.
    fn end(&mut self, design: usize, now: f64) -> f64 {
        let design = &mut self.designs[design];
        let at = Duration::from_secs_f64(now);
        let mut seen: Vec<_> = design.seen.drain().collect();
        seen.sort_unstable();
        for (address, (source, born)) in seen {
            let Source { class, bytes, .. } = self.sources[source];
            let taken = design.taken.entry(source).or_default();
            taken.retained_bytes += bytes as f64;
            taken.retained_count += 1.0;
            let weight = PERIOD / WINDOW;
            let (origin, words) = (Origin::Window(design.number), self.blocks[address as usize].print);
            let survivor = Survivor { stack: source, class, bytes, origin, weight, born, words };
            design.survivors.keep(Place { process: 0, address }, survivor, at);
        }
        let view = View { weight: PERIOD / WINDOW, progress: WINDOW, tail: true };
        design.flows.window(view, design.taken.drain());
        f64::from(design.number) * PERIOD + design.random.f64() * (PERIOD - WINDOW - TAIL)
    }

    fn check(&mut self, now: f64) {
        let blocks = &self.blocks;
        for design in &mut self.designs {
            design.survivors.check(Duration::from_secs_f64(now), |place, survivor| {
                let block = blocks[place.address as usize];
                if block.alive && block.print == survivor.words { Check::Same } else { Check::Gone }
            });
        }
    }
}

impl Design {
    fn in_window(&self, now: f64) -> bool {
        self.number > 0 && now - self.begin < WINDOW
    }

    fn in_tail(&self, now: f64) -> bool {
        self.number > 0 && now - self.begin < WINDOW + TAIL
    }
}
