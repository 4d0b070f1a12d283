//! Estimates against a trace whose truth is known: many random designs on one trace, as facts of sampling are measured.
#![expect(clippy::cast_sign_loss, reason = "the numbers of a simulation are not negative")]

use std::time::Duration;

use super::super::{
    chance::{exponential, poisson},
    progress::Span,
};
use super::{Estimate, Flows, Taken, View};

/// Seconds of the target's own time in a bin.
const BIN: f64 = 0.25e-3;
/// Seconds that a trap costs.
const TRAP: f64 = 1e-6;

/// What a target does when nobody looks.
struct Trace {
    /// Blocks that each stack allocates in each bin.
    stacks: Vec<Vec<f64>>,
    /// Bytes of a block of each stack.
    bytes: Vec<f64>,
    /// Share of each bin in which it runs.
    runs: Vec<f64>,
}

/// Name, bytes of a block, and blocks in a second at a time.
type Pattern = (&'static str, f64, Box<dyn Fn(f64) -> f64>);

fn every(period: f64, active: f64, rate: f64) -> Box<dyn Fn(f64) -> f64> {
    Box::new(move |now| if now % period < active { rate } else { 0.0 })
}

/// Phases of two seconds: a quiet one, then one that does little but allocate.
fn phase(quiet: f64, busy: f64) -> Box<dyn Fn(f64) -> f64> {
    Box::new(move |now| if now % 4.0 < 2.0 { quiet } else { busy })
}

fn patterns() -> Vec<Pattern> {
    let mut random = fastrand::Rng::with_seed(99);
    let mut bursts = vec![exponential(20.0, &mut random)];
    for _ in 0..10 {
        bursts.push(bursts[bursts.len() - 1] + exponential(20.0, &mut random));
    }
    let burst =
        move |now| if bursts.iter().any(|begin| (0.0..0.05).contains(&(now - begin))) { 4e5 } else { 0.0 };
    vec![
        ("steady churn", 64.0, phase(2e5, 2e5)),
        ("steady, rare", 512.0, phase(400.0, 400.0)),
        ("quiet phases only", 64.0, phase(1e5, 0.0)),
        ("busy phases only", 64.0, phase(0.0, 8e6)),
        ("5 ms every 100 ms", 128.0, every(0.1, 0.005, 2e5)),
        ("50 ms every 1 s", 128.0, every(1.0, 0.05, 2e5)),
        ("bursts", 64.0, Box::new(burst)),
    ]
}

fn trace(seconds: f64) -> Trace {
    let mut random = fastrand::Rng::with_seed(5);
    let bins = (seconds / BIN) as usize;
    let patterns = patterns();
    let stacks = patterns.iter().map(|(_, _, rate)| {
        (0..bins).map(|bin| poisson(rate(bin as f64 * BIN) * BIN, &mut random)).collect()
    });
    // Requests: now it works, now it waits.
    let runs = (0..bins).map(|bin| if (bin as f64 * BIN) % 0.03 < 0.02 { 1.0 } else { 0.2 });
    let bytes = patterns.iter().map(|(_, bytes, _)| *bytes).collect();
    Trace { stacks: stacks.collect(), bytes, runs: runs.collect() }
}

/// One window from a bin on, `length` seconds long or until `limit` traps.
fn window(
    trace: &Trace,
    first: usize,
    length: f64,
    limit: f64,
    represents: f64,
) -> (Span, f64, Vec<(usize, Taken)>) {
    let (mut armed, mut cpu, mut progress, mut traps) = (0.0, 0.0, 0.0, 0.0);
    let mut taken = vec![0.0; trace.stacks.len()];
    let mut bin = first;
    while armed < length && traps < limit && bin < trace.runs.len() {
        let events: f64 = trace.stacks.iter().map(|stack| stack[bin]).sum();
        // The last bin in part only, as long as the window has time for.
        let whole = BIN + events * TRAP;
        let part = ((length - armed) / whole).min((limit - traps) / events.max(1e-9)).min(1.0);
        trace.stacks.iter().zip(&mut taken).for_each(|(stack, taken)| *taken += part * stack[bin]);
        armed += part * whole;
        progress += part * BIN * trace.runs[bin];
        cpu += part * (BIN * trace.runs[bin] + events * TRAP);
        traps += part * events;
        bin += 1;
    }
    let [represents, armed, cpu, spent] = [represents, armed, cpu, progress].map(Duration::from_secs_f64);
    let rows = taken.iter().enumerate().filter(|(_, count)| **count > 0.0).map(|(stack, &count)| {
        (stack, Taken { bytes: count * trace.bytes[stack], count, ..Taken::default() })
    });
    (Span { represents, armed, cpu, progress: spent, least: 0.0 }, progress, rows.collect())
}

/// How windows are weighed.
#[derive(Clone, Copy, PartialEq)]
enum Weighing {
    /// As `progress.rs` does.
    Natural,
    /// Progress alone.
    None,
}

fn record(
    trace: &Trace,
    period: f64,
    length: f64,
    limit: f64,
    weighing: Weighing,
    seed: u64,
) -> Flows<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut flows = Flows::default();
    let seconds = trace.runs.len() as f64 * BIN;
    for begin in (0..(seconds / period) as usize).map(|cell| cell as f64 * period) {
        let first = ((begin + random.f64() * (period - length)) / BIN) as usize;
        let (span, progress, rows) = window(trace, first, length, limit, period);
        let weight = if weighing == Weighing::Natural { span.weight().unwrap() } else { 1.0 };
        flows.window(View { weight, progress, tail: false }, rows);
    }
    flows.pass(trace.runs.iter().sum::<f64>() * BIN);
    flows
}

