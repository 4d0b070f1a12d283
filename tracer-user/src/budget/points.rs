//! Which probe points one window arms, when arming all of them is too dear.
//!
//! Each point is drawn with a chance of a power of two, and what it sees counts for the inverse: the kernel half keeps
//! weights as powers of two. Points that see more are drawn more often: where all chances fit the loads, no event weighs more
//! than another for nothing. It must not know what a point is.

/// Smallest chance is one in `2^MAX_LEVEL`. With one in 16, a point that start-up had not used and the program then used most made estimates of twice the truth, and of half of it.
pub const MAX_LEVEL: u32 = 2;

/// A point that a window arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// Index into the list of points.
    pub point: usize,
    /// What it sees counts `1 << level` times.
    pub level: u32,
}

/// Draws about `wanted` of the points. `heat` is how often each was hit in earlier windows, in any unit, divided by the chance
/// with which it was armed there; zero where that is not known yet.
#[must_use]
pub fn choose(heat: &[f64], wanted: usize, random: &mut fastrand::Rng) -> Vec<Chosen> {
    // With less than the cold ones' least chance no point could be told from another, and the hot ones be left out.
    let levels = levels(heat, wanted.max(heat.len() / 4 + heat.len() / 16));
    let mut chosen = Vec::new();
    for level in 0..=MAX_LEVEL {
        let mut points: Vec<usize> = (0..heat.len()).filter(|&point| levels[point] == level).collect();
        // One of each 2^level in a shuffled order: every point has the same chance, and the number hardly varies.
        random.shuffle(&mut points);
        let step = 1_usize << level;
        let first = random.usize(..step);
        chosen.extend(points.into_iter().skip(first).step_by(step).map(|point| Chosen { point, level }));
    }
    chosen.sort_by_key(|chosen| chosen.point);
    chosen
}

/// The level of each point such that about `wanted` are drawn: chances in proportion to heat, where they can be.
fn levels(heat: &[f64], wanted: usize) -> Vec<u32> {
    let total: f64 = heat.iter().map(|heat| clean(*heat)).sum();
    // A point that was never hit must have a chance: what it would see may be new.
    let floor = (total / heat.len().max(1) as f64 / 16.0).max(f64::MIN_POSITIVE);
    let at =
        |scale: f64| -> Vec<u32> { heat.iter().map(|heat| level((clean(*heat) + floor) * scale)).collect() };
    let expected = |levels: &[u32]| levels.iter().map(|&level| (-f64::from(level)).exp2()).sum::<f64>();
    let (mut low, mut high) = (-1100.0, 1100.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if expected(&at(f64::exp2(middle))) <= wanted as f64 {
            low = middle;
        } else {
            high = middle;
        }
    }
    at(f64::exp2(low))
}

fn clean(heat: f64) -> f64 {
    if heat.is_finite() { heat.clamp(0.0, 1e15) } else { 0.0 }
}

/// The smallest chance of a power of two that is at least `chance`.
fn level(chance: f64) -> u32 {
    (0..MAX_LEVEL).find(|&level| chance >= (-f64::from(level)).exp2()).unwrap_or(MAX_LEVEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_seen_as_often_as_its_weight_says() {
        let heat: Vec<f64> = (0..100).map(|point| f64::from(point % 10) * 50.0).collect();
        let mut random = fastrand::Rng::with_seed(7);
        let (rounds, mut seen, mut armed) = (20_000, vec![0.0; heat.len()], 0);
        for _ in 0..rounds {
            let chosen = choose(&heat, 30, &mut random);
            armed += chosen.len();
            chosen.iter().for_each(|chosen| seen[chosen.point] += f64::from(1 << chosen.level));
        }
        let mean = armed as f64 / f64::from(rounds);
        assert!((20.0..=30.5).contains(&mean), "{mean}");
        for (point, weight) in seen.into_iter().enumerate() {
            let share = weight / f64::from(rounds);
            assert!((share - 1.0).abs() < 0.12, "point {point}: {share}");
        }
    }

    #[test]
    fn hot_points_are_always_in() {
        let mut heat = vec![1.0; 100];
        heat[3] = 1e6;
        let mut random = fastrand::Rng::with_seed(1);
        assert!((0..50).all(|_| {
            let chosen = choose(&heat, 20, &mut random);
            chosen.contains(&Chosen { point: 3, level: 0 }) && chosen.len() <= 32
        }));
    }

    #[test]
    fn all_are_armed_where_all_fit_and_hostile_heat_does_no_harm() {
        let mut random = fastrand::Rng::with_seed(1);
        let heat = [0.0, f64::NAN, f64::INFINITY, -4.0, 1e300];
        let all = choose(&heat, 5, &mut random);
        assert_eq!(all.len(), 5);
        assert!(all.iter().all(|chosen| chosen.level == 0));
        assert!(choose(&[], 5, &mut random).is_empty());
        assert!(choose(&[1.0; 64], 0, &mut random).len() <= 16);
    }
}
