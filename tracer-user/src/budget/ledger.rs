//! What tracing has cost and what its budget has earned, over the last ten seconds.
//!
//! A share of each second of CPU time that the target itself uses is earned; all that tracing costs is spent. Both are kept
//! in slots of a tenth of a second, rounded against us: a slot that is partly older than ten seconds counts with what it
//! spent and not with what it earned. A second sum, `credit`, never forgets a debt, so that the long run keeps the budget too.
//! It must not know windows, traps or processes.

use std::collections::VecDeque;

/// Seconds over which the budget holds.
pub const SPAN_SECONDS: f64 = 10.0;
/// Seconds in a slot: a hundredth of the span is what rounding costs.
const SLOT_SECONDS: f64 = 0.1;
/// Slots that cover the span and the one that is being filled.
const SLOTS: usize = 101;
/// Seconds between two looks from which it is not known when the target used its CPU time: it earns nothing then.
const BLIND_SECONDS: f64 = 2.0;

/// Seconds of cost in one slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    earned: f64,
    spent: f64,
}

/// The account of one budget. All figures are seconds of CPU time.
#[derive(Debug, Clone)]
pub struct Ledger {
    share: f64,
    processors: f64,
    slots: VecDeque<Slot>,
    /// Seconds that the newest slot has been open.
    age: f64,
    credit: f64,
}

impl Ledger {
    /// An empty account that earns `share` (0.01 for 1 %) of what a target uses on at most `processors` CPUs.
    #[must_use]
    pub fn new(share: f64, processors: f64) -> Self {
        let slots = VecDeque::from([Slot::default()]);
        Self { share, processors, slots, age: 0.0, credit: 0.0 }
    }

    /// Time goes by, in which the target used `own` seconds of CPU time for itself.
    pub fn pass(&mut self, elapsed: f64, own: f64) {
        // A clock that stands or a counter that jumps must not earn: no more CPU time than there was.
        let own = if elapsed > BLIND_SECONDS { 0.0 } else { own.clamp(0.0, elapsed * self.processors) };
        let earned = own * self.share;
        // At the beginning of the time that went by, so that it is old rather too early than too late.
        if let Some(slot) = self.slots.back_mut() {
            slot.earned += earned;
        }
        self.credit += earned;
        self.age += elapsed.min(2.0 * SPAN_SECONDS);
        while self.age >= SLOT_SECONDS {
            self.age -= SLOT_SECONDS;
            self.slots.push_back(Slot::default());
            if self.slots.len() > SLOTS {
                self.slots.pop_front();
            }
        }
        self.credit = self.credit.min(self.earned());
    }

    /// Before the first slot the target used `own` seconds of CPU time in each second: what that earned is there too, as far as it is in the span.
    pub fn earned_before(&mut self, own: f64) {
        let earned = own.clamp(0.0, self.processors) * self.share * SLOT_SECONDS;
        while self.slots.len() < SLOTS {
            self.slots.push_front(Slot { earned, spent: 0.0 });
            self.credit += earned;
        }
    }

    /// Tracing cost so much, just now.
    pub fn spend(&mut self, cost: f64) {
        if let Some(slot) = self.slots.back_mut() {
            slot.spent += cost;
        }
        self.credit -= cost;
    }

    /// What may be spent at this moment; negative after an overrun.
    #[must_use]
    pub fn available(&self) -> f64 {
        let spent: f64 = self.slots.iter().map(|slot| slot.spent).sum();
        self.credit.min(self.earned() - spent)
    }

    /// What was earned in the span.
    #[must_use]
    pub fn earned(&self) -> f64 {
        let oldest = if self.slots.len() < SLOTS { 0 } else { 2 };
        self.slots.iter().skip(oldest).map(|slot| slot.earned).sum()
    }

    /// Seconds in which that was earned: at the beginning fewer than the span.
    #[must_use]
    pub fn covered(&self) -> f64 {
        (self.slots.len() as f64 * SLOT_SECONDS).min(SPAN_SECONDS)
    }

    /// The budget as a share.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_earned_before_is_there_and_is_forgotten_in_its_time() {
        let mut ledger = Ledger::new(0.01, 4.0);
        ledger.pass(0.5, 0.5);
        ledger.pass(0.5, 0.5);
        ledger.earned_before(0.5);
        // A second at full use, nine at half.
        assert!((0.053..=0.056).contains(&ledger.available()), "{}", ledger.available());
        ledger.spend(0.05);
        assert!(ledger.available() < 0.006);
        (0..10).for_each(|_| ledger.pass(0.5, 0.0));
        // What was spent is as young as before, what was earned is older.
        assert!(ledger.available() < 0.0, "{}", ledger.available());
    }

    #[test]
    fn a_sleeping_target_keeps_no_credit() {
        let mut ledger = Ledger::new(0.01, 4.0);
        (0..100).for_each(|_| ledger.pass(0.5, 2.0));
        assert!((0.38..=0.4).contains(&ledger.available()), "{}", ledger.available());
        (0..1200).for_each(|_| ledger.pass(0.5, 0.0));
        assert!(ledger.available().abs() < 1e-9);
    }

    #[test]
    fn clocks_that_stand_or_jump_earn_nothing() {
        let mut ledger = Ledger::new(1.0, 4.0);
        (0..1000).for_each(|_| ledger.pass(0.0, 1.0));
        ledger.pass(7200.0, 7200.0);
        assert!(ledger.available() <= 0.0);
    }

    #[test]
    fn a_debt_is_not_forgotten() {
        let mut ledger = Ledger::new(0.01, 1.0);
        ledger.spend(1.0);
        (0..1000).for_each(|_| ledger.pass(0.1, 0.0));
        assert!(ledger.available() <= -1.0);
    }

    proptest! {
        /// Who spends only what is available never spends more in ten seconds than was earned in them.
        #[test]
        fn any_ten_seconds_hold(steps in prop::collection::vec((1_u32..400, 0.0..1.0_f64, 0.0..1.0_f64), 1..400)) {
            let mut ledger = Ledger::new(0.05, 1.0);
            let (mut now, mut history) = (0.0, Vec::new());
            for (milliseconds, load, want) in steps {
                let elapsed = f64::from(milliseconds) / 1e3;
                ledger.pass(elapsed, load * elapsed);
                history.push((now, now + elapsed, load));
                now += elapsed;
                let cost = ledger.available().max(0.0) * want;
                ledger.spend(cost);
                if cost <= 0.0 {
                    continue;
                }
                history.push((now, now, cost));
                let begin = now - SPAN_SECONDS;
                let (mut spent, mut earned) = (0.0, 0.0);
                for &(from, to, value) in &history {
                    if from < to {
                        earned += 0.05 * value * (to - from.max(begin)).max(0.0);
                    } else if from >= begin {
                        spent += value;
                    }
                }
                prop_assert!(spent <= earned + 1e-9, "{spent} of {earned} at {now}");
            }
        }
    }
}
