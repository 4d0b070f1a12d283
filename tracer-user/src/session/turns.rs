//! Processes that ran already: which pops of an interpreter are armed all the time, and which of the others the next window watches.
//!
//! How they are told apart is decided in `budget::rotation`; here is how often each is hit. It must not know windows.

use rustc_hash::FxHashMap;
use tracer_ebpf::abi::POINTS;

use super::SessionError;
use super::target::Traced;
use crate::attach::{Kernel, Pops};
use crate::budget::rotation::{cold, turns};

/// How much of what earlier windows saw of a point counts beside a new one.
const KEEP: f64 = 0.95;
/// Least of the target's time that hits are divided by, in seconds: a window in which no event came stands for some time.
const LEAST_SECONDS: f64 = 1e-4;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Turns {
    /// By interpreter: `Traced::plan_number`.
    plans: FxHashMap<usize, Plan>,
    next: usize,
    before: Vec<u64>,
}

/// The pops of one interpreter.
#[derive(Debug, Default)]
struct Plan {
    first: usize,
    /// Hits, and the seconds of the target's time in which they came.
    hits: Vec<(f64, f64)>,
    /// Empty: not sorted yet.
    is_cold: Vec<bool>,
    /// Each has been watched.
    is_learned: bool,
    has_drawn: bool,
    /// Hits in a second, when that was last asked.
    latest: Vec<f64>,
    /// Those of the others that windows have yet to watch.
    turns: Vec<Vec<usize>>,
    /// Each hit counts `1 << level` times: for the turns that do not watch the point.
    level: u8,
    /// What the next window arms.
    levels: Vec<Option<u8>>,
    /// What is armed all the time, and the others.
    kept: Vec<Option<u8>>,
    hot: Vec<Option<u8>>,
}

/// What points may be hit in a second, of all processes together.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// Those that are armed all the time.
    pub kept: f64,
    /// Those of one window.
    pub turn: f64,
}

impl Turns {
    /// Knows the interpreters of these from now on.
    pub fn meet(&mut self, running: &[&Traced]) {
        for traced in running {
            let pops = traced.pops();
            self.plans.entry(traced.plan_number()).or_insert_with(|| {
                let first = self.next;
                self.next += pops;
                Plan {
                    first,
                    hits: vec![(0.0, 0.0); pops],
                    latest: vec![0.0; pops],
                    levels: vec![None; pops],
                    kept: vec![None; pops],
                    hot: vec![Some(0); pops],
                    ..Plan::default()
                }
            });
        }
    }

    /// Whether windows have watched every point of an interpreter that has not been sorted.
    pub fn wants_sorting(&self) -> bool {
        self.plans.values().any(|plan| plan.is_cold.is_empty() && plan.is_learned && !plan.hits.is_empty())
    }

    /// Whether there are points that no window has watched yet.
    pub fn is_learning(&self) -> bool {
        self.plans.values().any(|plan| plan.is_cold.is_empty() && !plan.hits.is_empty())
    }

    /// Points that are armed all the time, of all interpreters.
    pub fn count_kept(&self) -> usize {
        self.plans.values().map(|plan| plan.kept.iter().flatten().count()).sum()
    }

