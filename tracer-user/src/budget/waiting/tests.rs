//! What waits, against a plain model of it, and its rules one by one.

mod leak;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Candidate, Counts, LOOKS, Outlived, Seen, Stage, Waiting, Words};
use crate::budget::survivors::{Origin, Place};
use std::time::Duration;

/// What a block looks like; 0 while it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look(u32);

impl Words for Look {
    fn is_same(&self, now: &Self, stage: Stage) -> bool {
        self == now || stage == Stage::Early && self.0 == 0
    }
}

fn place(address: u64) -> Place {
    Place { process: 1, address }
}

fn candidate(stack: u32) -> Candidate<u32> {
    Candidate { stack, class: 4, bytes: 64, weight: 2.0 }
}

fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn waiting() -> Waiting<u32, Look> {
    let mut waiting = Waiting::new(1000, 7);
    waiting.window(1, milliseconds(0), [(place(16), candidate(5)), (place(32), candidate(6))], 0);
    waiting
}

/// All looks, each at its time; what they find by number of the look and place.
fn follow(
    waiting: &mut Waiting<u32, Look>,
    find: impl Fn(usize, Place) -> Seen<Look>,
) -> Vec<Outlived<u32, Look>> {
    let mut over = Vec::new();
    for (number, look) in LOOKS.into_iter().enumerate() {
        let now = waiting.next_look().unwrap();
        assert_eq!(now, look);
        over.extend(waiting.looked(now, |place| find(number, place)));
    }
    assert_eq!(waiting.next_look(), None);
    over
}

#[test]
fn what_is_never_free_outlives_its_window() {
    let mut waiting = waiting();
    let over = follow(&mut waiting, |look, place| {
        if place.address == 32 && look == 5 { Seen::Free } else { Seen::There(Look(1)) }
    });
    let [Outlived { window: 1, blocks }] = over.as_slice() else { panic!("{over:?}") };
    let [(found, survivor)] = blocks.as_slice() else { panic!("{blocks:?}") };
    assert_eq!((*found, survivor.stack, survivor.origin), (place(16), 5, Origin::Window(1)));
    assert!((survivor.weight - 2.0).abs() < 1e-12);
    assert_eq!(waiting.counts(), Counts { told: 2, free: 1, outlived: 1, ..Counts::default() });
    assert!(waiting.is_empty() && waiting.windows() == 0);
}

#[test]
fn a_window_without_survivors_is_over_too() {
    let over = follow(&mut waiting(), |_, _| Seen::Free);
    assert_eq!(over, [Outlived { window: 1, blocks: Vec::new() }]);
}

#[test]
fn what_is_made_may_change_until_60_milliseconds_and_not_later() {
    let making = |last: usize| move |look: usize, _| Seen::There(Look(u32::from(look > last)));
    assert_eq!(follow(&mut waiting(), making(2))[0].blocks.len(), 2);
    assert_eq!(follow(&mut waiting(), making(3))[0].blocks.len(), 0);
    let other = |look: usize, _| Seen::There(Look(1 + u32::from(look > 1)));
    assert_eq!(follow(&mut waiting(), other)[0].blocks.len(), 0);
}

#[test]
fn what_could_not_be_looked_at_is_no_survivor() {
    let mut waiting = waiting();
    let over = follow(&mut waiting, |look, place| {
        if place.address == 16 && look == 6 { Seen::There(Look(3)) } else { Seen::Unsure }
    });
    assert_eq!((over[0].blocks.len(), waiting.counts().unseen), (1, 1));
}

#[test]
fn looks_that_come_late_are_one() {
    let mut waiting = waiting();
    assert!(waiting.looked(milliseconds(200), |_| Seen::There(Look(1))).is_empty());
    assert_eq!(waiting.next_look(), Some(milliseconds(250)));
    assert_eq!(waiting.due(milliseconds(249)).count(), 0);
    assert_eq!(waiting.due(milliseconds(250)).count(), 2);
    assert_eq!(waiting.looked(milliseconds(5000), |_| Seen::There(Look(1)))[0].blocks.len(), 2);
}

#[test]
fn an_address_that_is_handed_out_again_is_another_block() {
    let mut waiting = waiting();
    waiting.window(2, milliseconds(300), [(place(16), candidate(9))], 0);
    let over = waiting.looked(milliseconds(5000), |_| Seen::There(Look(1)));
    let found: Vec<(u32, u32)> = over
        .iter()
        .flat_map(|over| over.blocks.iter().map(|(_, block)| (over.window, block.stack)))
        .collect();
    assert_eq!((found, waiting.counts().reused), (vec![(1, 6), (2, 9)], 1));
}

