//! The governor against a plain model of a target: any load, any cost of traps that it may be wrong about, tracers that are starved.
#![expect(clippy::cast_sign_loss, reason = "the numbers of a simulation are not negative")]

use std::time::Duration;

use proptest::prelude::*;

use super::{Action, Budget, CycleSeen, Governor, Points, ProcessSeen, Resting, Seen, Stopped};

/// A stretch of steady load.
#[derive(Debug, Clone, Copy)]
struct Load {
    seconds: f64,
    /// CPU seconds that the target wants in a second.
    processors: f64,
    /// Traps in a second of its own CPU time.
    events: f64,
}

/// What really happens, second by second.
struct Model {
    loads: Vec<Load>,
    trap_seconds: f64,
    cycle_factor: f64,
    /// Seconds by which every wake-up is late.
    late: f64,
    processes: usize,
    now: f64,
    /// (end, own CPU time, cost) of every step.
    history: Vec<(f64, f64, f64)>,
    windows: u32,
    armed: f64,
}

impl Model {
    fn new(loads: &[Load]) -> Self {
        let loads = loads.to_vec();
        let (history, now) = (Vec::new(), 0.0);
        let (trap_seconds, cycle_factor, late, processes) = (1e-6, 1.0, 0.0, 1);
        Self { loads, trap_seconds, cycle_factor, late, processes, now, history, windows: 0, armed: 0.0 }
    }

    fn load(&self) -> Load {
        let mut begin = 0.0;
        for load in &self.loads {
            begin += load.seconds;
            if self.now < begin {
                return *load;
            }
        }
        self.loads[self.loads.len() - 1]
    }

    /// Runs for so long with a share of its events trapping, or until so many traps; gives own CPU time, traps and time.
    fn run(&mut self, seconds: f64, armed: f64, limit: f64) -> (f64, f64, f64) {
        let (mut own, mut traps, mut left) = (0.0, 0.0, seconds);
        while left > 1e-9 && (traps < limit || armed <= 0.0) {
            let load = self.load();
            // Fine enough that a limit of traps is met to a fifth of a millisecond.
            let piece = left.min(if armed > 0.0 { 0.0002 } else { 0.002 });
            let speed = 1.0 / (1.0 + load.events * armed * self.trap_seconds);
            let worked = piece * load.processors * speed;
            own += worked;
            traps += worked * load.events * armed;
            left -= piece;
            self.now += piece;
        }
        (own, traps, seconds - left)
    }

    /// Lets the governor drive for `seconds`.
    fn drive(&mut self, governor: &mut Governor, seconds: f64) -> Option<Stopped> {
        let end = self.now + seconds;
        let (mut elapsed, mut own, mut traps, mut cycle, mut armed) = (0.0, 0.0, 0.0, None, false);
        while self.now < end {
            let trap_cost = traps * self.trap_seconds;
            let cpu = own + trap_cost;
            let cost = trap_cost + cycle.map_or(0.0, |cycle: CycleSeen| cycle.cost.as_secs_f64());
            self.history.push((self.now, own, cost));
            let each = ProcessSeen {
                cpu_time: Duration::from_secs_f64(cpu / self.processes as f64),
                traps: (traps / self.processes as f64) as u64,
            };
            let action = governor.step(&Seen {
                elapsed: Duration::from_secs_f64(elapsed),
                processes: &vec![each; self.processes],
                points: Points { always: 47, optional: 170 },
                trap_nanoseconds: 1000.0,
                cycle: cycle.take(),
                late: Duration::from_secs_f64(self.late),
            });
            let before = self.now;
            traps = 0.0;
            match action {
                Action::Stop(stopped) => return Some(stopped),
                Action::Rest { look_again, .. } => {
                    if std::mem::replace(&mut armed, false) {
                        cycle = Some(self.cycle(217.0 * self.processes as f64, 0.0, 0.0));
                    }
                    (own, _, _) = self.run(look_again.as_secs_f64() + self.late, 0.0, 0.0);
                }
                Action::StayArmed { traps: limit, look_again } => {
                    armed = true;
                    (own, traps, _) = self.run(look_again.as_secs_f64(), 1.0, limit as f64);
                    self.armed += self.now - before;
                }
                Action::Open(window) => {
                    self.windows += 1;
                    let length = window.length.as_secs_f64() + self.late;
                    // A late tracer ends it late: the limit then only turns traps away, which cost the same here.
                    let limit = if self.late > 0.0 { f64::INFINITY } else { window.traps as f64 };
                    let seen;
                    (own, traps, seen) = self.run(length, 1.0, limit);
                    self.armed += seen;
                    let in_window = traps;
                    let tail = self.run(window.tail.as_secs_f64(), 0.5, limit - traps);
                    (own, traps) = (own + tail.0, traps + tail.1);
                    let points = f64::from(window.processes) * f64::from(47 + window.optional);
                    cycle = Some(self.cycle(points, seen, in_window));
                }
            }
            elapsed = self.now - before;
        }
        None
    }

