//! A process's memory over time as a drawing inside the page: requested and held stacked, resident as a line.
//!
//! Free memory that is kept and memory that is used look alike to the host; here one sees which of them grows. It must not know the page.

use std::time::{Duration, SystemTime};

use super::markup::Markup;
use crate::profile::{Look, Series};
use crate::serve::http::moment;

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 160.0;
/// Of the axes' texts.
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 20.0;
const TOP: f64 = 8.0;
const RIGHT: f64 = 22.0;
/// Steps of the time axis, in seconds.
const TIME_STEPS: [u64; 17] =
    [1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 604_800];
/// Most ticks of the time axis.
const MOST_TICKS: u64 = 5;
/// Steps of the other that are aimed at, and the most.
const AIM: f64 = 4.0;
const MOST_STEPS: u32 = 10;

/// Where moments and bytes are on the drawing.
struct Scale {
    start: SystemTime,
    from_nanoseconds: u64,
    to_nanoseconds: u64,
    step_bytes: f64,
    unit: &'static str,
    unit_bytes: f64,
    most_bytes: f64,
}

/// Draws a series whose recording began at `start`; nothing where there are fewer than two looks.
pub fn draw(series: &Series, start: SystemTime, markup: &mut Markup) {
    let Some(scale) = Scale::of(series.looks(), start) else {
        markup.raw("<p class=\"note\">One look so far: a line takes two.</p>");
        return;
    };
    markup.raw("<svg viewBox=\"0 0 400 160\" role=\"img\" aria-label=\"Memory over time: requested, held free, resident\">");
    scale.axes(markup);
    for run in runs(series.looks(), |look| look.figures.requested_bytes().zip(look.figures.held_bytes())) {
        let below: Vec<(f64, f64)> =
            run.iter().map(|(look, (requested, _))| scale.point(look, *requested)).collect();
        let above: Vec<(f64, f64)> = run
            .iter()
            .map(|(look, (requested, held))| scale.point(look, requested.saturating_add(*held)))
            .collect();
        let floor: Vec<(f64, f64)> = below.iter().map(|(x, _)| (*x, HEIGHT - BOTTOM)).collect();
        area("<polygon class=\"area-requested\" points=\"", &floor, &below, markup);
        area("<polygon class=\"area-held\" points=\"", &below, &above, markup);
    }
    for run in runs(series.looks(), |look| look.figures.resident_bytes()) {
        markup.raw("<polyline class=\"line-resident\" points=\"");
        let line: Vec<(f64, f64)> = run.iter().map(|(look, bytes)| scale.point(look, *bytes)).collect();
        points(line.iter(), markup);
        markup.raw("\"/>");
    }
    markup.raw("</svg>");
}

/// Stretches in which something is known.
fn runs<T>(looks: &[Look], of: impl Fn(&Look) -> Option<T>) -> Vec<Vec<(&Look, T)>> {
    let mut runs = vec![Vec::new()];
    for look in looks {
        match (of(look), runs.last_mut()) {
            (Some(value), Some(run)) => run.push((look, value)),
            (None, Some(run)) if !run.is_empty() => runs.push(Vec::new()),
            _ => {}
        }
    }
    runs.retain(|run| run.len() > 1);
    runs
}

fn area(open: &'static str, below: &[(f64, f64)], above: &[(f64, f64)], markup: &mut Markup) {
    markup.raw(open);
    points(above.iter().chain(below.iter().rev()), markup);
    markup.raw("\"/>");
}

fn points<'a>(points: impl Iterator<Item = &'a (f64, f64)>, markup: &mut Markup) {
    for (x, y) in points {
        markup.number(*x).raw(",").number(*y).raw(" ");
    }
}

