//! Decides when probe points are armed, so that tracing never costs more than its budget.
//!
//! It is told what happened since it was last asked and says what to do next. Three rules keep the budget: nothing is armed
//! unless its worst case fits what the last ten seconds have earned and not spent ([`Ledger`]); what is armed has a limit of
//! traps, at which it ends; everything is charged with what it really cost, however late it ended. It backs off at once and
//! recovers slowly. It must not know kernels, clocks or processes by name: values in, values out.

use std::time::Duration;

use super::{
    costs::{CycleCost, CyclePrior},
    ledger::{Ledger, SPAN_SECONDS},
    window::{self, Outlook, Shape},
};

/// Longest time between two looks while nothing is armed.
const LOOK_RESTING: f64 = 0.1;
/// Longest time between two looks while everything is armed: half a slot of the ledger.
const LOOK_ARMED: f64 = 0.05;
/// Fewest traps for which it is worth staying armed.
const FEWEST_TRAPS: f64 = 100.0;
/// How much longer a window may be than the one before.
const GROWTH: f64 = 1.25;
/// Share of the budget that exact tracing may cost before it is taken up again.
const FITS: f64 = 0.8;
/// Windows in a row that must say that everything fits; doubles each time that was wrong.
const FITTING_WINDOWS: u32 = 8;
const MOST_FITTING_WINDOWS: u32 = 128;
/// Seconds armed after which the guess counts as right.
const PROVED_SECONDS: f64 = 60.0;
/// Windows in a row that may cost twice what they were allowed.
const OVERRUNS: u32 = 3;
/// Seconds by which the tracer may wake up late, and how often in a row.
const LATE_SECONDS: f64 = 1.0;
const LATE_WAKES: u32 = 5;
/// Seconds of CPU time that the target may use while not even the smallest window fits.
const HOPELESS_SECONDS: f64 = 60.0;

/// What tracing may cost and how windows look.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// Share of the target's own CPU time: 0.01 is 1 %.
    pub share: f64,
    /// Processors of the host: no more CPU time than theirs is believed.
    pub processors: u32,
    /// Shortest window.
    pub shortest: Duration,
    /// Longest window.
    pub longest: Duration,
    /// Longest period in which a window lies: a target that wakes up is looked at within this time.
    pub longest_period: Duration,
    /// Free-only tail of a window; zero for none.
    pub tail: Duration,
    /// Begins armed, and this much cost is lent to what comes first; zero begins with windows.
    pub opening: Duration,
    /// The target ran before this began: what it used in its first second counts, by half, for the nine seconds before it, so that something is known soon.
    pub ran_before: bool,
    /// Everything is armed all the time where windows say that it fits. Not where windows take turns with points: each watches a part, and what fits is armed anyway.
    pub stays_armed: bool,
    /// Factor by which all costs are taken too high: the budget holds as long as they are not known worse than that.
    pub margin: f64,
    /// What arming is taken to cost until that is known.
    pub cycle: CyclePrior,
    /// Seed of the random places of windows.
    pub seed: u64,
}

impl Budget {
    /// For processes that are attached to: short windows from the beginning.
    #[must_use]
    pub fn attached(percent: f64, processors: u32, seed: u64) -> Self {
        Self {
            share: percent / 100.0,
            processors,
            shortest: Duration::from_millis(20),
            longest: Duration::from_millis(100),
            longest_period: Duration::from_secs(5),
            tail: Duration::from_millis(50),
            opening: Duration::ZERO,
            ran_before: false,
            stays_armed: true,
            margin: 1.15,
            cycle: CyclePrior::default(),
            seed,
        }
    }

    /// For a command that we started: armed from its first allocation on, then windows as often as can be, for it may end soon.
    #[must_use]
    pub fn command(percent: f64, processors: u32, seed: u64) -> Self {
        Self {
            longest: Duration::from_millis(500),
            longest_period: Duration::from_millis(500),
            // Start-up and a short program are then seen whole: 250,000 traps, of which those of start-up take 4 us.
            opening: Duration::from_secs(1),
            ..Self::attached(percent, processors, seed)
        }
    }
}

/// Probe points of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Points {
    /// Those that every window needs: frees end survivors wherever they happen.
    pub always: u32,
    /// Those of which a window may arm a share.
    pub optional: u32,
}

