//! What is kept of processes that have ended and given back their places in the kernel half: samples, totals, losses.
//!
//! Its memory is bounded. When samples take more than they may, those that allocated least are merged into one a process, which
//! is counted: their bytes stay, their stacks go. It must not know tables, nor when processes end.

use rustc_hash::FxHashMap;

use super::recorder::add_losses;
use crate::drain::Totals;
use crate::profile::{Domain, ENDED_STACKS, Estimated, Losses, ProcessIndex, Sample, Stack, Values};

/// What is left of them.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    samples: Vec<Sample>,
    bytes: usize,
    /// Samples whose stacks were given up.
    merged: u64,
    losses: Losses,
    events: u64,
    /// Of their live bytes, as far as they are estimates: see `drain/thinning.rs`.
    variance: f64,
}

/// What stands in place of stacks that were given up.
pub const MERGED: &str = ENDED_STACKS;

impl Ended {
    /// Keeps a sample.
    pub fn add(&mut self, sample: Sample) {
        self.bytes += bytes_of(&sample);
        self.samples.push(sample);
    }

    /// What the samples take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts what a whole process did.
    pub fn add_totals(&mut self, totals: &Totals) {
        add_losses(&mut self.losses, totals);
        self.events += totals.events_seen();
    }

    /// Counts the uncertainty of blocks that a process held at its end.
    pub fn add_variance(&mut self, variance: f64) {
        self.variance += variance;
    }

    /// Merges the half that allocated least until all of them take no more than `limit` bytes: 2 ms for 50,000. `other`: the stack that
    /// says [`MERGED`].
    pub fn shrink(&mut self, limit: usize, other: &Stack) {
        while self.bytes > limit && self.samples.iter().any(|sample| sample.stack != *other) {
            let middle = self.samples.len() / 2;
            // What was merged before comes first: it becomes one with what is merged now.
            self.samples.select_nth_unstable_by_key(middle, |sample| {
                (sample.stack != *other, sample.values.allocated.bytes)
            });
            let mut sums: FxHashMap<(ProcessIndex, Domain), Values> = FxHashMap::default();
            for sample in self.samples.drain(..=middle) {
                self.merged += u64::from(sample.stack != *other);
                let sum = sums.entry((sample.process, sample.domain)).or_default();
                *sum = sum.plus(sample.values);
            }
            self.samples.extend(sums.into_iter().map(|((process, domain), values)| Sample {
                process,
                thread: 0,
                domain,
                stack: other.clone(),
                values,
                // Of small ones, of which windows can say little.
                estimated: None,
            }));
            self.bytes = self.samples.iter().map(bytes_of).sum();
        }
    }

    /// What was lost of them.
    pub fn losses(&self) -> Losses {
        Losses { merged_stacks: self.merged, ..self.losses.clone() }
    }

    /// Events that were seen of them.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// See [`Ended::add_variance`].
    pub fn variance(&self) -> f64 {
        self.variance
    }

    /// Hands over the samples; no two of them need be different.
    pub fn take_samples(&mut self) -> Vec<Sample> {
        self.bytes = 0;
        std::mem::take(&mut self.samples)
    }
}

/// What a sample takes: itself, and the blocks of its stack and its estimates.
fn bytes_of(sample: &Sample) -> usize {
    /// glibc's header and rounding, on average.
    const HEADER: usize = 16;
    let estimated = sample.estimated.as_ref().map_or(0, |_| size_of::<Estimated>() + HEADER);
    size_of::<Sample>() + sample.stack.bytes() + HEADER + estimated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Amount, FrameId};

    fn stack(frames: &[u32]) -> Stack {
        frames.iter().copied().map(FrameId).collect()
    }

    fn sample(process: u32, number: u32, bytes: u64) -> Sample {
        let amount = Amount { bytes, count: 1 };
        Sample {
            process: ProcessIndex(process),
            thread: 7,
            domain: Domain::Pymalloc,
            stack: stack(&[number, number + 1, number + 2]),
            values: Values { allocated: amount, live: amount, peak: amount, temporary: Amount::default() },
            estimated: None,
        }
    }

    const LIMIT: usize = 8 << 20;

    #[test]
    fn what_fits_is_kept_as_it_is() {
        let mut ended = Ended::default();
        let samples: Vec<Sample> = (1..1000).map(|number| sample(1, number, 16)).collect();
        samples.iter().for_each(|sample| ended.add(sample.clone()));
        assert_eq!(ended.losses(), Losses::default());
        assert_eq!(ended.take_samples(), samples);
    }

    /// Far more than fit, of several processes: no byte is lost, the largest keep their stacks, and memory has its bound.
    #[test]
    fn past_the_bound_small_ones_become_one_a_process() {
        let (mut ended, other) = (Ended::default(), stack(&[0]));
        let (processes, stacks) = (50_u64, 10_000_u32);
        for process in 0..processes {
            for number in 1..=stacks {
                let bytes = if number == stacks { 1 << 30 } else { u64::from(number % 100) * 16 };
                ended.add(sample(process as u32, number, bytes));
                ended.shrink(LIMIT, &other);
                assert!(ended.bytes <= LIMIT);
            }
        }
        let merged = ended.losses().merged_stacks;
        let samples = ended.take_samples();
        let kept = samples.iter().filter(|sample| sample.stack != other).count() as u64;
        assert_eq!(kept + merged, processes * u64::from(stacks));
        for process in 0..processes {
            let of_it = || samples.iter().filter(|sample| u64::from(sample.process.0) == process);
            let sum = of_it().map(|sample| sample.values.allocated.bytes).sum::<u64>();
            let all: u64 = (1..stacks).map(|number| u64::from(number % 100) * 16).sum();
            assert_eq!(sum, all + (1 << 30));
            assert!(of_it().any(|sample| sample.stack == stack(&[stacks, stacks + 1, stacks + 2])));
        }
    }
}