    fn cycle(&self, points: f64, armed: f64, traps: f64) -> CycleSeen {
        let cost = self.cycle_factor * (0.5e-3 + 80e-6 * points);
        CycleSeen {
            points: points as u32,
            cost: Duration::from_secs_f64(cost),
            armed: Duration::from_secs_f64(armed),
            traps: traps as u64,
        }
    }

    /// The dearest ten seconds, as cost over what `share` of their own CPU time allows.
    fn worst(&self, share: f64) -> f64 {
        let (mut first, mut own, mut cost, mut worst) = (0, 0.0, 0.0, 0.0_f64);
        for &(end, used, spent) in &self.history {
            own += used;
            cost += spent;
            while self.history[first].0 < end - 10.0 {
                own -= self.history[first].1;
                cost -= self.history[first].2;
                first += 1;
            }
            // What is being spent is what must fit; later, older work leaves the span sooner than the cost of it.
            if spent > 0.0 {
                worst = worst.max(cost / (share * own).max(1e-12));
            }
        }
        worst
    }

    fn used(&self, share: f64, from: f64) -> f64 {
        let late = self.history.iter().filter(|(end, ..)| *end > from);
        let (own, cost) = late.fold((0.0, 0.0), |sum, row| (sum.0 + row.1, sum.1 + row.2));
        cost / (share * own)
    }
}

fn attached() -> Governor {
    Governor::new(Budget::attached(1.0, 8, 42))
}

fn steady(processors: f64, events: f64) -> Model {
    Model::new(&[Load { seconds: 1e9, processors, events }])
}

#[test]
fn steady_loads_use_most_of_the_budget_and_no_more() {
    for (processors, events) in
        [(1.0, 300e3), (1.0, 1.9e6), (0.2, 300e3), (4.0, 300e3), (8.0, 5e6), (1.0, 30e3)]
    {
        let (mut model, mut governor) = (steady(processors, events), attached());
        assert_eq!(model.drive(&mut governor, 120.0), None);
        let (used, worst) = (model.used(0.01, 30.0), model.worst(0.01));
        println!(
            "{processors} processors, {events} events/s: {:.0} % used, worst ten seconds {:.0} %, {} windows, armed {:.3} s",
            used * 100.0,
            worst * 100.0,
            model.windows,
            model.armed
        );
        assert!(used >= 0.6 && worst <= 1.0, "{used} {worst}");
        let told = governor.cost_share().unwrap();
        assert!((told / 0.01 - model.used(0.01, -1.0)).abs() < 0.05);
    }
}

#[test]
fn what_fits_is_seen_all_the_time() {
    let (mut model, mut governor) = (steady(1.0, 5e3), attached());
    assert_eq!(model.drive(&mut governor, 200.0), None);
    assert!(model.armed > 100.0, "{}", model.armed);
    assert!(model.worst(0.01) <= 1.0);
    let mut command = Governor::new(Budget::command(100.0, 8, 1));
    let mut model = steady(1.0, 500e3);
    model.drive(&mut command, 20.0);
    assert_eq!((model.windows, model.armed >= 20.0), (0, true));
}

#[test]
fn a_command_begins_in_full_and_takes_at_most_twice_the_time() {
    for events in [1.5e6, 5e6, 15e6] {
        let mut command = Governor::new(Budget::command(100.0, 2, 1));
        let mut model = steady(1.0, events);
        assert_eq!(model.drive(&mut command, 0.2), None);
        assert!(model.armed >= 0.2 && model.windows == 0);
        assert_eq!(model.drive(&mut command, 60.0), None);
        let own: f64 = model.history.iter().map(|row| row.1).sum();
        println!(
            "{events} events/s: {:.2} times as long, armed {:.0} %, {} windows",
            model.now / own,
            model.armed / model.now * 100.0,
            model.windows
        );
        assert!(model.used(1.0, -1.0) <= 1.0 && model.used(1.0, 5.0) >= 0.6);
        assert!(model.windows > 100 && model.armed > 5.0);
    }
}

#[test]
fn it_backs_off_at_once_and_recovers() {
    let low = Load { seconds: 60.0, processors: 0.5, events: 100e3 };
    let high = Load { seconds: 60.0, processors: 0.5, events: 1e6 };
    let mut model = Model::new(&[low, high, low]);
    let mut governor = attached();
    assert_eq!(model.drive(&mut governor, 200.0), None);
    assert!(model.worst(0.01) <= 1.0, "{}", model.worst(0.01));
    assert!(model.used(0.01, 150.0) >= 0.6, "{}", model.used(0.01, 150.0));
}