/// One process since the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessSeen {
    /// CPU time that it used, with what our probes took of it.
    pub cpu_time: Duration,
    /// Traps of our probes in it, counted or turned away at the limit.
    pub traps: u64,
}

/// Arming or disarming that ended since the last step: that of a whole window, or of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CycleSeen {
    /// Points, over all processes.
    pub points: u32,
    /// CPU time that it took of tracer and target, without traps, with what threads stood still for.
    pub cost: Duration,
    /// How long the points were armed, without the tail.
    pub armed: Duration,
    /// Traps in that time.
    pub traps: u64,
}

/// What happened since the last step.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Time since the last step, by a clock that is not set.
    pub elapsed: Duration,
    /// Every process that is traced.
    pub processes: &'a [ProcessSeen],
    /// Points of a process: those of the one that has most.
    pub points: Points,
    /// Mean cost of a trap in nanoseconds.
    pub trap_nanoseconds: f64,
    /// Arming and disarming, if some ended.
    pub cycle: Option<CycleSeen>,
    /// How much later than asked for the step comes.
    pub late: Duration,
}

/// A window to open now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Length, from when all points are armed.
    pub length: Duration,
    /// Free-only tail after it; zero: none, and the window counts neither for retained flow nor for survivors.
    pub tail: Duration,
    /// Optional points to arm in each process.
    pub optional: u32,
    /// Processes to arm, to be drawn by chance.
    pub processes: u32,
    /// Traps at which it must end, tail included.
    pub traps: u64,
    /// Time of the target that it stands for: the weight of what it sees is this over its own natural length.
    pub represents: Duration,
}

/// Why nothing is armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resting {
    /// The next window's time has not come.
    NotYet,
    /// Its time has come, but what it may cost has not been earned yet.
    Saving,
    /// Not even the smallest window fits what ten seconds earn; a sleeping target is like that.
    TooDear,
}

/// Why tracing must end.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Stopped {
    /// Windows cost more than they may, again and again.
    #[error("windows cost {cost:?} where {allowed:?} was allowed, {OVERRUNS} times in a row: raise --budget")]
    Overrun {
        /// The last one's cost.
        cost: Duration,
        /// What it might have cost.
        allowed: Duration,
    },
    /// The tracer gets too little CPU time to end windows in time.
    #[error(
        "the tracer woke up {late:?} late, {LATE_WAKES} times in a row: give it more CPU time (nice, cgroup)"
    )]
    Starved {
        /// The last delay.
        late: Duration,
    },
    /// The target is busy, and still no window fits.
    #[error("the smallest window costs {needed:?} and the budget allows {allowed:?}: raise --budget")]
    Hopeless {
        /// What the smallest window costs.
        needed: Duration,
        /// What one may cost.
        allowed: Duration,
    },
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Have all points of all processes armed; step again after `look_again`, or at once when `traps` more have been seen.
    StayArmed {
        /// Traps that may come until the next step.
        traps: u64,
        /// When to step at the latest.
        look_again: Duration,
    },
    /// Arm, wait, disarm, then step.
    Open(Window),
    /// Have nothing armed; step again after `look_again`.
    Rest {
        /// When to step.
        look_again: Duration,
        /// Why.
        why: Resting,
    },
    /// Disarm, and trace no more: every later step says the same.
    Stop(Stopped),
}

/// One period of windows; seconds.
#[derive(Debug, Clone, Default)]
struct Period {
    shape: Option<Shape>,
    until_open: f64,
    left: f64,
    opened: bool,
    own: f64,
}

