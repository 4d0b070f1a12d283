//! Which pops of each interpreter a window arms: those that see much, and of the others now and then one.
//!
//! An optimised interpreter has up to 250 of them, each costs its target a quarter of a millisecond for each window, and most of what is allocated
//! leaves through twenty. How they are drawn is decided in `budget::points`. It must not know windows.

use rustc_hash::FxHashMap;
use tracer_ebpf::abi::POINTS;

use super::SessionError;
use super::target::Traced;
use crate::attach::{Kernel, Pops};
use crate::budget::points::{MAX_LEVEL, choose};

/// Share of the hits that the points have which are hot.
const HOT: f64 = 0.97;
/// How much of what was known counts beside a new window: programs do one thing after the other, and start-up is not like what follows.
const KEEP: f64 = 0.7;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Heats {
    /// By interpreter: `Traced::plan_number`.
    plans: FxHashMap<usize, PlanHeat>,
    next: usize,
    before: Vec<u64>,
}

/// The pops of one interpreter.
#[derive(Debug, Default)]
struct PlanHeat {
    first: usize,
    heat: Vec<f64>,
    levels: Vec<Option<u8>>,
}

impl Heats {
    /// Draws the pops of these processes, at most so many of each; `None`: all.
    pub fn draw(&mut self, running: &[&Traced], at_most: Option<usize>, random: &mut fastrand::Rng) {
        let mut drawn = Vec::new();
        for traced in running {
            let number = traced.plan_number();
            if drawn.contains(&number) {
                continue;
            }
            drawn.push(number);
            let pops = traced.pops();
            let plan = self.plans.entry(number).or_insert_with(|| {
                let first = self.next;
                self.next += pops;
                PlanHeat { first, heat: vec![0.0; pops], levels: vec![Some(0); pops] }
            });
            match at_most {
                Some(at_most) => plan.draw(at_most.min(worthwhile(&plan.heat)), random),
                None => plan.levels.fill(Some(0)),
            }
        }
    }

    /// What was drawn of a process's, or all.
    pub fn pops(&self, traced: &Traced) -> Pops<'_> {
        let Some(plan) = self.plans.get(&traced.plan_number()) else { return Pops::default() };
        Pops { first: (plan.first % POINTS as usize) as u16, levels: Some(&plan.levels) }
    }

    /// How many of a process's that is.
    pub fn drawn(&self, traced: &Traced) -> usize {
        let plan = self.plans.get(&traced.plan_number());
        plan.map_or(traced.pops(), |plan| plan.levels.iter().flatten().count())
    }

    /// Takes down what the points have seen since this was last asked. Numbers beyond the kernel half's are shared, and cannot tell.
    pub fn learn(&mut self, kernel: &Kernel) -> Result<(), SessionError> {
        let now: [u64; POINTS as usize] = kernel.words("HEAT", 0)?;
        self.before.resize(now.len(), 0);
        for plan in self.plans.values_mut() {
            let hits = plan.levels.iter().enumerate().map(|(place, level)| {
                let number = (plan.first + place) % POINTS as usize;
                // A level of `None` was not armed, and has seen nothing.
                let hits = now[number].wrapping_sub(self.before[number]);
                level.map(|level| (hits << u64::from(level).min(u64::from(MAX_LEVEL))) as f64)
            });
            let hits: Vec<Option<f64>> = hits.collect();
            let all: f64 = hits.iter().flatten().sum();
            if all > 0.0 {
                // As shares: a long stretch says no more of what comes than a short one.
                for (heat, hits) in plan.heat.iter_mut().zip(hits) {
                    *heat = hits.map_or(*heat, |hits| *heat * KEEP + hits / all * (1.0 - KEEP));
                }
            }
        }
        self.before.copy_from_slice(&now);
        Ok(())
    }
}

impl PlanHeat {
    fn draw(&mut self, wanted: usize, random: &mut fastrand::Rng) {
        self.levels.fill(None);
        for chosen in choose(&self.heat, wanted, random) {
            self.levels[chosen.point] = u8::try_from(chosen.level).ok();
        }
    }
}

/// Points that are worth their price: the hot ones, and a quarter of the others. All, as long as nothing is known.
fn worthwhile(heat: &[f64]) -> usize {
    let total: f64 = heat.iter().sum();
    if total <= 0.0 {
        return heat.len();
    }
    let mut sorted = heat.to_vec();
    sorted.sort_unstable_by(|one, other| other.total_cmp(one));
    let mut sum = 0.0;
    let is_hot = |heat: &&f64| {
        let before = sum;
        sum += **heat;
        before < HOT * total
    };
    let hot = sorted.iter().take_while(is_hot).count();
    hot + (heat.len() - hot).div_ceil(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_points_and_a_quarter_of_the_others_are_worth_their_price() {
        assert_eq!(worthwhile(&[0.0; 40]), 40);
        let mut heat = vec![0.01; 160];
        heat.extend([900.0, 50.0, 40.0]);
        assert_eq!(worthwhile(&heat), 3 + 40);
        assert_eq!(worthwhile(&[]), 0);
    }
}
