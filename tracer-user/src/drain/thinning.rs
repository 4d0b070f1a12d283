//! How far a thinned estimate may be off: read from the live table when a recording ends.
//!
//! A block that came in while one in `w` got a place stands for `w` blocks. Each was chosen by itself with probability `1 / w`,
//! so the sum of `size * w` over those chosen estimates the truth without bias, and the sum of `size^2 * w * (w - 1)` over
//! them its variance (Horvitz and Thompson). It must not know stacks.

use tracer_ebpf::abi::PROCESSES;
use tracer_ebpf::bucket::ENTRIES;
use tracer_ebpf::live::Entry;

use crate::attach::{AttachError, Kernel};

/// Words of a bucket: keys, overflows, values, one to spare.
const WORDS: usize = 2 * ENTRIES + 2;

/// Half the width of the 95 % interval of a normal distribution, in standard deviations.
const NORMAL_95: f64 = 1.96;

/// Half the width of the 95 % interval of all live bytes of the processes in these slots, and of blocks that are in the table no
/// more, whose variance is `taken_out`.
///
/// # Errors
/// When the table cannot be read.
pub fn live_bytes_error(kernel: &Kernel, slots: &[u16], taken_out: f64) -> Result<u64, AttachError> {
    let mut variance = taken_out;
    for bucket in 0..kernel.sizes().live_buckets {
        variance += variance_of(&kernel.words("LIVE", bucket)?, slots);
    }
    #[expect(clippy::cast_sign_loss, reason = "a square root is not negative, and the cast saturates")]
    let error = (NORMAL_95 * variance.sqrt()).ceil() as u64;
    Ok(error)
}

/// What the blocks of one bucket add.
fn variance_of(words: &[u64; WORDS], slots: &[u16]) -> f64 {
    let entries = words.iter().zip(&words[ENTRIES + 1..]).take(ENTRIES);
    let ours = entries.filter(|(key, _)| {
        let slot = (*key & u64::from(PROCESSES - 1)) as u16;
        **key != 0 && slots.contains(&slot)
    });
    ours.map(|(_, value)| variance_of_block(Entry(*value))).sum()
}

/// What one block adds.
#[must_use]
pub fn variance_of_block(entry: Entry) -> f64 {
    if !entry.is_counted() {
        return 0.0;
    }
    let (size, weight) = (entry.size() as f64, entry.weight() as f64);
    size * size * weight * (weight - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_stand_for_others_are_uncertain() {
        let mut words = [0; WORDS];
        let entries = [(1, Entry::new(100, 5, 0)), (1, Entry::new(100, 5, 1)), (2, Entry::new(64, 5, 3))];
        for (index, (slot, entry)) in entries.into_iter().enumerate() {
            words[index] = (index as u64 + 1) << 10 | slot;
            words[ENTRIES + 1 + index] = entry.0;
        }
        assert!((variance_of(&words, &[1]) - 100.0 * 100.0 * 2.0).abs() < 1e-6);
        let both = 20_000.0 + 64.0 * 64.0 * 8.0 * 7.0;
        assert!((variance_of(&words, &[1, 2]) - both).abs() < 1e-6);
        assert!(variance_of(&words, &[3]).abs() < 1e-6);
    }
}