#[derive(Debug, Clone)]
enum State {
    /// Everything is armed, for so many seconds now.
    Armed(f64),
    Windows(Period),
    Stopped(Stopped),
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Governor {
    budget: Budget,
    ledger: Ledger,
    cycle: CycleCost,
    random: fastrand::Rng,
    state: State,
    /// Cost still lent to the first stretch; seconds.
    loan: f64,
    /// CPU seconds that the target uses for itself in a second; about the last second.
    load: f64,
    /// Cost of traps in a second while all is armed; `None` until a window has told.
    intensity: Option<f64>,
    /// Cost and own CPU time while armed, of the last windows.
    armed: (f64, f64),
    /// What the window that is open may cost; seconds.
    allowance: Option<f64>,
    overshoot: f64,
    longest: f64,
    fitting: u32,
    fitting_needed: u32,
    overruns: u32,
    late: u32,
    /// Own CPU time of periods without a window, which the next one stands for; seconds.
    owed: f64,
    hopeless: f64,
    total: (f64, f64),
    /// Seconds since the beginning, until what came before it is known.
    beginning: Option<f64>,
}

impl Governor {
    /// Before the first step.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        let loan = budget.opening.as_secs_f64();
        Self {
            ledger: Ledger::new(budget.share.max(0.0), f64::from(budget.processors.max(1))),
            cycle: CycleCost::new(budget.cycle),
            random: fastrand::Rng::with_seed(budget.seed),
            state: if loan > 0.0 { State::Armed(0.0) } else { State::Windows(Period::default()) },
            loan,
            load: 0.0,
            intensity: None,
            armed: (0.0, 0.0),
            allowance: None,
            overshoot: 0.0,
            longest: budget.shortest.as_secs_f64(),
            fitting: 0,
            fitting_needed: FITTING_WINDOWS,
            overruns: 0,
            late: 0,
            owed: 0.0,
            hopeless: 0.0,
            total: (0.0, 0.0),
            beginning: budget.ran_before.then_some(0.0),
            budget,
        }
    }

    /// What tracing has cost so far, as a share of the target's own CPU time; `None` before it has used any.
    #[must_use]
    pub fn cost_share(&self) -> Option<f64> {
        (self.total.1 > 0.0).then(|| self.total.0 / self.total.1)
    }

    /// Takes what happened and says what to do.
    pub fn step(&mut self, seen: &Seen<'_>) -> Action {
        let elapsed = seen.elapsed.as_secs_f64();
        let (cost, own) = self.charge(seen, elapsed);
        self.learn(seen, elapsed, cost, own);
        if let Some(stopped) = self.reason_to_stop(seen, cost) {
            self.state = State::Stopped(stopped);
        }
        match &mut self.state {
            State::Stopped(stopped) => Action::Stop(*stopped),
            State::Armed(since) => {
                *since += elapsed;
                let since = *since;
                self.stay_armed(seen, since)
            }
            State::Windows(period) => {
                period.left -= elapsed;
                period.until_open -= elapsed;
                period.own += own;
                self.next_window(seen)
            }
        }
    }

    /// Books cost and earnings; both in seconds.
    fn charge(&mut self, seen: &Seen<'_>, elapsed: f64) -> (f64, f64) {
        let trap = self.trap(seen);
        let (mut cost, mut own) = (0.0, 0.0);
        for process in seen.processes {
            let traps = process.traps as f64 * trap;
            cost += traps;
            own += (process.cpu_time.as_secs_f64() - traps).max(0.0);
        }
        if let Some(cycle) = seen.cycle {
            cost += cycle.cost.as_secs_f64() * self.budget.margin;
        }
        own = own.min(elapsed * f64::from(self.budget.processors.max(1)));
        self.ledger.pass(elapsed, own);
        self.look_back(elapsed, own);
        self.ledger.spend(cost);
        self.total.0 += cost / self.budget.margin;
        self.total.1 += own;
        (cost, own)
    }

    /// What the target used in its first second says what it used before.
    fn look_back(&mut self, elapsed: f64, own: f64) {
        let Some(seconds) = &mut self.beginning else { return };
        *seconds += elapsed;
        let (seconds, own) = (*seconds, self.total.1 + own);
        if seconds >= 1.0 {
            self.ledger.earned_before(0.5 * own / seconds);
            self.beginning = None;
        }
    }

    /// Seconds that a trap is taken to cost.
    fn trap(&self, seen: &Seen<'_>) -> f64 {
        (seen.trap_nanoseconds * 1e-9 * self.budget.margin).max(1e-9)
    }

