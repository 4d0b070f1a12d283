//! The moment that matters: when a process or its control group nears its limit, stalls for memory, is killed for it, or is over a limit that somebody set.
//!
//! `group.rs` reads, `when.rs` understands `--snapshot-when`, `episode.rs` says each thing once; this file puts them together. The core is pure: figures and a time in, moments
//! out. It must not know what is done at a moment, nor how often anybody looks.

mod episode;
mod group;
mod when;

use std::time::Duration;

use rustc_hash::FxHashMap;

use self::episode::{Episode, Kills};
pub use self::{
    group::{Events, Group, GroupReader, Pressure},
    when::{Condition, ConditionError, Figure},
};

/// From what on it is a moment without being asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Share of the control group's limit that its memory is, what can be dropped at once left out.
    pub near_limit: f64,
    /// Percent of ten seconds in which some task waited for memory.
    pub some_percent: f64,
    /// The same for all tasks at once.
    pub full_percent: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        // A tenth of the limit is a few seconds of a fast leak: time to write a profile, and rarely reached by a service that is well.
        Self { near_limit: 0.9, some_percent: 40.0, full_percent: 10.0 }
    }
}

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Moment {
    /// A control group nears its limit.
    NearLimit {
        /// Share of the limit, 1.0 is all of it.
        share: f64,
        /// What is in use, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit_bytes: u64,
    },
    /// Its tasks wait for memory.
    Pressure {
        /// Percent of the last ten seconds in which some waited.
        some_percent: f64,
        /// In which all did.
        full_percent: f64,
    },
    /// The kernel has killed a process of it for memory.
    Killed {
        /// How many since the last such moment.
        times: u64,
    },
    /// A condition of `--snapshot-when` holds.
    Over {
        /// Of what.
        figure: Figure,
        /// What it is now, in bytes.
        bytes: u64,
        /// The condition, in its shortest form.
        condition: String,
    },
}

/// Of whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A process, by its number as we see it.
    Process(u32),
    /// A control group, by its folder.
    Group(String),
}

/// What is known of a process's memory, in bytes; what is not known is compared with nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    /// Live by the account.
    pub live: Option<u64>,
    /// Requested by the program.
    pub requested: Option<u64>,
    /// Held free by allocators.
    pub held: Option<u64>,
    /// Resident.
    pub resident: Option<u64>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Watch {
    thresholds: Thresholds,
    conditions: Vec<Condition>,
    groups: FxHashMap<String, OfGroup>,
    processes: FxHashMap<u32, Vec<Episode>>,
}

/// What is remembered of a group.
#[derive(Debug)]
struct OfGroup {
    near: Episode,
    pressure: Episode,
    kills: Kills,
    conditions: Vec<Episode>,
}

impl Watch {
    /// With conditions of `--snapshot-when`.
    #[must_use]
    pub fn new(thresholds: Thresholds, conditions: Vec<Condition>) -> Self {
        Self { thresholds, conditions, groups: FxHashMap::default(), processes: FxHashMap::default() }
    }

    /// Looks at a control group. `now` is the time since any moment in the past, by a clock that only goes forward.
    pub fn group(&mut self, now: Duration, group: &Group) -> Vec<Moment> {
        let fresh = || OfGroup {
            near: Episode::default(),
            pressure: Episode::default(),
            kills: Kills::default(),
            conditions: vec![Episode::default(); self.conditions.len()],
        };
        let state = self.groups.entry(group.name.clone()).or_insert_with(fresh);
        let mut moments = Vec::new();
        if let Some(times) = state.kills.observe(now, group.events.oom_kill) {
            moments.push(Moment::Killed { times });
        }
        let bytes = group.working_bytes();
        if let Some((limit_bytes, share)) = group.limit_bytes().zip(group.share()) {
            let ratio = share / self.thresholds.near_limit;
            if state.near.observe(now, ratio, ratio >= 1.0, Duration::ZERO) {
                moments.push(Moment::NearLimit { share, bytes, limit_bytes });
            }
            for (condition, episode) in self.conditions.iter().zip(&mut state.conditions) {
                if condition.figure == Figure::Share && condition.begins(episode, now, share * 100.0) {
                    moments.push(over(condition, bytes));
                }
            }
        }
        if let Some(Pressure { some_percent, full_percent }) = group.pressure {
            let Thresholds { some_percent: some, full_percent: full, .. } = self.thresholds;
            let ratio = (some_percent / some).max(full_percent / full);
            if state.pressure.observe(now, ratio, ratio >= 1.0, Duration::ZERO) {
                moments.push(Moment::Pressure { some_percent, full_percent });
            }
        }
        moments
    }

    /// Looks at a process.
    pub fn process(&mut self, now: Duration, pid: u32, figures: ProcessFigures) -> Vec<Moment> {
        let fresh = || vec![Episode::default(); self.conditions.len()];
        let episodes = self.processes.entry(pid).or_insert_with(fresh);
        let mut moments = Vec::new();
        for (condition, episode) in self.conditions.iter().zip(episodes) {
            let Some(bytes) = condition.figure.of(&figures) else { continue };
            if condition.begins(episode, now, bytes as f64) {
                moments.push(over(condition, bytes));
            }
        }
        moments
    }

