//! How long a window is, how many points it arms, and how long the period is in which it lies.
//!
//! At least as much goes into traps as into arming, since a longer window costs little more than a shorter one; one window may
//! cost a third of what ten seconds earn, so that there are several in every ten seconds and one may lie close to the next. It must not know clocks, nor what was spent before.

use super::costs::CycleCost;
use super::governor::Points;

/// Share of ten seconds' budget that one window may cost, and share of that which arming may be. Where not even the fewest
/// points fit, a service that does little has one dear window now and then: two in ten seconds, or one.
const SHARES: [(f64, f64); 3] = [(1.0 / 3.0, 0.5), (0.47, 0.8), (0.9, 0.8)];
/// Share of a window's cost that its tail may be; a dearer tail is left out.
const TAIL_SHARE: f64 = 0.5;
/// Frees among traps: what traps for in a tail.
const FREES: f64 = 0.5;
/// Fewest of the optional points that are armed before whole processes are left out.
const FEWEST_POINTS: f64 = 1.0 / 4.0;
/// Share of what is earned that windows are planned to cost: the rest is for windows that cost more than planned.
const PLANNED: f64 = 0.92;
/// Period in seconds above which fewer points are armed: 40 windows a minute say more of the stacks of hot points than 17, and
/// cold points have little to say.
const WANTED_PERIOD: f64 = 1.5;
/// Halvings of the optional points until then.
const HALVINGS: u32 = 2;

/// What is known when a window is planned; seconds.
#[derive(Debug, Clone)]
pub struct Outlook<'a> {
    /// Budget earned in the last ten seconds.
    pub earned: f64,
    /// Budget earned in a second, by the lower of a fast and a slow mean.
    pub earning: f64,
    /// Cost of traps in a second with all points of all processes armed.
    pub intensity: f64,
    /// See [`CycleCost`].
    pub cycle: &'a CycleCost,
    /// Seconds by which recent windows cost more than planned.
    pub overshoot: f64,
    /// Factor by which all costs are taken too high.
    pub margin: f64,
    /// Points of one process.
    pub points: Points,
    /// Processes.
    pub processes: u32,
    /// Shortest window.
    pub shortest: f64,
    /// Longest window; the governor lets it grow slowly.
    pub longest: f64,
    /// Tail.
    pub tail: f64,
    /// Longest period.
    pub longest_period: f64,
}

/// A window to come; seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Length.
    pub length: f64,
    /// Free-only tail; 0 where it is too dear.
    pub tail: f64,
    /// Optional points to arm in each process.
    pub optional: u32,
    /// Processes to arm.
    pub processes: u32,
    /// Cost of arming and disarming, at worst.
    pub arming: f64,
    /// Cost of all traps, as expected.
    pub traps: f64,
    /// Most that the window may cost.
    pub most: f64,
    /// Length of the period.
    pub period: f64,
}

/// Budget that the smallest window needs, where what is earned is not enough; seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TooDear {
    /// What the smallest window costs.
    pub needed: f64,
    /// What one may cost.
    pub allowed: f64,
}

/// The next window.
///
/// # Errors
/// If not even one with the fewest points fits.
pub fn plan(outlook: &Outlook<'_>) -> Result<Shape, TooDear> {
    let mut shape = within(outlook, outlook.points.optional)?;
    for halvings in 1..=HALVINGS {
        if shape.period <= WANTED_PERIOD {
            break;
        }
        shape = within(outlook, outlook.points.optional >> halvings)?;
    }
    Ok(shape)
}

/// With at most so many optional points.
fn within(outlook: &Outlook<'_>, optional: u32) -> Result<Shape, TooDear> {
    let [ordinary, dear, dearest] = SHARES.map(|share| fit(outlook, share, optional));
    ordinary.or(dear).or(dearest)
}