    /// Follows the load, and what arming and traps cost.
    fn learn(&mut self, seen: &Seen<'_>, elapsed: f64, cost: f64, own: f64) {
        if elapsed > 0.0 {
            let rate = (own / elapsed).min(f64::from(self.budget.processors.max(1)));
            self.load += (1.0 - (-elapsed).exp()) * (rate - self.load);
        }
        if let (State::Armed(_), true) = (&self.state, elapsed > 0.0) {
            self.armed = (self.armed.0 * 0.8 + cost, self.armed.1 * 0.8 + own);
            self.rate(cost / elapsed);
        }
        let Some(cycle) = seen.cycle else { return };
        self.cycle.observe(f64::from(cycle.points), cycle.cost.as_secs_f64());
        let Some(allowance) = self.allowance.take() else { return };
        let (traps, armed) = (cycle.traps as f64 * self.trap(seen), cycle.armed.as_secs_f64());
        // The step had a tail too, in which only frees trap: of the target's own time, the window's share.
        let own = own * (armed / elapsed.max(1e-9)).min(1.0);
        self.armed = (self.armed.0 * 0.8 + traps, self.armed.1 * 0.8 + own);
        if armed > 0.0 {
            self.rate(traps / armed);
        }
        self.overshoot = (cost - allowance).max(self.overshoot * 0.8).max(0.0);
        self.overruns = if cost > 2.0 * allowance { self.overruns + 1 } else { 0 };
        let cut = cost > allowance || cycle.armed.as_secs_f64() < self.budget.shortest.as_secs_f64() * 0.9;
        let grown = (armed * GROWTH).max(self.budget.shortest.as_secs_f64());
        self.longest = if cut { 0.0 } else { grown.min(self.budget.longest.as_secs_f64()) };
        self.fitting = if self.fits() { self.fitting + 1 } else { 0 };
    }

    /// The cost of being armed: more is believed at once, less slowly.
    fn rate(&mut self, seen: f64) {
        let known = self.intensity.unwrap_or(seen);
        self.intensity = Some(if seen > known { seen } else { known + 0.25 * (seen - known) });
    }

    /// Whether being armed all the time would fit, by the last windows.
    fn fits(&self) -> bool {
        let (cost, own) = self.armed;
        own > 1e-3 && cost <= FITS * self.budget.share * own
    }

    fn reason_to_stop(&mut self, seen: &Seen<'_>, cost: f64) -> Option<Stopped> {
        self.late = if seen.late.as_secs_f64() > LATE_SECONDS { self.late + 1 } else { 0 };
        if self.late >= LATE_WAKES {
            return Some(Stopped::Starved { late: seen.late });
        }
        if self.overruns >= OVERRUNS {
            let allowed = seconds((cost - self.overshoot).max(0.0));
            return Some(Stopped::Overrun { cost: seconds(cost), allowed });
        }
        None
    }

    /// What arming and disarming everything costs; seconds.
    fn disarming(&self, seen: &Seen<'_>) -> f64 {
        let points = f64::from(seen.points.always) + f64::from(seen.points.optional);
        self.cycle.seconds(points * seen.processes.len() as f64) * self.budget.margin
    }

    /// Everything is armed: may it stay so?
    fn stay_armed(&mut self, seen: &Seen<'_>, since: f64) -> Action {
        let room = self.ledger.available() + self.loan - self.disarming(seen);
        let traps = room / self.trap(seen);
        if since >= PROVED_SECONDS {
            self.fitting_needed = FITTING_WINDOWS;
        }
        if traps >= FEWEST_TRAPS {
            return Action::StayArmed { traps: count(traps), look_again: seconds(LOOK_ARMED) };
        }
        if since < SPAN_SECONDS {
            self.fitting_needed = (self.fitting_needed * 2).min(MOST_FITTING_WINDOWS);
        }
        (self.loan, self.fitting, self.longest) = (0.0, 0, 0.0);
        self.state = State::Windows(Period::default());
        Action::Rest { look_again: seconds(LOOK_RESTING), why: Resting::Saving }
    }

