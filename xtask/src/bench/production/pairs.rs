//! Statistics of paired runs: the median of what pairs differ by, with an interval that assumes nothing about how they scatter.
//!
//! Two runs of a service that follow each other share the machine's mood and the service's age; runs ten minutes apart do not. So what counts is the
//! difference within a pair, and which of the two comes first is random.

/// The median of some differences, and its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub median: f64,
    /// At least 95 % of such intervals contain the true median; none below six pairs.
    pub interval: Option<(f64, f64)>,
}

impl Estimate {
    /// The sign test's interval: from the k-th smallest to the k-th largest, where fewer than k of n fair coins show heads with a probability of 2.5 % at most.
    pub fn of(differences: &[f64]) -> Self {
        let mut sorted = differences.to_vec();
        sorted.sort_by(f64::total_cmp);
        let outer = rank(sorted.len());
        Self {
            median: median_of_sorted(&sorted),
            interval: outer
                .and_then(|rank| Some((*sorted.get(rank - 1)?, *sorted.get(sorted.len() - rank)?))),
        }
    }
}

/// The median; of an even number of values, the middle of the two in the middle. NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

fn median_of_sorted(sorted: &[f64]) -> f64 {
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(half) } else { (at(half.wrapping_sub(1)) + at(half)) / 2.0 }
}

/// The largest k for which the interval from the k-th smallest to the k-th largest of `count` values still has 95 %.
fn rank(count: usize) -> Option<usize> {
    let exponent = i32::try_from(count).ok()?;
    let (mut probability, mut below, mut rank) = (0.5_f64.powi(exponent), 0.0, 0);
    while rank < count {
        below += probability;
        if below > 0.025 {
            break;
        }
        rank += 1;
        // The next binomial coefficient from this one.
        probability *= (count + 1 - rank) as f64 / rank as f64;
    }
    (rank > 0).then_some(rank)
}

/// Random numbers for the order of runs, by SplitMix64 (Steele, Lea, Flood 2014): a seed that is printed repeats an order.
pub struct Coin(u64);

impl Coin {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Heads or tails.
    pub fn toss(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) >> 63 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As by whole numbers in Python: the largest k with `40 * sum(comb(n, j) for j in range(k)) <= 2**n`.
    #[test]
    fn ranks_are_those_of_the_sign_test() {
        let ranks: Vec<_> = [0, 5, 6, 8, 9, 11, 12, 15, 20, 25].into_iter().map(rank).collect();
        let known = [0, 0, 1, 1, 2, 2, 3, 4, 6, 8].map(|rank| (rank > 0).then_some(rank));
        assert_eq!(ranks, known);
    }

    #[test]
    fn eleven_pairs_leave_one_out_at_each_end() {
        let differences: Vec<f64> = (0..11).rev().map(f64::from).collect();
        assert_eq!(Estimate::of(&differences), Estimate { median: 5.0, interval: Some((1.0, 9.0)) });
    }

    #[test]
    fn few_pairs_have_no_interval() {
        assert_eq!(Estimate::of(&[3.0, 1.0, 2.0]), Estimate { median: 2.0, interval: None });
        assert!(Estimate::of(&[]).median.is_nan());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_seed_repeats_an_order_and_both_sides_come() {
        let tosses = |seed| {
            let mut coin = Coin::new(seed);
            (0..1000).map(|_| coin.toss()).collect::<Vec<_>>()
        };
        assert_eq!(tosses(7), tosses(7));
        assert_ne!(tosses(7), tosses(8));
        let heads = tosses(7).into_iter().filter(|toss| *toss).count();
        assert!((400..600).contains(&heads), "{heads}");
    }
}