impl Scale {
    fn of(looks: &[Look], start: SystemTime) -> Option<Self> {
        let [first, .., last] = looks else { return None };
        let figures = looks.iter().map(|look| &look.figures);
        let highest = figures.map(|figures| {
            let stacked = figures.requested_bytes().zip(figures.held_bytes());
            let stacked = stacked.map_or(0, |(requested, held)| requested.saturating_add(held));
            stacked.max(figures.resident_bytes().unwrap_or(0))
        });
        let highest = highest.max().filter(|bytes| *bytes > 0)? as f64;
        let (unit, unit_bytes) = unit(highest);
        let step_bytes = nice(highest / unit_bytes / AIM) * unit_bytes;
        let most_bytes = (highest / step_bytes).ceil() * step_bytes;
        let (from_nanoseconds, to_nanoseconds) = (first.since_nanoseconds, last.since_nanoseconds);
        (to_nanoseconds > from_nanoseconds).then_some(Self {
            start,
            from_nanoseconds,
            to_nanoseconds,
            step_bytes,
            unit,
            unit_bytes,
            most_bytes,
        })
    }

    fn x(&self, nanoseconds: u64) -> f64 {
        let whole = (self.to_nanoseconds - self.from_nanoseconds) as f64;
        let share = nanoseconds.saturating_sub(self.from_nanoseconds) as f64 / whole;
        LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, bytes: f64) -> f64 {
        HEIGHT - BOTTOM - bytes / self.most_bytes * (HEIGHT - BOTTOM - TOP)
    }

    fn point(&self, look: &Look, bytes: u64) -> (f64, f64) {
        (self.x(look.since_nanoseconds), self.y(bytes as f64))
    }

    fn axes(&self, markup: &mut Markup) {
        for step in 0..=MOST_STEPS {
            let bytes = f64::from(step) * self.step_bytes;
            // A little more, since sums of steps are not exact.
            if bytes > self.most_bytes * 1.001 {
                break;
            }
            let y = self.y(bytes);
            markup.raw("<line class=\"grid\" x1=\"").number(LEFT).raw("\" x2=\"").number(WIDTH - RIGHT);
            markup.raw("\" y1=\"").number(y).raw("\" y2=\"").number(y).raw("\"/>");
            markup.raw("<text text-anchor=\"end\" x=\"").number(LEFT - 6.0).raw("\" y=\"").number(y + 4.0);
            let label = match step {
                0 => "0".to_owned(),
                _ => format!("{} {}", bytes / self.unit_bytes, self.unit),
            };
            markup.raw("\">").text(&label).raw("</text>");
        }
        for (x, label) in self.ticks() {
            markup.raw("<text text-anchor=\"middle\" x=\"").number(x).raw("\" y=\"").number(HEIGHT - 5.0);
            markup.raw("\">").text(&label).raw("</text>");
        }
    }

