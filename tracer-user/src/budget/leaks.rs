//! Which stacks' live memory grows, and how sure that is: leaks are ranked by growth, not by size.
//!
//! A block that outlives its window's tail adds to its stack's growth when it is taken, and takes off when it is found gone.
//! The time of the recording is cut into equal epochs, each with its net growth by stack. Only the later half counts: in
//! the first, caches fill and programs start. If a stack does not grow, its epochs' mean is zero but for chance, and Student's t
//! says how likely that is; a cache gives back what it takes, a start-up heap does neither. It must not know what lives where.

use std::hash::Hash;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::interval::{likelihood, surely_t};

/// Epochs that are kept; when they are used up, pairs become one.
const EPOCHS: usize = 32;
/// Seconds of the first epochs.
const FIRST_EPOCH: f64 = 1.0;
/// Fewest epochs of which anything is claimed.
const FEWEST_EPOCHS: usize = 4;
/// Fewest epochs that must have brought new blocks: what grew in one or two may have been an event, not a leak.
const FEWEST_GROWING: usize = 3;
/// Doublings of the epoch that time can ask for: 2^64 seconds are enough.
const MOST_DOUBLINGS: usize = 64;

/// How one stack's live memory grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth<K> {
    /// The stack.
    pub stack: K,
    /// Bytes in a second, of the recording's later half.
    pub bytes_per_second: f64,
    /// Growth is at least this in 99 of 100 recordings; below zero where it may be none.
    pub at_least: f64,
    /// Probability that it grows at all and this is not chance: 0.5 is no reason to think so.
    pub likelihood: f64,
}

impl<K> Growth<K> {
    /// The same where what was seen stands for `scale` times as much.
    #[must_use]
    pub fn scaled(self, scale: f64) -> Self {
        let (bytes_per_second, at_least) = (self.bytes_per_second * scale, self.at_least * scale);
        Self { bytes_per_second, at_least, ..self }
    }
}

/// Net growth of all stacks, by epoch.
#[derive(Debug, Clone)]
pub struct Leaks<K> {
    epoch: f64,
    stacks: FxHashMap<K, Epochs>,
}

/// Bytes by epoch.
#[derive(Debug, Clone, Copy, Default)]
struct Epochs {
    net: [f64; EPOCHS],
    taken: [f64; EPOCHS],
}

impl<K> Default for Leaks<K> {
    fn default() -> Self {
        Self { epoch: FIRST_EPOCH, stacks: FxHashMap::default() }
    }
}

impl<K: Copy + Eq + Hash + Ord> Leaks<K> {
    /// A block that stands for `bytes` has outlived its tail. `now` is the time since recording began.
    pub fn taken(&mut self, stack: K, now: Duration, bytes: f64) {
        let epoch = self.index(now);
        let epochs = self.stacks.entry(stack).or_default();
        epochs.net[epoch] += bytes;
        epochs.taken[epoch] += bytes;
    }

    /// A block that stands for `bytes` is gone.
    pub fn gone(&mut self, stack: K, now: Duration, bytes: f64) {
        let epoch = self.index(now);
        self.stacks.entry(stack).or_default().net[epoch] -= bytes;
    }

    /// A process ended: what it held is no longer anybody's.
    pub fn forget(&mut self, is_gone: impl Fn(K) -> bool) {
        self.stacks.retain(|stack, _| !is_gone(*stack));
    }

    /// All stacks of which something can be said, the surest and fastest growth first. Empty while the recording is too short.
    ///
    /// The order is that of the growth that is sure. Of a hundred stacks that do not grow, five have a likelihood of 0.95 by
    /// chance, and one grows surely: a caller who shows many rows says so.
    #[must_use]
    pub fn rank(&self, now: Duration) -> Vec<Growth<K>> {
        // Where nothing came for long, its time has to be made room for first.
        let mut later = self.clone();
        later.index(now);
        later.rank_ended(now)
    }

    fn rank_ended(&self, now: Duration) -> Vec<Growth<K>> {
        // Whole epochs only: the last has not ended.
        let ended = floor(now.as_secs_f64() / self.epoch).min(EPOCHS);
        let range = ended / 2..ended;
        if range.len() < FEWEST_EPOCHS {
            return Vec::new();
        }
        let grown = self.stacks.iter().filter(|(_, epochs)| {
            epochs.taken[range.clone()].iter().filter(|bytes| **bytes > 0.0).count() >= FEWEST_GROWING
        });
        let mut ranked: Vec<_> =
            grown.map(|(stack, epochs)| self.growth(*stack, &epochs.net[range.clone()])).collect();
        ranked.sort_by(|left, right| {
            right.at_least.total_cmp(&left.at_least).then_with(|| left.stack.cmp(&right.stack))
        });
        ranked
    }

    fn growth(&self, stack: K, net: &[f64]) -> Growth<K> {
        let count = net.len() as f64;
        let mean = net.iter().sum::<f64>() / count;
        let squares: f64 = net.iter().map(|bytes| (bytes - mean).powi(2)).sum();
        let error = (squares / (count - 1.0) / count).sqrt();
        let freedom = count - 1.0;
        let at_least = mean - surely_t(freedom) * error;
        let likelihood = if error > 0.0 { likelihood(mean / error, freedom) } else { even(mean) };
        Growth { stack, bytes_per_second: mean / self.epoch, at_least: at_least / self.epoch, likelihood }
    }