#[test]
fn who_ended_is_left_out() {
    let mut waiting = waiting();
    waiting.window(2, milliseconds(0), [(Place { process: 2, address: 16 }, candidate(7))], 0);
    waiting.forget(5);
    assert_eq!(waiting.len(), 2);
    waiting.process_ended(1);
    let over = waiting.looked(milliseconds(5000), |_| Seen::There(Look(1)));
    assert_eq!(over.iter().map(|over| over.blocks.len()).sum::<usize>(), 1);
}

/// Thinned by stretches, the others stand for all: the sum of weights is right on average.
#[test]
fn thinning_is_unbiased() {
    let (mut sum, mut least, runs, blocks) = (0.0, f64::INFINITY, 300_u32, 4000_u64);
    for salt in 0..runs {
        let mut waiting: Waiting<u32, Look> = Waiting::new(500, salt.into());
        // Four blocks in each pool, in two windows; the second is thinned from the beginning.
        let block = |index: u64| (place(((index / 4) << 14) | ((index % 4) * 64)), candidate(1));
        waiting.window(salt * 2, milliseconds(0), (0..blocks / 2).map(block), 0);
        waiting.window(salt * 2 + 1, milliseconds(1), (blocks / 2..blocks).map(block), 1);
        assert!(waiting.len() <= 500);
        let over = waiting.looked(milliseconds(5000), |_| Seen::There(Look(1)));
        let weights: f64 =
            over.iter().flat_map(|over| &over.blocks).map(|(_, block)| block.weight / 2.0).sum();
        sum += weights;
        least = f64::min(least, weights);
    }
    let mean = sum / f64::from(runs) / blocks as f64;
    println!("mean {mean}, least {}", least / blocks as f64);
    assert!((0.97..1.03).contains(&mean), "{mean}");
}

#[derive(Debug, Clone)]
enum Step {
    Window(BTreeSet<u64>),
    Look(u64, BTreeSet<u64>),
    Forget(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let addresses = || prop::collection::btree_set(0_u64..12, 0..8);
    let step = prop_oneof![
        2 => addresses().prop_map(Step::Window),
        5 => (1_u64..400, addresses()).prop_map(|(after, free)| Step::Look(after, free)),
        1 => (0_u32..4).prop_map(Step::Forget),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Without thinning: a block outlives if no look that was due for it found it free and nobody took its address.
    #[test]
    fn it_does_as_a_plain_model(steps in steps()) {
        let mut waiting: Waiting<u32, Look> = Waiting::new(1000, 3);
        let mut model: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        let mut looked: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut now, mut window) = (0, 0);
        for step in steps {
            match step {
                Step::Window(addresses) => {
                    window += 1;
                    looked.insert(window, 0);
                    model.extend(addresses.iter().map(|address| (*address, (window, now))));
                    let blocks = addresses.into_iter().map(|address| (place(address), candidate((address % 4) as u32)));
                    waiting.window(window, milliseconds(now), blocks, 0);
                }
                Step::Look(after, free) => {
                    now += after;
                    let count = |ended: u64| LOOKS.iter().filter(|look| **look <= milliseconds(now - ended)).count() as u64;
                    let mut expected = BTreeSet::new();
                    model.retain(|address, (window, ended)| {
                        let due = count(*ended);
                        if due == looked[window] {
                            return true;
                        }
                        if !free.contains(address) && due == LOOKS.len() as u64 {
                            expected.insert(*address);
                        }
                        !free.contains(address) && due < LOOKS.len() as u64
                    });
                    let over = waiting.looked(milliseconds(now), |place| {
                        if free.contains(&place.address) { Seen::Free } else { Seen::There(Look(1)) }
                    });
                    for (window, ended) in model.values() {
                        looked.insert(*window, count(*ended));
                    }
                    let found: BTreeSet<u64> =
                        over.iter().flat_map(|over| &over.blocks).map(|(place, _)| place.address).collect();
                    prop_assert_eq!(found, expected);
                }
                Step::Forget(stack) => {
                    model.retain(|address, _| (address % 4) as u32 != stack);
                    waiting.forget(stack);
                }
            }
            prop_assert_eq!(waiting.len(), model.len());
        }
    }
}