    /// Full minutes, hours or days, and what a clock says then.
    fn ticks(&self) -> Vec<(f64, String)> {
        let seconds = |nanoseconds: u64| moment::seconds(self.start + Duration::from_nanos(nanoseconds));
        let (first, last) = (seconds(self.from_nanoseconds), seconds(self.to_nanoseconds));
        let step = TIME_STEPS.into_iter().find(|step| (last - first.min(last)) / step <= MOST_TICKS);
        // Years: the ends are enough.
        let step = step.unwrap_or((last - first.min(last)).max(1));
        let start = moment::seconds(self.start);
        let full = (first.div_ceil(step)..=last / step).map(|number| number * step);
        let inside = full.take(MOST_TICKS as usize + 2).filter_map(|at| {
            let since = Duration::from_secs(at.checked_sub(start)?);
            let x = self.x(u64::try_from(since.as_nanos()).ok()?);
            let said = moment::utc(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
            let label = match step {
                0..60 => said.get(11..19),
                60..86_400 => said.get(11..16),
                _ => said.get(5..10),
            };
            // A text in the middle of its place must not leave the drawing.
            (x < WIDTH - 16.0).then(|| (x, label.unwrap_or_default().to_owned()))
        });
        inside.collect()
    }
}

fn unit(bytes: f64) -> (&'static str, f64) {
    let units = [("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)];
    let mut sizes = units.into_iter().map(|(name, power)| (name, 1024_f64.powi(power)));
    sizes.find(|(_, size)| bytes >= *size).unwrap_or(("B", 1.0))
}

/// The next of 1, 2, 5, 10, 20, …
fn nice(step: f64) -> f64 {
    let magnitude = 10_f64.powf(step.log10().floor());
    let found = [1.0, 2.0, 5.0].into_iter().map(|digit| digit * magnitude).find(|nice| *nice >= step);
    found.unwrap_or(10.0 * magnitude)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quick_xml::{Reader, events::Event};

    use super::*;
    use crate::profile::{Figures, Known, MallocBytes, PoolBytes, ResidentBytes};

    fn look(nanoseconds: u64, [requested, held, resident]: [u64; 3]) -> Look {
        let pools = PoolBytes { in_use_bytes: requested, ..PoolBytes::default() };
        let malloc = MallocBytes { free_bytes: held, ..MallocBytes::default() };
        let resident = ResidentBytes { anonymous_bytes: resident, ..ResidentBytes::default() };
        let figures = Figures {
            pools: Known::Known(pools),
            malloc: Known::Known(malloc),
            resident: Known::Known(resident),
        };
        Look::after(Duration::from_nanos(nanoseconds), figures)
    }

    fn drawing(looks: Vec<Look>, start: SystemTime) -> String {
        let mut series = Series::default();
        looks.into_iter().for_each(|look| series.push(look, Series::MOST));
        let mut markup = Markup::default();
        draw(&series, start, &mut markup);
        markup.finish()
    }

    #[test]
    fn steps_and_units_are_round() {
        assert_eq!([nice(0.9), nice(1.0), nice(1.1), nice(3.0), nice(51.0)], [1.0, 1.0, 2.0, 5.0, 100.0]);
        let size = |bytes| unit(bytes);
        assert_eq!(size(1023.0), ("B", 1.0));
        assert_eq!(size(1024.0), ("KiB", 1024.0));
        assert_eq!(size(5e9), ("GiB", 1_073_741_824.0));
        assert_eq!(size(5e12), ("TiB", 1_099_511_627_776.0));
    }

    #[test]
    fn axes_say_what_a_clock_says() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_057_100);
        let mebibytes = |number| number << 20;
        let looks = (0..31).map(|minute| {
            look(minute * 60_000_000_000, [mebibytes(60 + minute), mebibytes(20), mebibytes(90)])
        });
        let svg = drawing(looks.collect(), start);
        for label in [">16:50<", ">17:00<", ">17:10<", ">50 MiB<", ">150 MiB<", ">0<"] {
            assert!(svg.contains(label), "{label} in {svg}");
        }
    }

    proptest! {
        /// Whatever the figures are, it is well-formed and every point is inside.
        #[test]
        fn nothing_leaves_the_drawing(figures in prop::collection::vec((any::<u64>(), any::<[u64; 3]>(), any::<bool>()), 0..20), start in 0..300_000_000_000_u64) {
            let mut times: Vec<u64> = figures.iter().map(|(time, _, _)| *time).collect();
            times.sort_unstable();
            let looks = times.into_iter().zip(&figures).map(|(time, (_, figures, known))| match known {
                true => look(time, *figures),
                false => Look::after(Duration::from_nanos(time), Figures::unknown("no")),
            });
            let svg = drawing(looks.collect(), SystemTime::UNIX_EPOCH + Duration::from_secs(start));
            let mut reader = Reader::from_str(&svg);
            loop {
                match reader.read_event().unwrap() {
                    Event::Eof => break,
                    Event::Empty(element) => for attribute in element.attributes().map(Result::unwrap) {
                        if attribute.key.as_ref() == b"points" {
                            for pair in std::str::from_utf8(&attribute.value).unwrap().split_whitespace() {
                                let (x, y) = pair.split_once(',').unwrap();
                                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                                prop_assert!((LEFT - 0.1..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{} {}", x, y);
                            }
                        }
                    },
                    _ => {}
                }
            }
        }
    }
}