#[test]
fn intervals_hold_the_truth_and_estimates_have_no_bias() {
    let trace = trace(60.0);
    let patterns = patterns();
    for (period, length, limit) in [
        (3.0, 0.02, f64::INFINITY),
        (1.0, 0.02, f64::INFINITY),
        (1.0, 0.02, 5e3),
        (0.5, 0.005, f64::INFINITY),
    ] {
        let designs = 300;
        let (mut known, mut held) = (0.0, 0.0);
        println!("window of {length} s every {period} s, at most {limit} traps");
        let all = |weighing| -> Vec<_> {
            (0..designs).map(|seed| record(&trace, period, length, limit, weighing, seed)).collect()
        };
        let (weighed, unweighed) = (all(Weighing::Natural), all(Weighing::None));
        for (stack, (name, bytes, _)) in patterns.iter().enumerate() {
            let truth = trace.stacks[stack].iter().sum::<f64>() * bytes;
            let (mut sum, mut squares, mut shown, mut covered, mut width, mut naive) =
                (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
            for (flows, unweighed) in weighed.iter().zip(&unweighed) {
                // A stack that no window saw is estimated at nothing, which is an error too.
                let flow = flows.stack(stack).map(|flow| flow.bytes);
                let error = flow.map_or(0.0, Estimate::value) / truth - 1.0;
                sum += error;
                squares += error * error;
                if let Some(Estimate::Known { interval, .. }) = flow {
                    shown += 1.0;
                    covered += f64::from(u8::from(interval.holds(truth)));
                    width += interval.half_width() / truth;
                }
                naive += unweighed.stack(stack).map_or(-1.0, |flow| flow.bytes.value() / truth - 1.0);
            }
            let count = designs as f64;
            let (bias, error) = (sum / count, (squares / count).sqrt());
            println!(
                "  {name:<20} bias {:+6.1} % (unweighted {:+6.1} %), error {:5.1} %, half width {:5.1} %, shown {:3.0} %, coverage {:5.1} %",
                bias * 100.0,
                naive / count * 100.0,
                error * 100.0,
                width / shown * 100.0,
                shown / count * 100.0,
                covered / shown * 100.0,
            );
            if *name != "bursts" {
                assert!(bias.abs() < 0.03 + 3.0 * error / count.sqrt(), "{name}: {bias}");
                known += shown;
                held += covered;
            }
        }
        println!("  coverage of all but bursts {:.1} %", held / known * 100.0);
        assert!(held / known >= 0.9, "{held} of {known}");
    }
}

#[test]
fn totals_are_right_on_loops_that_do_nothing_else() {
    // A loop that only allocates, 15 million blocks a second: twentyfold slower in windows.
    let bins = (60.0 / BIN) as usize;
    let trace = Trace { stacks: vec![vec![15e6 * BIN; bins]], bytes: vec![64.0], runs: vec![1.0; bins] };
    let flows = record(&trace, 3.0, 0.02, f64::INFINITY, Weighing::Natural, 1);
    let total = flows.total();
    assert!((total.count.value() / (15e6 * 60.0) - 1.0).abs() < 0.01, "{total:?}");
    assert!(total.count.interval().unwrap().half_width() < 0.01 * total.count.value());
    assert!(flows.seen_fraction() < 0.001);
}

fn taken(bytes: f64) -> Taken {
    Taken { bytes, count: 1.0, retained_bytes: bytes / 2.0, retained_count: 0.5 }
}

#[test]
fn what_was_seen_in_full_is_exact() {
    let mut flows = Flows::default();
    flows.full(3.0, [('a', taken(10.0)), ('b', taken(5.0))]);
    flows.full(1.0, [('a', taken(2.0))]);
    let all = flows.stack('a').unwrap().bytes;
    assert_eq!((all.value(), all.interval().map(super::Interval::half_width)), (12.0, Some(0.0)));
    assert!((flows.seen_fraction() - 1.0).abs() < 1e-12 && (flows.scale() - 1.0).abs() < 1e-12);
    // Then windows: what was exact stays, and shifts both ends.
    flows.pass(100.0);
    for window in 0..10 {
        let view = View { weight: 10.0, progress: 1.0, tail: window < 5 };
        flows.window(view, [('a', taken(3.0))]);
    }
    let flow = flows.stack('a').unwrap();
    assert!((flow.bytes.value() - 312.0).abs() < 1e-6, "{flow:?}");
    assert!((flow.retained_bytes.value() - 156.0).abs() < 1e-6, "{flow:?}");
    assert!(flow.bytes.interval().unwrap().low > 250.0);
    assert!((flows.seen_fraction() - 14.0 / 104.0).abs() < 1e-12);
    assert!(
        matches!(flows.stack('b').unwrap().bytes, Estimate::TooFewWindows { effective, .. } if effective <= 0.0)
    );
    assert!(flows.stack('c').is_none());
}

#[test]
fn few_windows_and_bursts_claim_nothing() {
    let mut flows = Flows::default();
    flows.pass(1000.0);
    for window in 0..20 {
        let rows = [('s', taken(8.0)), ('b', taken(100.0))];
        flows.window(
            View { weight: 50.0, progress: 1.0, tail: true },
            rows.into_iter().take(if window == 7 { 2 } else { 1 }),
        );
    }
    let (steady, burst) = (flows.stack('s').unwrap(), flows.stack('b').unwrap());
    assert!(matches!(burst.bytes, Estimate::TooFewWindows { .. }) && burst.burst);
    assert!(steady.bytes.interval().is_some() && !steady.burst);
    flows.lost_window();
    assert_eq!(flows.lost_windows(), 1);
}

#[test]
fn values_from_a_broken_kernel_half_do_not_panic() {
    let mut flows = Flows::default();
    for value in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
        flows.window(View { weight: value, progress: value, tail: true }, [(1, taken(value))]);
        flows.pass(value);
        let _ = (flows.stack(1), flows.total(), flows.scale(), flows.seen_fraction());
    }
}

#[test]
fn what_was_seen_in_full_outlives_a_new_beginning() {
    let taken = |bytes| Taken { bytes, count: 1.0, ..Taken::default() };
    let mut flows: Flows<u8> = Flows::default();
    flows.full(1.0, [(1, taken(100.0))]);
    flows.pass(9.0);
    flows.window(View { weight: 1.0, progress: 1.0, tail: false }, [(1, taken(7.0)), (2, taken(9.0))]);
    let aside = flows.begin_anew();
    assert_eq!(flows.windows(), 0.0);
    assert!(flows.stack(2).is_none());
    (0..4).for_each(|_| flows.window(View { weight: 1.0, progress: 1.0, tail: false }, [(1, taken(10.0))]));
    let mut together = flows.clone();
    together.take_back(&aside);
    assert_eq!(
        (together.windows(), together.stack(1).unwrap().bytes.value()),
        (5.0, 100.0 + 9.0 / 5.0 * 47.0)
    );
    // Nine seconds at what four of them saw, and none of what was forgotten.
    assert_eq!(flows.stack(1).unwrap().bytes.value(), 190.0);
}
