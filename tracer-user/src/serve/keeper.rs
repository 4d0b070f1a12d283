//! Takes what recordings tell: what is known now, what goes to disk, what is pushed, and the last accounts of those that were killed.
//!
//! It must not know how recordings are made, nor who asks.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustc_hash::FxHashMap;

use super::engine::News;
use super::history::Span;
use super::state::{Kind, Snapshot, State};
use crate::output::{flamegraph, text};
use crate::profile::{Metric, Profile, Unit};
use crate::session::Control;

/// Where each stretch goes besides the history.
pub type Sink = Box<dyn Fn(Kind, Span, &Arc<Profile>) + Send>;

/// See the head of this file.
pub struct Keeper {
    state: State,
    sinks: Vec<Sink>,
    /// The snapshot before, by recording.
    before: FxHashMap<Kind, Arc<Profile>>,
    problems: FxHashMap<Kind, String>,
    /// Who can be asked for a snapshot.
    controls: Vec<(Kind, Arc<Control>)>,
    /// Moments that wait for the next snapshot of a recording.
    awaited: Vec<(Kind, Moment)>,
}

/// A moment of some processes, and when it was.
#[derive(Debug, Clone)]
struct Moment {
    pids: Vec<u32>,
    what: String,
    at: SystemTime,
}

/// Moments that wait at one time: a recording that does not work hands over none.
const MOST_AWAITED: usize = 64;

impl Keeper {
    /// Nothing has been told yet.
    pub fn new(state: State, sinks: Vec<Sink>, controls: Vec<(Kind, Arc<Control>)>) -> Self {
        Self {
            state,
            sinks,
            before: FxHashMap::default(),
            problems: FxHashMap::default(),
            controls,
            awaited: Vec::new(),
        }
    }

    /// Takes all that is told, until nobody can tell any more.
    pub fn run(mut self, news: &Receiver<News>) {
        while let Ok(news) = news.recv() {
            self.take(news);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Snapshot(kind, profile) => self.keep(kind, Arc::new(*profile)),
            News::Last(kind, profile) => {
                self.keep(kind, Arc::new(*profile));
                self.before.remove(&kind);
            }
            News::Victims(kind, profile, pids) => self.keep_victims(kind, &profile, &pids),
            News::Moment(pids, what) => self.moment(pids, what),
            News::Problem(kind, why) => self.problem(kind, why),
        }
    }

    fn problem(&mut self, kind: Kind, why: Option<String>) {
        match why {
            Some(why) => {
                // What was is no longer what is.
                self.before.remove(&kind);
                self.awaited.retain(|(of, _)| *of != kind);
                self.state.change(|now| now.forget(kind));
                tracing::warn!(kind = kind.name(), "{}", text::visible(&why));
                self.problems.insert(kind, why);
            }
            None => {
                self.problems.remove(&kind);
            }
        }
        let mut lines: Vec<String> =
            self.problems.iter().map(|(kind, why)| format!("{}: {why}", kind.name())).collect();
        lines.sort_unstable();
        self.state.change(|now| now.problems = lines);
    }

    /// Has all recordings say what they know, and keeps that.
    fn moment(&mut self, pids: Vec<u32>, what: String) {
        tracing::warn!(?pids, "{}", text::visible(&what));
        let moment = Moment { pids, what, at: SystemTime::now() };
        // One that does not work never answers, and its moments would take the others' room.
        let works = |kind: &Kind| !self.problems.contains_key(kind);
        for (kind, control) in self.controls.iter().filter(|(kind, _)| works(kind)) {
            if self.awaited.len() < MOST_AWAITED {
                self.awaited.push((*kind, moment.clone()));
                control.ask_for_snapshot();
            }
        }
    }

    fn keep_moments(&mut self, of: Kind, profile: &Profile) {
        let (due, others) = std::mem::take(&mut self.awaited).into_iter().partition(|(kind, _)| *kind == of);
        self.awaited = others;
        let due: Vec<(Kind, Moment)> = due;
        for (kind, moment) in due {
            let mut profile = profile.clone();
            profile.retain_processes(|process| moment.pids.contains(&process.pid) && !process.ended);
            if profile.samples.is_empty() {
                continue;
            }
            let what = moment.what.split(':').next().unwrap_or_default().to_owned();
            let pid = moment.pids.first().copied().unwrap_or_default();
            self.keep_incident(&format!("{what}-{}-{pid}-{}", file_time(moment.at), kind.name()), &profile);
        }
    }

    /// A snapshot: what is new since the one before is kept, and it is what is known now.
    fn keep(&mut self, kind: Kind, profile: Arc<Profile>) {
        let end = end_of(&profile);
        let before = self.before.get(&kind).filter(|before| is_of_same_recording(before, &profile));
        let part = match before {
            Some(before) => Arc::new(profile.since(before)),
            None => Arc::clone(&profile),
        };
        let span = Span { from: start_of(&part), to: end };
        if let Err(error) = self.state.history.append(kind, span, &part) {
            tracing::warn!(kind = kind.name(), "a minute is lost: {:#}", anyhow::Error::new(error));
            self.state.change(|now| now.minutes_lost += 1);
        }
        self.sinks.iter().for_each(|sink| sink(kind, span, &part));
        self.keep_moments(kind, &profile);
        self.before.insert(kind, Arc::clone(&profile));
        let snapshot = Some(Snapshot { taken: end, profile });
        self.state.change(|now| match kind {
            Kind::Allocations => now.allocations = snapshot,
            Kind::Resident => now.resident = snapshot,
        });
    }

    /// What processes held that were killed for want of memory, one file each.
    fn keep_victims(&self, kind: Kind, profile: &Profile, pids: &[u32]) {
        let time = file_time(SystemTime::now());
        for pid in pids {
            let mut profile = profile.clone();
            profile.retain_processes(|process| process.pid == *pid);
            if let Some(windows) = &mut profile.recording.windows {
                // Blocks of a process that has ended are looked at no more, and count as gone.
                windows.knows_live = false;
                windows.live_unknown = Some("the process had ended".to_owned());
                profile.recording.default_metric = Metric::Allocated.name().to_owned();
            }
            if profile.samples.is_empty() {
                continue;
            }
            let name = format!("oom-{time}-{pid}-{}", kind.name());
            tracing::warn!(pid, "killed for want of memory; its last account is kept as `{name}`");
            self.keep_incident(&name, &profile);
        }
    }

    fn keep_incident(&self, name: &str, profile: &Profile) {
        let mut svg = Vec::new();
        let metric = if profile.knows(Metric::Live) { Metric::Live } else { Metric::Allocated };
        let options = flamegraph::Options { metric, unit: Unit::Bytes, inverted: false };
        let drawn = flamegraph::write(profile, options, &mut svg);
        let svg = drawn.is_ok().then_some(svg.as_slice());
        if let Err(error) = self.state.history.keep_incident(name, profile, svg) {
            tracing::warn!("the last account `{name}` is lost: {:#}", anyhow::Error::new(error));
            self.state.change(|now| now.minutes_lost += 1);
        }
    }
}

/// As it stands in files' names.
fn file_time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().replace(':', "-")
}

fn is_of_same_recording(one: &Profile, other: &Profile) -> bool {
    one.recording.start_nanoseconds == other.recording.start_nanoseconds
}

fn start_of(profile: &Profile) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(profile.recording.start_nanoseconds)
}

fn end_of(profile: &Profile) -> SystemTime {
    start_of(profile) + Duration::from_nanos(profile.recording.duration_nanoseconds)
}