    /// Nothing is armed: is it time for a window?
    fn next_window(&mut self, seen: &Seen<'_>) -> Action {
        let disarming = self.disarming(seen);
        // Arming everything must be earned first, if ten seconds can earn it at all.
        if self.budget.stays_armed
            && self.fitting >= self.fitting_needed
            && self.ledger.earned() > 3.0 * disarming
        {
            if self.ledger.available() <= 2.0 * disarming {
                return Action::Rest { look_again: seconds(LOOK_RESTING), why: Resting::Saving };
            }
            self.state = State::Armed(0.0);
            return self.stay_armed(seen, 0.0);
        }
        let State::Windows(mut period) = std::mem::replace(&mut self.state, State::Armed(0.0)) else {
            return Action::Rest { look_again: seconds(LOOK_RESTING), why: Resting::NotYet };
        };
        if period.left <= 0.0 {
            if !period.opened {
                self.owed += period.own;
            }
            match self.draw(seen, period.own) {
                Ok(next) => period = next,
                Err(stopped) => {
                    self.state = State::Stopped(stopped);
                    return Action::Stop(stopped);
                }
            }
        }
        let action = self.in_period(seen, &mut period);
        self.state = State::Windows(period);
        action
    }

    /// A new period, with a window at a random place in it. The period before used `own` seconds of CPU time.
    fn draw(&mut self, seen: &Seen<'_>, own: f64) -> Result<Period, Stopped> {
        let earned = self.ledger.earned();
        let slow = earned / self.ledger.covered();
        let outlook = Outlook {
            earned,
            earning: slow.min(self.load * self.budget.share),
            // Not known yet: as if tracing took half of what the target uses.
            intensity: self.intensity.unwrap_or(0.5 * self.load),
            cycle: &self.cycle,
            overshoot: self.overshoot,
            margin: self.budget.margin,
            points: seen.points,
            processes: u32::try_from(seen.processes.len()).unwrap_or(u32::MAX),
            shortest: self.budget.shortest.as_secs_f64(),
            longest: self.longest,
            tail: self.budget.tail.as_secs_f64(),
            longest_period: self.budget.longest_period.as_secs_f64(),
        };
        match window::plan(&outlook) {
            Ok(shape) => {
                self.hopeless = 0.0;
                let place = self.random.f64() * (shape.period - shape.length - shape.tail).max(0.0);
                Ok(Period { until_open: place, left: shape.period, shape: Some(shape), ..Period::default() })
            }
            Err(dear) => {
                self.hopeless += own;
                if self.hopeless > HOPELESS_SECONDS {
                    let (needed, allowed) = (seconds(dear.needed), seconds(dear.allowed));
                    return Err(Stopped::Hopeless { needed, allowed });
                }
                // While credit gathers at the beginning, often; a new look costs nothing.
                Ok(Period { left: 0.5, ..Period::default() })
            }
        }
    }

    fn in_period(&mut self, seen: &Seen<'_>, period: &mut Period) -> Action {
        let rest = |wait: f64, why| Action::Rest { look_again: seconds(wait.clamp(1e-3, LOOK_RESTING)), why };
        let Some(shape) = &period.shape else { return rest(period.left, Resting::TooDear) };
        if period.opened {
            return rest(period.left, Resting::NotYet);
        }
        if period.until_open > 0.0 {
            return rest(period.until_open, Resting::NotYet);
        }
        // Half of the traps that it is planned to see, or it would be cut short and see little for its arming.
        let room = self.ledger.available().min(shape.most) - shape.arming;
        if room < 0.5 * shape.traps {
            return rest(LOOK_RESTING / 2.0, Resting::Saving);
        }
        period.opened = true;
        self.allowance = Some(shape.arming + room);
        Action::Open(Window {
            length: seconds(shape.length),
            tail: seconds(shape.tail),
            optional: shape.optional,
            processes: shape.processes,
            traps: count(room / self.trap(seen)),
            represents: self.represents(shape.period),
        })
    }

    /// The time that a window stands for: its own period, and as much of those before it that had none as their share of work.
    fn represents(&mut self, period: f64) -> Duration {
        let owed = std::mem::take(&mut self.owed) / self.load.max(1e-6);
        // Three periods more at most: one window must not speak for minutes.
        seconds(period + owed.min(3.0 * period))
    }
}

/// A duration of so many seconds; none for less than none.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// So many whole ones.
#[expect(clippy::cast_sign_loss, reason = "not negative, and the cast saturates")]
fn count(number: f64) -> u64 {
    number.max(0.0) as u64
}

#[cfg(test)]
mod tests;