    /// What is armed all the time of a process's pops.
    pub fn kept(&self, traced: &Traced) -> Pops<'_> {
        self.plans.get(&traced.plan_number()).map_or(Pops::default(), |plan| plan.pops(&plan.kept))
    }

    /// What the next window arms of them.
    pub fn drawn(&self, traced: &Traced) -> Pops<'_> {
        self.plans.get(&traced.plan_number()).map_or(Pops::default(), |plan| plan.pops(&plan.levels))
    }

    /// All that is not armed all the time.
    pub fn hot(&self, traced: &Traced) -> Pops<'_> {
        self.plans.get(&traced.plan_number()).map_or(Pops::default(), |plan| plan.pops(&plan.hot))
    }

    /// How many that is.
    pub fn count_drawn(&self, traced: &Traced) -> usize {
        let plan = self.plans.get(&traced.plan_number());
        plan.map_or(traced.pops(), |plan| plan.levels.iter().flatten().count())
    }

    /// How many of them the next window will arm, if it arms as many as others.
    pub fn count_next(&self, traced: &Traced) -> usize {
        let Some(plan) = self.plans.get(&traced.plan_number()) else { return traced.pops() };
        match plan.turns.last() {
            Some(turn) => turn.len(),
            None => plan.hot.iter().flatten().count().div_ceil(1 << plan.level),
        }
    }

    /// Sorts the points of interpreters of which windows have watched every point. Which those are.
    pub fn sort(&mut self, most: Most) -> Vec<usize> {
        let mut sorted = Vec::new();
        let interpreters = self.plans.len().max(1) as f64;
        let unsorted = self.plans.iter_mut().filter(|(_, plan)| plan.is_learned && plan.is_cold.is_empty());
        for (number, plan) in unsorted {
            sorted.push(*number);
            let is_cold = cold(&plan.rates(), most.kept / interpreters);
            // From now on what they see is counted all the time.
            let counts = plan.hits.iter_mut().zip(&is_cold).filter(|(_, is_cold)| **is_cold);
            counts.for_each(|(hits, _)| *hits = (0.0, 0.0));
            plan.set_cold(is_cold);
        }
        sorted
    }

    /// Those that are hit most of what is armed all the time are no longer, until the rest is what may be hit. The share of hits that is left.
    pub fn evict(&mut self, most: Most) -> f64 {
        let interpreters = self.plans.len().max(1) as f64;
        let (mut all, mut left) = (0.0, 0.0);
        for plan in self.plans.values_mut() {
            let rates = plan.rates();
            // Who was seldom hit for a minute and is hit all the time now must go now.
            let now = |point: usize| rates[point].max(plan.latest.get(point).copied().unwrap_or(0.0));
            let of_cold = |point: usize| if plan.is_cold[point] { now(point) } else { f64::INFINITY };
            let rates: Vec<f64> = (0..plan.is_cold.len()).map(of_cold).collect();
            let is_cold = cold(&rates, most.kept / interpreters);
            all += rates.iter().filter(|rate| rate.is_finite()).sum::<f64>();
            left += rates
                .iter()
                .zip(&is_cold)
                .filter(|(_, is_cold)| **is_cold)
                .map(|(rate, _)| rate)
                .sum::<f64>();
            if is_cold != plan.is_cold {
                plan.set_cold(is_cold);
            }
        }
        if all > 0.0 { left / all } else { 1.0 }
    }

    /// Draws what the next window arms.
    pub fn draw(&mut self, running: &[&Traced], most: Most, random: &mut fastrand::Rng) {
        for (number, plan) in &mut self.plans {
            if !running.iter().any(|traced| traced.plan_number() == *number) {
                plan.levels.fill(None);
                continue;
            }
            plan.draw(most.turn, random);
        }
    }

    /// Takes down what the points have seen since this was last asked: those that are armed all the time in `seconds`, those of a window in `window` seconds
    /// of the target's work without it. Numbers beyond the kernel half's are shared, and cannot tell.
    pub fn learn(&mut self, kernel: &Kernel, seconds: f64, window: f64) -> Result<(), SessionError> {
        let now: [u64; POINTS as usize] = kernel.words("HEAT", 0)?;
        self.before.resize(now.len(), 0);
        for plan in self.plans.values_mut() {
            plan.is_learned |= plan.has_drawn && plan.is_cold.is_empty() && plan.turns.is_empty();
            for point in 0..plan.hits.len() {
                let number = (plan.first + point) % POINTS as usize;
                let hits = now[number].wrapping_sub(self.before[number]) as f64;
                let is_kept = plan.is_cold.get(point).copied().unwrap_or(false);
                let is_drawn = plan.levels.get(point).is_some_and(Option::is_some);
                let time = if is_kept { seconds } else { window };
                if is_kept || is_drawn {
                    let known = &mut plan.hits[point];
                    *known = (known.0 * KEEP + hits, known.1 * KEEP + time);
                    if let Some(latest) = plan.latest.get_mut(point) {
                        *latest = hits / time.max(LEAST_SECONDS);
                    }
                }
            }
        }
        self.before.copy_from_slice(&now);
        Ok(())
    }
}