#[test]
fn a_target_that_sleeps_is_left_alone_and_found_again() {
    let busy = Load { seconds: 30.0, processors: 1.0, events: 300e3 };
    let asleep = Load { seconds: 300.0, processors: 0.0, events: 0.0 };
    let mut model = Model::new(&[busy, asleep, busy]);
    let mut governor = attached();
    model.drive(&mut governor, 40.0);
    let windows = model.windows;
    model.drive(&mut governor, 285.0);
    assert_eq!(model.windows, windows);
    model.drive(&mut governor, 35.0);
    assert!(model.windows > windows + 3);
    assert!(model.worst(0.01) <= 1.0, "{}", model.worst(0.01));
}

#[test]
fn a_hundred_children_share_one_budget() {
    let (mut model, mut governor) = (steady(4.0, 300e3), attached());
    model.drive(&mut governor, 30.0);
    model.processes = 100;
    assert_eq!(model.drive(&mut governor, 90.0), None);
    assert!(model.worst(0.01) <= 1.0, "{}", model.worst(0.01));
    let used = model.used(0.01, 60.0);
    assert!(used >= 0.6, "{used}");
}

#[test]
fn a_starved_tracer_spends_less_or_stops() {
    let (mut model, mut governor) = (steady(1.0, 300e3), attached());
    model.drive(&mut governor, 30.0);
    (model.late, model.history) = (0.5, Vec::new());
    let stopped = model.drive(&mut governor, 300.0);
    let spent: f64 = model.history.iter().map(|row| row.2).sum();
    let own: f64 = model.history.iter().map(|row| row.1).sum();
    assert!(spent <= 0.0105 * own || stopped.is_some(), "{spent} of {own}, {stopped:?}");
    let (mut model, mut governor) = (steady(1.0, 300e3), attached());
    model.late = 2.0;
    assert!(matches!(model.drive(&mut governor, 60.0), Some(Stopped::Starved { .. })));
}

#[test]
fn a_budget_that_no_window_fits_ends_tracing() {
    let (mut model, mut governor) = (steady(1.0, 300e3), Governor::new(Budget::attached(0.01, 8, 1)));
    let stopped = model.drive(&mut governor, 1000.0);
    assert!(matches!(stopped, Some(Stopped::Hopeless { .. })), "{stopped:?}");
    assert!(stopped.unwrap().to_string().contains("raise --budget"));
    assert!(model.history.iter().all(|row| row.2 <= 0.0));
}

#[test]
fn clocks_that_stand_or_jump_open_no_window() {
    let mut governor = attached();
    let busy = [ProcessSeen { cpu_time: Duration::from_secs(1), traps: 0 }];
    let seen = Seen {
        elapsed: Duration::ZERO,
        processes: &busy,
        points: Points { always: 47, optional: 170 },
        trap_nanoseconds: 1000.0,
        cycle: None,
        late: Duration::ZERO,
    };
    for step in 0..500 {
        let elapsed = if step % 100 == 99 { Duration::from_secs(7200) } else { Duration::ZERO };
        let action = governor.step(&Seen { elapsed, ..seen });
        assert!(matches!(action, Action::Rest { why: Resting::TooDear, .. }), "{action:?}");
    }
    let action =
        governor.step(&Seen { elapsed: Duration::MAX, processes: &[], trap_nanoseconds: f64::NAN, ..seen });
    assert!(matches!(action, Action::Rest { .. }), "{action:?}");
}

prop_compose! {
    fn load()(seconds in 0.05..20.0_f64, processors in 0.0..8.0_f64, events in prop_oneof![Just(0.0), 1e3..1e5_f64, 1e5..1e7_f64]) -> Load {
        Load { seconds, processors, events }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the load does, and with traps up to 15 % dearer than known: no ten seconds cost more than their budget.
    #[test]
    fn any_ten_seconds_keep_the_budget(
        loads in prop::collection::vec(load(), 1..12), error in 0.5..1.15_f64, cycle in 0.2..1.1_f64, seed: u64,
    ) {
        let mut model = Model::new(&loads);
        (model.trap_seconds, model.cycle_factor) = (1e-6 * error, cycle);
        let mut governor = Governor::new(Budget::attached(1.0, 8, seed));
        model.drive(&mut governor, 60.0);
        prop_assert!(model.worst(0.01) <= 1.0, "{} with {} windows", model.worst(0.01), model.windows);
    }

    /// A command at 100 %: what it cost is never more than its own time and what was lent.
    #[test]
    fn a_command_keeps_its_budget(loads in prop::collection::vec(load(), 1..8), seed: u64) {
        let mut model = Model::new(&loads);
        let mut governor = Governor::new(Budget::command(100.0, 8, seed));
        model.drive(&mut governor, 40.0);
        let (mut own, mut cost) = (0.0, 0.0);
        for (_, used, spent) in &model.history {
            own += used;
            cost += spent;
            prop_assert!(cost <= own + 1.0, "{cost} of {own}");
        }
    }
}