fn fit(outlook: &Outlook<'_>, (largest, share): (f64, f64), at_most: u32) -> Result<Shape, TooDear> {
    let most = outlook.earned * largest;
    let for_arming = most * share - outlook.overshoot;
    let affordable = outlook.cycle.points(for_arming / outlook.margin);
    let (optional, processes) = spread(outlook, affordable);
    let optional = optional.min(at_most);
    let armed = f64::from(processes) * f64::from(outlook.points.always + optional);
    let arming = outlook.cycle.seconds(armed) * outlook.margin;
    if arming > for_arming {
        return Err(TooDear { needed: (arming + outlook.overshoot) / share, allowed: most });
    }
    let seen = f64::from(processes) / f64::from(outlook.processes.max(1));
    let rate = (outlook.intensity * outlook.margin * seen).max(1e-6);
    let room = most - arming - outlook.overshoot;
    let tail_cost = outlook.tail * rate * FREES;
    let (tail, tail_cost) =
        if tail_cost <= room * TAIL_SHARE { (outlook.tail, tail_cost) } else { (0.0, 0.0) };
    let wanted = arming.max(outlook.shortest * rate).min(room - tail_cost);
    let length = (wanted / rate).clamp(outlook.shortest, outlook.longest.max(outlook.shortest));
    let traps = (length * rate).min(room - tail_cost) + tail_cost;
    let cost = arming + traps + outlook.overshoot;
    let period = cost / (outlook.earning * PLANNED).max(1e-9);
    let period = period.min(outlook.longest_period).max((length + tail) * 1.25);
    Ok(Shape { length, tail, optional, processes, arming: arming + outlook.overshoot, traps, most, period })
}

/// How many optional points in how many processes: fewer points first, then fewer processes.
#[expect(clippy::cast_sign_loss, reason = "all factors are positive, and the cast saturates")]
fn spread(outlook: &Outlook<'_>, affordable: f64) -> (u32, u32) {
    let (always, optional) = (f64::from(outlook.points.always), f64::from(outlook.points.optional));
    let processes = f64::from(outlook.processes.max(1));
    let fewest = (optional * FEWEST_POINTS).ceil();
    let fit = affordable / processes - always;
    if fit >= fewest {
        return (fit.min(optional) as u32, outlook.processes.max(1));
    }
    let some = (affordable / (always + fewest).max(1.0)).floor().clamp(1.0, processes);
    (fewest as u32, some as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(cycle: &CycleCost) -> Outlook<'_> {
        Outlook {
            earned: 0.1,
            earning: 0.01,
            intensity: 0.3,
            cycle,
            overshoot: 0.0,
            margin: 1.0,
            points: Points { always: 47, optional: 170 },
            processes: 1,
            shortest: 0.005,
            longest: 0.05,
            tail: 0.05,
            longest_period: 5.0,
        }
    }

    #[test]
    fn a_window_and_its_period_cost_what_is_planned() {
        let cycle = CycleCost::default();
        let shape = plan(&outlook(&cycle)).unwrap();
        assert!(shape.arming + shape.traps <= shape.most + 1e-12, "{shape:?}");
        let rate = (shape.arming + shape.traps) / shape.period;
        assert!((rate - 0.0092).abs() < 1e-9, "{shape:?}");
        assert!(shape.period < 2.5 && shape.length >= 0.005, "{shape:?}");
        let rich = plan(&Outlook { earned: 0.4, earning: 0.04, ..outlook(&cycle) }).unwrap();
        assert!(rich.optional > shape.optional && rich.period <= 1.5, "{rich:?}");
    }

    #[test]
    fn what_is_scarce_takes_points_then_processes_then_all() {
        let cycle = CycleCost::default();
        let shape = plan(&Outlook { earned: 0.05, ..outlook(&cycle) }).unwrap();
        assert_eq!((shape.processes, shape.optional < 170), (1, true));
        let many = Outlook { processes: 100, earned: 0.2, ..outlook(&cycle) };
        let shape = plan(&many).unwrap();
        assert!((2..20).contains(&shape.processes), "{shape:?}");
        assert_eq!(shape.optional, 42);
        let refused = plan(&Outlook { earned: 1e-3, ..outlook(&cycle) }).unwrap_err();
        assert!(refused.needed > refused.allowed);
    }

    #[test]
    fn a_dear_tail_is_left_out() {
        let cycle = CycleCost::default();
        let shape = plan(&Outlook { intensity: 4.0, ..outlook(&cycle) }).unwrap();
        assert!(shape.tail.abs() < 1e-12, "{shape:?}");
        assert!(shape.arming + shape.traps <= shape.most + 1e-12);
    }
}