    /// The epoch of a time, after making room for it.
    fn index(&mut self, now: Duration) -> usize {
        let now = now.as_secs_f64();
        for _ in 0..MOST_DOUBLINGS {
            if now < self.epoch * EPOCHS as f64 {
                break;
            }
            self.epoch *= 2.0;
            // A stack that took nothing in the later half grows no more: the table holds those that do.
            self.stacks.retain(|_, epochs| epochs.taken[EPOCHS / 2..].iter().any(|bytes| *bytes > 0.0));
            for epochs in self.stacks.values_mut() {
                halve(&mut epochs.net);
                halve(&mut epochs.taken);
            }
        }
        floor(now / self.epoch).min(EPOCHS - 1)
    }
}

/// Epochs that are all the same: there is no chance in it.
fn even(mean: f64) -> f64 {
    if mean > 0.0 { 1.0 } else { 0.5 }
}

fn halve(bytes: &mut [f64; EPOCHS]) {
    for epoch in 0..EPOCHS {
        let pair = bytes.get(2 * epoch..2 * epoch + 2);
        bytes[epoch] = pair.map_or(0.0, |pair| pair[0] + pair[1]);
    }
}

#[expect(clippy::cast_sign_loss, reason = "times are not negative, and the cast saturates")]
fn floor(number: f64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::super::chance::poisson;
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A slow leak among a big cache of a minute, a cache that swings, a start-up heap and small noise; a window each 3 seconds.
    fn record(seed: u64, seconds: f64) -> Leaks<&'static str> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut leaks = Leaks::default();
        let mut cache: Vec<(f64, f64)> = Vec::new();
        let mut now = 0.0;
        while now < seconds {
            now += 3.0;
            cache.retain(|&(gone, bytes)| {
                if gone <= now {
                    leaks.gone("cache", at(now), bytes);
                }
                gone > now
            });
            let bytes = 1e4 * poisson(30.0, &mut random);
            cache.push((now + 60.0, bytes));
            leaks.taken("cache", at(now), bytes);
            leaks.taken("leak", at(now), 1e3 * poisson(5.0, &mut random));
            if now < 10.0 {
                leaks.taken("start", at(now), 1e8);
            }
            let noise = 2e3 * poisson(2.0, &mut random);
            leaks.taken("churn", at(now), noise);
            leaks.gone("churn", at(now + 1.0), noise);
        }
        leaks
    }

    #[test]
    fn the_leak_is_first_within_two_minutes_and_large_caches_are_not() {
        let (mut first, mut false_alarms, runs) = (0, 0, 200);
        for seed in 0..runs {
            let ranked = record(seed, 121.0).rank(at(121.0));
            first += u32::from(ranked[0].stack == "leak" && ranked[0].likelihood > 0.95);
            false_alarms += ranked.iter().filter(|row| row.stack != "leak" && row.at_least > 0.0).count();
            assert!(ranked.iter().all(|row| row.stack != "start"));
        }
        println!("after 120 s: leak first in {first} of {runs}, false alarms {false_alarms}");
        assert!(first >= 195 && false_alarms <= 20, "{first} {false_alarms}");
        let later = record(1, 3600.0).rank(at(3600.0));
        assert_eq!(later[0].stack, "leak");
        let rate = 5e3 / 3.0;
        assert!((later[0].bytes_per_second / rate - 1.0).abs() < 0.1, "{later:?}");
        assert!(later[0].at_least < rate && later[0].at_least > 0.8 * rate);
    }

    #[test]
    fn a_short_recording_claims_nothing() {
        assert!(record(1, 6.0).rank(at(7.0)).is_empty());
        assert!(Leaks::<u32>::default().rank(Duration::MAX).is_empty());
    }

    #[test]
    fn what_has_stopped_growing_is_no_leak() {
        assert!(record(1, 121.0).rank(at(1000.0)).is_empty());
    }

    #[test]
    fn a_process_that_ended_is_forgotten() {
        let mut leaks = record(1, 121.0);
        leaks.forget(|stack| stack == "leak");
        assert!(leaks.rank(at(121.0)).iter().all(|row| row.stack != "leak"));
    }

    proptest! {
        /// Making room keeps what the later half took, whenever it happens.
        #[test]
        fn no_byte_is_lost(mut events in prop::collection::vec((0.0..1e6_f64, 0_u32..100), 1..200)) {
            events.sort_by(|left, right| left.0.total_cmp(&right.0));
            let mut leaks = Leaks::default();
            for (now, bytes) in &events {
                leaks.taken(0, at(*now), f64::from(*bytes));
            }
            let last = events[events.len() - 1].0;
            let half = floor(last / leaks.epoch) / 2;
            let kept: f64 = leaks.stacks[&0].net[half..].iter().sum();
            let later = events.iter().filter(|(now, _)| *now >= half as f64 * leaks.epoch);
            prop_assert!((kept - later.map(|(_, bytes)| f64::from(*bytes)).sum::<f64>()).abs() < 1e-6);
            leaks.taken(0, Duration::MAX, 1.0);
        }
    }
}
