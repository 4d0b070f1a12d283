//! Which points can be armed all the time beside windows, and how windows take turns with the others.
//!
//! Of an optimised interpreter's two hundred pops most are hit a few times a second, and to leave them armed costs less than to arm them once for a window. What they
//! see is then known wholly, and by it is known how much of its work the program got done in a window. The others are hit millions of times. Armed together they slow the
//! program twenty times, so that a window sees very little of its work, and most of it is what it begins with. So they are divided among some windows in turn,
//! each of which slows it little; what one sees counts for the turns that did not watch it. It must not know what a point is.

/// Turns at the utmost: a stack whose blocks leave through one point is seen in one of so many windows.
const MOST_TURNS: usize = 8;

/// How many times the mean turn the largest may be.
const UNEVEN: f64 = 1.5;

/// Points that can be armed all the time: those that are hit most seldom, as long as all of them together are hit no more than `affordable` times a second.
#[must_use]
pub fn cold(rates: &[f64], affordable: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..rates.len()).collect();
    order.sort_by(|one, other| rates[*one].total_cmp(&rates[*other]));
    let mut is_cold = vec![false; rates.len()];
    let mut sum = 0.0;
    for point in order {
        sum += rates[point];
        // Not a number never fits.
        if sum > affordable || sum.is_nan() || affordable.is_nan() {
            break;
        }
        is_cold[point] = true;
    }
    is_cold
}

/// Divides points among a power of two of turns, such that each is hit at most `most` times a second, if that can be had.
///
/// Every point is in one turn. Those that are hit most are put apart first, ties by chance.
#[must_use]
pub fn turns(points: &[usize], rates: &[f64], most: f64, random: &mut fastrand::Rng) -> Vec<Vec<usize>> {
    let rate =
        |point: &usize| rates.get(*point).copied().filter(|rate| rate.is_finite()).unwrap_or(0.0).max(0.0);
    let total: f64 = points.iter().map(rate).sum();
    let hottest = points.iter().map(rate).fold(0.0, f64::max);
    // No more than the hottest point leaves something for: turns that see next to nothing are wasted.
    let is_shared = |turns: usize| turns as f64 * hottest <= total * UNEVEN;
    let mut number = 1;
    while number < MOST_TURNS
        && number * 2 <= points.len()
        && total / number as f64 > most
        && is_shared(number * 2)
    {
        number *= 2;
    }
    let mut order = points.to_vec();
    random.shuffle(&mut order);
    order.sort_by(|one, other| rate(other).total_cmp(&rate(one)));
    let mut turns = vec![(0.0_f64, Vec::new()); number];
    for point in order {
        let least = turns
            .iter_mut()
            .min_by(|one, other| one.0.total_cmp(&other.0).then(one.1.len().cmp(&other.1.len())));
        if let Some((sum, points)) = least {
            *sum += rate(&point);
            points.push(point);
        }
    }
    random.shuffle(&mut turns);
    turns.into_iter().map(|(_, points)| points).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_coldest_are_armed_as_long_as_they_fit() {
        assert_eq!(cold(&[5.0, 0.0, 1e6, 3.0, f64::NAN], 8.0), [true, true, false, true, false]);
        assert_eq!(cold(&[5.0, 0.0], 4.0), [false, true]);
        assert!(cold(&[], 4.0).is_empty());
    }

    #[test]
    fn the_hottest_are_apart() {
        let rates = [1e6, 9e5, 8e5, 7e5, 10.0, 10.0, 10.0, 10.0];
        let points: Vec<usize> = (0..8).collect();
        let turns = turns(&points, &rates, 1e6, &mut fastrand::Rng::with_seed(1));
        assert_eq!(turns.len(), 4);
        assert!(turns.iter().all(|turn| turn.iter().filter(|point| **point < 4).count() == 1), "{turns:?}");
    }

    #[test]
    fn a_point_that_sees_nearly_all_has_every_window() {
        let rates = [1e7, 10.0, 10.0, 10.0, 10.0];
        let turns = turns(&[0, 1, 2, 3, 4], &rates, 1e5, &mut fastrand::Rng::with_seed(1));
        assert_eq!(turns.len(), 1);
    }

    #[test]
    fn one_turn_is_enough_for_what_is_seldom_hit() {
        let turns = turns(&[0, 1, 2], &[10.0; 3], 1e5, &mut fastrand::Rng::with_seed(1));
        assert_eq!(turns.len(), 1);
    }

    proptest! {
        #[test]
        fn every_point_has_its_turn(rates in prop::collection::vec(prop::num::f64::ANY, 0..300), most in prop::num::f64::ANY, seed: u64) {
            let points: Vec<usize> = (0..rates.len()).collect();
            let turns = turns(&points, &rates, most, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(turns.len().is_power_of_two() && turns.len() <= MOST_TURNS);
            let mut all: Vec<usize> = turns.concat();
            all.sort_unstable();
            prop_assert_eq!(all, points);
            let cold = cold(&rates, most);
            let sum: f64 = rates.iter().zip(&cold).filter(|(_, cold)| **cold).map(|(rate, _)| rate).sum();
            prop_assert!(!cold.contains(&true) || sum <= most);
        }
    }
}
