//! What looks at blocks may cost: how many of a window's blocks are followed, and how far apart survivors are looked at.
//!
//! A look is one read for each pool that holds a block. Looks soon after a window cannot be put off, for they are what tells, so it is the
//! number of blocks that gives way, before the first look; looks at survivors can. It must not know clocks nor memory.

use std::time::Duration;

/// Share of one processor that looks soon after windows may take, on average.
const SHARE_AFTER_WINDOWS: f64 = 0.003;
/// And those at survivors.
const SHARE_OF_SURVIVORS: f64 = 0.002;
/// Shortest time between two looks at survivors.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);
/// Until it is known: a read of 16 KiB with what is made of it takes 6 µs, and of the pools that a window ends with a third is read again at
/// each later look.
const READ_SECONDS: f64 = 6e-6;
const READS_OF_A_POOL: f64 = 3.0;
/// Until it is known: seconds between windows.
const BETWEEN_WINDOWS: f64 = 2.0;
/// A credit of so many pools' worth is not worth less: below it nothing would be said of most stacks.
const FEWEST_POOLS: f64 = 32.0;
/// What is older counts less, by this each time.
const KEEP: f64 = 0.9;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct LookPace {
    /// Of one read, in seconds.
    read_seconds: f64,
    /// Pools that windows ended with, and reads that they took until the last look.
    pools: f64,
    reads: f64,
    /// Seconds between windows.
    between: f64,
    last_window: Option<Duration>,
}

impl Default for LookPace {
    fn default() -> Self {
        Self {
            read_seconds: READ_SECONDS,
            pools: 1.0,
            reads: READS_OF_A_POOL,
            between: BETWEEN_WINDOWS,
            last_window: None,
        }
    }
}

impl LookPace {
    /// A window has ended with so many pools: one in `2^n` is followed.
    pub fn thinning(&mut self, now: Duration, pools: usize) -> u32 {
        if let Some(last) = self.last_window.replace(now) {
            let between = now.saturating_sub(last).as_secs_f64();
            self.between = self.between * KEEP + between * (1.0 - KEEP);
        }
        let allowed = SHARE_AFTER_WINDOWS * self.between / (self.read_seconds * self.reads / self.pools);
        let mut left = pools as f64;
        let mut thinning = 0;
        while left > allowed.max(FEWEST_POOLS) && thinning < 32 {
            left /= 2.0;
            thinning += 1;
        }
        self.pools = self.pools * KEEP + left;
        self.reads *= KEEP;
        // Where nothing came for long, a ratio of two zeros says nothing.
        if self.pools < 1.0 {
            (self.pools, self.reads) = (1.0, READS_OF_A_POOL);
        }
        thinning
    }

    /// A look took so many reads and so long. `after_windows`: how many of them were for blocks of windows.
    pub fn looked(&mut self, reads: usize, after_windows: usize, took: Duration) {
        self.reads += after_windows as f64;
        if reads > 0 {
            let seconds = (took.as_secs_f64() / reads as f64).clamp(1e-6, 1e-3);
            self.read_seconds = self.read_seconds * KEEP + seconds * (1.0 - KEEP);
        }
    }

    /// How long after a look at survivors with so many reads comes the next.
    #[must_use]
    pub fn until_next(&self, reads: usize) -> Duration {
        let seconds = reads as f64 * self.read_seconds / SHARE_OF_SURVIVORS;
        BETWEEN_LOOKS.max(Duration::try_from_secs_f64(seconds).unwrap_or(BETWEEN_LOOKS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_after_windows_stay_within_their_share() {
        let mut pace = LookPace::default();
        let (mut now, mut spent) = (Duration::ZERO, 0.0);
        for _ in 0..200 {
            now += Duration::from_secs(2);
            let pools = 4000 >> pace.thinning(now, 4000);
            // A dear machine, on which most pools are read again.
            for share in [1, 1, 1, 1, 2, 2, 4, 4] {
                let reads = pools / share;
                let took = Duration::from_micros(20).mul_f64(reads as f64);
                spent += took.as_secs_f64();
                pace.looked(reads, reads, took);
            }
        }
        let share = spent / now.as_secs_f64();
        assert!(share < SHARE_AFTER_WINDOWS && share > SHARE_AFTER_WINDOWS / 3.0, "{share}");
    }

    #[test]
    fn few_pools_are_all_followed() {
        let mut pace = LookPace::default();
        assert_eq!(pace.thinning(Duration::from_secs(1), 30), 0);
        pace.looked(8000, 0, Duration::from_millis(48));
        assert_eq!(pace.until_next(10), BETWEEN_LOOKS);
        assert!(pace.until_next(8000) > Duration::from_secs(15));
    }
}
