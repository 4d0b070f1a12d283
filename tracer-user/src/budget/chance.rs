//! Random draws for the simulations in tests: Poisson counts and exponential times from a seed.

/// A count with this mean.
pub fn poisson(mean: f64, random: &mut fastrand::Rng) -> f64 {
    if mean > 30.0 {
        return (mean + mean.sqrt() * normal(random)).round().max(0.0);
    }
    let (mut product, limit, mut count) = (random.f64(), (-mean).exp(), 0.0);
    while product > limit {
        product *= random.f64();
        count += 1.0;
    }
    count
}

/// A time until the next event, with this mean.
pub fn exponential(mean: f64, random: &mut fastrand::Rng) -> f64 {
    -mean * (1.0 - random.f64()).ln()
}

fn normal(random: &mut fastrand::Rng) -> f64 {
    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos()
}