    /// Forgets all but these: what is gone may come again with the same number.
    pub fn keep(&mut self, is_there: impl Fn(&Subject) -> bool) {
        self.groups.retain(|name, _| is_there(&Subject::Group(name.clone())));
        self.processes.retain(|pid, _| is_there(&Subject::Process(*pid)));
    }
}

fn over(condition: &Condition, bytes: u64) -> Moment {
    Moment::Over { figure: condition.figure, bytes, condition: condition.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn group(current_bytes: u64) -> Group {
        Group { name: "/shop".to_owned(), current_bytes, max_bytes: Some(GIB), ..Group::default() }
    }

    fn watch(conditions: &[&str]) -> Watch {
        let conditions = conditions.iter().map(|text| text.parse().unwrap()).collect();
        Watch::new(Thresholds::default(), conditions)
    }

    #[test]
    fn a_group_nears_its_limit_once() {
        let mut watch = watch(&[]);
        assert_eq!(watch.group(at(0), &group(GIB / 2)), []);
        let near = GIB / 100 * 95;
        let expected = Moment::NearLimit { share: near as f64 / GIB as f64, bytes: near, limit_bytes: GIB };
        assert_eq!(watch.group(at(1), &group(near)), [expected]);
        assert_eq!(watch.group(at(2), &group(near)), []);
        assert_eq!(
            watch.group(at(3), &group(GIB / 10 * 8)),
            [],
            "above 80 % of the threshold: the same episode"
        );
        assert_eq!(watch.group(at(4), &group(near)), []);
        assert_eq!(watch.group(at(5), &group(GIB / 10 * 7)), []);
        assert_eq!(watch.group(at(6), &group(near)).len(), 1, "it was away, and is back");
        assert_eq!(watch.group(at(6 + 599), &group(near)).len(), 0);
        assert_eq!(watch.group(at(6 + 600), &group(near)).len(), 1, "ten minutes on end");
    }

    #[test]
    fn files_that_can_be_dropped_are_no_danger() {
        let mut watch = watch(&[]);
        let cached = Group { inactive_file_bytes: GIB / 2, ..group(GIB) };
        assert_eq!(watch.group(at(0), &cached), []);
    }

    #[test]
    fn kills_are_told_from_the_second_look_on() {
        let mut watch = watch(&[]);
        let killed = |oom_kill| Group { events: Events { oom_kill, ..Events::default() }, ..group(0) };
        assert_eq!(watch.group(at(0), &killed(7)), [], "those of before were seen by nobody");
        assert_eq!(watch.group(at(1), &killed(9)), [Moment::Killed { times: 2 }]);
        assert_eq!(watch.group(at(2), &killed(10)), [], "not twice a minute");
        assert_eq!(watch.group(at(70), &killed(10)), [Moment::Killed { times: 1 }], "and none is lost");
    }

    #[test]
    fn pressure_of_either_kind() {
        let mut watch = watch(&[]);
        let pressed = |some_percent, full_percent| Group {
            pressure: Some(Pressure { some_percent, full_percent }),
            ..group(0)
        };
        assert_eq!(watch.group(at(0), &pressed(39.0, 9.0)), []);
        assert_eq!(watch.group(at(1), &pressed(12.0, 11.5)).len(), 1);
        assert_eq!(watch.group(at(2), &pressed(0.0, 0.0)), []);
        assert_eq!(watch.group(at(3), &pressed(55.0, 0.0)).len(), 1);
    }

    #[test]
    fn conditions_are_of_processes_but_for_shares() {
        let mut watch = watch(&["live>2GiB", "resident>=500MB for 30s", "share>80%"]);
        let figures =
            |live: u64, resident| ProcessFigures { live: Some(live), resident, ..ProcessFigures::default() };
        assert_eq!(watch.process(at(0), 7, figures(2 * GIB, Some(500_000_000))), []);
        let moments = watch.process(at(30), 7, figures(2 * GIB + 1, Some(500_000_000)));
        let told: Vec<(Figure, &str)> = moments
            .iter()
            .map(|moment| match moment {
                Moment::Over { figure, condition, .. } => (*figure, condition.as_str()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [(Figure::Live, "live>2GiB"), (Figure::Resident, "resident>=500000000 for 30s")]);
        assert_eq!(watch.process(at(31), 8, ProcessFigures::default()), [], "what is not known is not over");
        let over = watch.group(at(0), &group(GIB / 100 * 85));
        assert!(matches!(&over[..], [Moment::Over { figure: Figure::Share, .. }]), "{over:?}");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut watch = watch(&["live>1B"]);
        let figures = ProcessFigures { live: Some(5), ..ProcessFigures::default() };
        assert_eq!(watch.process(at(0), 7, figures).len(), 1);
        watch.keep(|subject| *subject == Subject::Process(7));
        assert_eq!(watch.process(at(1), 7, figures).len(), 0);
        watch.keep(|_| false);
        assert_eq!(watch.process(at(2), 7, figures).len(), 1);
        assert_eq!(watch.processes.len() + watch.groups.len(), 1);
    }
}
