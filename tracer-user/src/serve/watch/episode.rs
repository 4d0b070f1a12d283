//! Saying a thing once: from when a level is over its threshold until it is clearly below, or for ten minutes.
//!
//! It must not know what levels are of.

use std::time::Duration;

/// Below this part of the threshold an episode is over.
const BELOW: f64 = 0.8;
/// An episode that goes on is told again after this.
const AGAIN: Duration = Duration::from_secs(10 * 60);
/// Kills of one group are told this often at most.
const KILLS: Duration = Duration::from_secs(60);

/// Whether a level is over its threshold, and whether that was told.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Episode {
    over_since: Option<Duration>,
    told: Option<Duration>,
}

impl Episode {
    /// Looks at a level: `ratio` is that to the threshold, `is_over` whether it counts as over. True: it is to be told now, as it has been over for so long.
    pub fn observe(&mut self, now: Duration, ratio: f64, is_over: bool, held_for: Duration) -> bool {
        if !is_over {
            self.over_since = None;
            self.told = self.told.filter(|_| ratio >= BELOW);
            return false;
        }
        let since = *self.over_since.get_or_insert(now);
        let is_long_enough = now.saturating_sub(since) >= held_for;
        let is_new = self.told.is_none_or(|told| now.saturating_sub(told) >= AGAIN);
        if is_long_enough && is_new {
            self.told = Some(now);
        }
        is_long_enough && is_new
    }
}

/// How often the kernel has killed, as its counter says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kills {
    /// The counter up to which all was told.
    counted: Option<u64>,
    told: Option<Duration>,
}

impl Kills {
    /// How many are new and to be told now. At the first look none is: they were before.
    pub fn observe(&mut self, now: Duration, counter: u64) -> Option<u64> {
        let counted = *self.counted.get_or_insert(counter);
        if counter < counted {
            // Another group by the same name.
            self.counted = Some(counter);
        }
        let new = counter.saturating_sub(counted);
        let is_time = self.told.is_none_or(|told| now.saturating_sub(told) >= KILLS);
        if new == 0 || !is_time {
            return None;
        }
        (self.counted, self.told) = (Some(counter), Some(now));
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The rule in plain words, from the whole past each time. `past` has times in seconds and ratios, this look the last.
    fn is_told(past: &[(u64, f64)], told: &[usize], held_for: u64) -> bool {
        let last = past.len() - 1;
        let now = past[last].0;
        if past[last].1 < 1.0 {
            return false;
        }
        let mut since = last;
        while since > 0 && past[since - 1].1 >= 1.0 {
            since -= 1;
        }
        let is_the_same_episode = |telling: usize| {
            let was_away = past[telling..].iter().any(|(_, ratio)| *ratio < BELOW);
            !was_away && now - past[telling].0 < 600
        };
        now - past[since].0 >= held_for && !told.iter().any(|telling| is_the_same_episode(*telling))
    }

    proptest! {
        #[test]
        fn it_is_told_as_the_plain_rule_says(
            steps in vec((0..400_u64, prop_oneof![Just(0.5), Just(0.79), Just(0.81), Just(0.99), Just(1.0), Just(1.5)]), 1..60),
            held_for in prop_oneof![Just(0_u64), Just(30), Just(700)],
        ) {
            let (mut episode, mut past, mut told, mut now) = (Episode::default(), Vec::new(), Vec::new(), 0);
            for (step, ratio) in steps {
                now += step;
                past.push((now, ratio));
                let expected = is_told(&past, &told, held_for);
                let found = episode.observe(Duration::from_secs(now), ratio, ratio >= 1.0, Duration::from_secs(held_for));
                prop_assert_eq!(found, expected, "{:?}", past);
                if found {
                    told.push(past.len() - 1);
                }
            }
        }

        #[test]
        fn every_kill_is_told_in_the_end(steps in vec((0..40_u64, 0..3_u64), 1..60)) {
            let (mut kills, mut now, mut counter, mut told, mut last) = (Kills::default(), 0, 5, 0, None);
            prop_assert_eq!(kills.observe(Duration::ZERO, counter), None);
            for (step, new) in steps {
                (now, counter) = (now + step, counter + new);
                if let Some(times) = kills.observe(Duration::from_secs(now), counter) {
                    prop_assert!(times > 0 && last.is_none_or(|last| now - last >= 60));
                    (told, last) = (told + times, Some(now));
                }
            }
            told += kills.observe(Duration::from_secs(now + 60), counter).unwrap_or(0);
            prop_assert_eq!(told, counter - 5);
        }
    }
}