impl Plan {
    fn pops<'a>(&self, levels: &'a [Option<u8>]) -> Pops<'a> {
        Pops { first: (self.first % POINTS as usize) as u16, levels: Some(levels) }
    }

    fn rates(&self) -> Vec<f64> {
        self.hits.iter().map(|(hits, seconds)| hits / seconds.max(LEAST_SECONDS)).collect()
    }

    fn set_cold(&mut self, is_cold: Vec<bool>) {
        self.kept = is_cold.iter().map(|is_cold| is_cold.then_some(0)).collect();
        self.hot = is_cold.iter().map(|is_cold| (!is_cold).then_some(0)).collect();
        self.is_cold = is_cold;
        self.turns.clear();
    }

    fn draw(&mut self, most: f64, random: &mut fastrand::Rng) {
        self.has_drawn = true;
        if self.turns.is_empty() {
            let is_cold = |point: &usize| self.is_cold.get(*point).copied().unwrap_or(false);
            let hot: Vec<usize> = (0..self.hits.len()).filter(|point| !is_cold(point)).collect();
            self.turns = match self.is_cold.is_empty() {
                // Nothing is known: a few at a time, so that the first windows cost no more than others.
                true => turns(&hot, &vec![1.0; self.hits.len()], 0.0, random),
                false => turns(&hot, &self.rates(), most, random),
            };
            self.level = self.turns.len().trailing_zeros() as u8;
            let of_turn = |turn: &Vec<usize>| turn.iter().map(|point| self.rates()[*point]).sum::<f64>();
            let rates: Vec<f64> = self.turns.iter().map(of_turn).collect();
            tracing::debug!(level = self.level, ?rates, most, "turns");
        }
        let level = self.level;
        self.levels.fill(None);
        for point in self.turns.pop().unwrap_or_default() {
            if let Some(of) = self.levels.get_mut(point) {
                *of = Some(level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        // Two points are hit seldom, four often.
        let hits = [1.0, 2.0, 1e6, 1e6, 1e6, 1e6].map(|hits| (hits, 1.0)).to_vec();
        Plan { hits, levels: vec![Some(0); 6], is_learned: true, ..Plan::default() }
    }

    #[test]
    fn who_turns_out_to_be_hit_often_is_evicted_and_the_others_stay() {
        let mut turns = Turns { plans: FxHashMap::from_iter([(1, plan())]), ..Turns::default() };
        let most = Most { kept: 100.0, turn: 1e6 };
        assert_eq!(turns.sort(most), [1]);
        assert_eq!(turns.sort(most), [0; 0], "it is sorted");
        assert!(turns.evict(most) >= 1.0);
        turns.plans.get_mut(&1).unwrap().hits[0] = (50.0, 0.1);
        assert!(turns.evict(most) < 0.01);
        assert_eq!(turns.plans[&1].kept, [None, Some(0), None, None, None, None]);
        assert!(turns.evict(most) >= 1.0);
    }

    #[test]
    fn each_hot_point_has_its_turn_before_any_has_another() {
        let mut turns = Turns { plans: FxHashMap::from_iter([(1, plan())]), ..Turns::default() };
        turns.sort(Most { kept: 100.0, turn: 1e6 });
        let mut random = fastrand::Rng::with_seed(3);
        let mut seen = [0; 6];
        for _ in 0..4 {
            let plan = turns.plans.get_mut(&1).unwrap();
            plan.draw(1e6, &mut random);
            for (point, level) in plan.levels.iter().enumerate() {
                seen[point] += level.map_or(0, |level| 1 << level) / 4;
            }
        }
        assert_eq!(seen, [0, 0, 1, 1, 1, 1]);
        assert_eq!(turns.plans[&1].kept, [Some(0), Some(0), None, None, None, None]);
    }
}
