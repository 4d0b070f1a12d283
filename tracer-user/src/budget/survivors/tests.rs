//! The sample of live blocks on workloads like those that its design was simulated on, and its rules one by one.
#![expect(clippy::cast_sign_loss, reason = "the numbers of a simulation are not negative")]

mod heap;

use std::collections::HashMap;
use std::time::Duration;

use super::super::{classes::judge, interval::Estimate};
use super::{Check, Departures, MOST_SURVIVORS, Origin, Place, Survivor, Survivors};
use heap::{Heap, Source};

const SECONDS: f64 = 60.0;
const DESIGNS: u64 = 24;

fn source(
    (name, class, bytes, peak): (&'static str, u16, u64, f64),
    rate: impl Fn(f64) -> f64 + 'static,
    life: impl Fn(f64) -> f64 + 'static,
) -> Source {
    Source { name, class, bytes, rate: Box::new(rate), peak, life: Box::new(life) }
}

fn steady(name: (&'static str, u16, u64, f64), life: impl Fn(f64) -> f64 + 'static) -> Source {
    let peak = name.3;
    source(name, move |_| peak, life)
}

const FOREVER: f64 = 1e9;

/// Churn and a leak of 1 % and 0.2 % of it, in one class.
fn w1() -> Vec<Source> {
    vec![
        steady(("churn", 3, 64, 7000.0), |u| -1e-3 * (1.0 - u).ln()),
        steady(("leak", 3, 64, 70.0), |_| FOREVER),
        steady(("small leak", 3, 64, 14.0), |_| FOREVER),
    ]
}

/// Requests, caches and a slow leak.
fn w2() -> Vec<Source> {
    vec![
        steady(("requests", 3, 64, 6000.0), |u| 0.005 + 0.195 * u),
        steady(("cache", 4, 128, 300.0), |u| 10.0 + 20.0 * u),
        steady(("leak", 3, 64, 40.0), |_| FOREVER),
    ]
}

/// A start-up heap, then objects of seconds in the class of the leak.
fn w3b() -> Vec<Source> {
    vec![
        source(("start", 5, 96, 10_000.0), |now| if now < 5.0 { 10_000.0 } else { 0.0 }, |_| FOREVER),
        source(("medium", 6, 128, 1000.0), |now| if now < 5.0 { 0.0 } else { 1000.0 }, |u| 1.0 + 29.0 * u),
        source(("leak", 6, 128, 50.0), |now| if now < 5.0 { 0.0 } else { 50.0 }, |_| FOREVER),
        steady(("churn", 6, 128, 3000.0), |u| -1e-3 * (1.0 - u).ln()),
    ]
}

/// Periodic work of two periods, and a stack without one.
fn w6() -> Vec<Source> {
    let every =
        |period: f64, active: f64, rate: f64| move |now: f64| if now % period < active { rate } else { 0.0 };
    vec![
        source(("5 ms every 100 ms", 3, 64, 20_000.0), every(0.1, 0.005, 20_000.0), |u| 5.0 + 10.0 * u),
        source(("50 ms every 1 s", 4, 64, 20_000.0), every(1.0, 0.05, 20_000.0), |u| 5.0 + 10.0 * u),
        steady(("Poisson", 5, 64, 1000.0), |u| 5.0 + 10.0 * u),
    ]
}

/// What many designs make of one workload.
struct Judged {
    /// Mean error and root mean square of the total, as shares.
    bias: f64,
    error: f64,
    shown: f64,
    covered: f64,
    /// Mean estimate over truth, by source.
    by_source: HashMap<&'static str, f64>,
    heap: Heap,
}

fn judged(name: &str, sources: Vec<Source>, noticed: f64) -> Judged {
    let mut heap = Heap::new(sources, DESIGNS, MOST_SURVIVORS, noticed);
    heap.run(SECONDS);
    let total: f64 = heap.live.iter().sum();
    let (mut bias, mut squares, mut shown, mut covered) = (0.0, 0.0, 0.0, 0.0);
    let mut by_source: HashMap<&'static str, f64> = HashMap::new();
    for design in &heap.designs {
        let rows = design.survivors.live(0, design.flows.scale(), Duration::from_secs_f64(SECONDS));
        let error = rows.iter().map(|row| row.bytes.value()).sum::<f64>() / total - 1.0;
        bias += error / DESIGNS as f64;
        squares += error * error / DESIGNS as f64;
        for row in rows {
            let truth = heap.live[row.stack];
            *by_source.entry(heap.sources[row.stack].name).or_default() +=
                row.bytes.value() / truth.max(1.0) / DESIGNS as f64;
            if let (Estimate::Known { interval, .. }, true) = (row.bytes, truth >= 0.05 * total) {
                shown += 1.0;
                covered += f64::from(u8::from(interval.holds(truth)));
            }
        }
    }
    let error = f64::sqrt(squares);
    println!(
        "{name}, {:.0} % of reuses noticed: bias {:+.1} %, error {:.1} %, coverage {:.1} % of {shown}; by stack {by_source:.2?}",
        noticed * 100.0,
        bias * 100.0,
        error * 100.0,
        covered / shown * 100.0,
    );
    Judged { bias, error, shown, covered, by_source, heap }
}

#[test]
fn live_bytes_are_right_and_intervals_hold() {
    let (mut shown, mut covered) = (0.0, 0.0);
    for (name, sources) in [("W1", w1()), ("W2", w2()), ("W3b", w3b()), ("W6", w6())] {
        let judged = judged(name, sources, 0.9);
        // 24 designs of a few hundred blocks; what identity misses adds up to 6 % in the simulation that this follows.
        let sure = if name == "W6" { 0.3 } else { 0.08 };
        assert!(judged.bias.abs() < sure + 2.0 * judged.error / (DESIGNS as f64).sqrt(), "{name}");
        shown += judged.shown;
        covered += judged.covered;
    }
    println!("coverage of all {:.1} %", covered / shown * 100.0);
    assert!(covered / shown >= 0.9, "{covered} of {shown}");
}

#[test]
fn retained_flow_needs_no_identity_and_the_leak_ranks_first() {
    let judged = judged("W1", w1(), 0.0);
    let heap = &judged.heap;
    let (mut mean, mut first) = (0.0, 0);
    for design in &heap.designs {
        let leak = design.flows.stack(1).unwrap();
        mean += leak.retained_bytes.value() / heap.allocated[1] / DESIGNS as f64;
        assert!(design.flows.stack(0).unwrap().retained_bytes.value() < 0.01 * heap.allocated[0]);
        let ranked = design.survivors.leaks().rank(Duration::from_secs_f64(SECONDS));
        first += u32::from(ranked.first().is_some_and(|row| row.stack == 1));
    }
    println!("retained flow of the leak over truth {mean:.3}; leak first in {first} of {DESIGNS}");
    assert!((mean - 1.0).abs() < 0.1, "{mean}");
}

#[test]
fn the_leak_ranks_first() {
    for (name, sources, leak) in [("W1", w1(), 1), ("W2", w2(), 2), ("W3b", w3b(), 2)] {
        let mut heap = Heap::new(sources, DESIGNS, MOST_SURVIVORS, 0.9);
        heap.run(120.0);
        let ranks = heap.designs.iter().map(|design| design.survivors.leaks().rank(Duration::from_secs(120)));
        let first = ranks.filter(|ranked| ranked.first().is_some_and(|row| row.stack == leak)).count();
        println!("{name}: leak first after 120 s in {first} of {DESIGNS}");
        assert!(first >= 22, "{name}: {first}");
    }
}

#[test]
fn the_census_raises_the_alarm_where_words_notice_nothing() {
    for (noticed, alarm) in [(0.9, false), (0.0, true)] {
        let judged = judged("W2", w2(), noticed);
        let heap = &judged.heap;
        let census = ((heap.live[0] + heap.live[2]) / 64.0) as u64;
        let alarms = heap.designs.iter().filter(|design| {
            let classes = design.survivors.classes(0, design.flows.scale());
            let (_, survivors) = classes.into_iter().find(|(class, _)| *class == 3).unwrap();
            judge(survivors, Some(census)).is_alarm()
        });
        let alarms = alarms.count();
        println!(
            "{noticed} noticed: {alarms} alarms of {DESIGNS}; requests over truth {:.1}",
            judged.by_source["requests"]
        );
        assert!(if alarm { alarms >= 22 } else { alarms <= 2 }, "{alarms}");
    }
}

fn place(address: u64) -> Place {
    Place { process: (address % 2) as u32, address }
}

fn survivor(stack: u32, window: u32) -> Survivor<u32, u64> {
    let origin = Origin::Window(window);
    Survivor { stack, class: 1, bytes: 32, origin, weight: 100.0, born: Duration::ZERO, words: 7 }
}

#[test]
fn blocks_leave_by_frees_reuse_checks_and_with_their_process() {
    let (mut survivors, now) = (Survivors::new(100, 1), Duration::from_secs(1));
    (0..10).for_each(|address| survivors.keep(place(address), survivor(address as u32, 1), now));
    survivors.freed(place(0), now);
    survivors.handed_out(place(1), now);
    survivors.freed(place(99), now);
    survivors.check(now, |place, _| if place.address < 4 { Check::Gone } else { Check::Same });
    assert_eq!(survivors.departures(), Departures { freed: 1, reused: 1, checked: 2, thinned: 0 });
    // Handed out to another stack inside one window: the old block is gone, the new one is there.
    survivors.keep(place(4), survivor(40, 2), now);
    assert_eq!((survivors.len(), survivors.departures().reused), (6, 2));
    survivors.process_ended(1);
    assert_eq!(survivors.live(1, 1.0, now), []);
    let stacks: Vec<u32> = survivors.live(0, 1.0, now).iter().map(|row| row.stack).collect();
    assert_eq!(stacks, [6, 8, 40]);
    survivors.process_ended(0);
    assert!(survivors.is_empty());
}

#[test]
fn thinning_bounds_the_table_and_keeps_the_mean() {
    let (mut sum, runs) = (0.0, 300);
    for seed in 0..runs {
        let mut survivors = Survivors::new(100, seed);
        for address in 0..1000 {
            let origin = Origin::Alone;
            let block = Survivor { origin, weight: 2.0, ..survivor(0, 0) };
            survivors.keep(Place { process: 0, address }, block, Duration::ZERO);
        }
        assert!(survivors.len() <= 100 && survivors.departures().thinned >= 900);
        let row = survivors.live(0, 5.0, Duration::from_secs(3))[0];
        let interval = row.count.interval().unwrap();
        assert!(interval.low < 2000.0 * 1.3 && interval.high > 2000.0 * 0.7, "{row:?}");
        assert!((row.age - 3.0).abs() < 1e-9);
        sum += row.count.value() / 2000.0 / runs as f64;
    }
    assert!((sum - 1.0).abs() < 0.03, "{sum}");
}

#[test]
fn what_was_seen_in_full_has_no_error() {
    let mut survivors = Survivors::new(100, 1);
    for address in 0..10 {
        let block = Survivor { origin: Origin::Alone, weight: 1.0, ..survivor(0, 0) };
        survivors.keep(Place { process: 0, address }, block, Duration::ZERO);
    }
    let row = survivors.live(0, 3.0, Duration::ZERO)[0];
    assert_eq!((row.bytes.value(), row.bytes.interval().unwrap().half_width()), (320.0, 0.0));
}
