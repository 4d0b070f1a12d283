//! `/metrics`: what Prometheus is told, from what is known at the moment. Pure: values in, text out.
//!
//! Names, units and endings are those of Prometheus's conventions. The number of series is bounded: processes beyond a number are one,
//! `other` (`shown.rs`). What is not known has no series: a zero would be a wrong figure. It must not know requests.

mod families;
mod processes;
mod shown;
mod text;

use std::time::SystemTime;

use self::families::{Families, Family, Number};
pub use self::{
    shown::{MOST_SHOWN, Shown},
    text::{Form, content_type},
};
use crate::profile::{Coverage, Losses, Profile};
use crate::serve::{
    http::Kept,
    redact::Redactor,
    state::{Kind, Now},
};

/// What this process itself takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Own {
    /// CPU time since it began, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
}

/// All that is told.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What is known at the moment.
    pub now: &'a Now,
    /// What the history takes; `None`: not known.
    pub kept: Option<Kept>,
    /// What we take; `None`: not known.
    pub own: Option<Own>,
    /// With one, commands are hashes.
    pub redactor: Option<&'a Redactor>,
}

/// The text, in the form that was asked for. `shown` says which processes have series of their own, and is brought up to date.
///
/// # Errors
/// None is known: writing to memory does not fail.
pub fn write(facts: &Facts<'_>, shown: &mut Shown, form: Form) -> Result<String, std::fmt::Error> {
    let mut all = vec![build()];
    processes::add(facts, shown, &mut all);
    recordings(facts.now, &mut all);
    all.extend(state(facts.now));
    all.extend(facts.kept.into_iter().flat_map(history));
    all.extend(facts.own.into_iter().flat_map(own));
    all.retain(|family| !family.rows.is_empty());
    text::encode(Families(all), form)
}

fn build() -> Family {
    let mut family = Family::gauge("alloctrace_build_info", None, "Which alloctrace this is; always 1");
    family.row([("version", env!("CARGO_PKG_VERSION"))], Number::Whole(1));
    family
}

/// What is known of each recording.
fn recordings(now: &Now, all: &mut Vec<Family>) {
    let mut coverage = Family::gauge(
        "alloctrace_coverage",
        Some("ratio"),
        "Share of pymalloc's events that were seen, measured against its own counters",
    );
    let mut seen =
        Family::gauge("alloctrace_seen", Some("ratio"), "Share of the processes' progress that was seen");
    let mut cost = Family::gauge(
        "alloctrace_cost",
        Some("ratio"),
        "Share of the processes' CPU time that recording takes",
    );
    let mut windows =
        Family::counter("alloctrace_windows", None, "Windows in which every allocation was seen");
    let mut events = Family::counter("alloctrace_events", None, "Allocations and frees that were counted");
    let mut losses = Family::counter("alloctrace_losses", None, "What was lost, by cause");
    let mut taken = Family::gauge(
        "alloctrace_snapshot_timestamp",
        Some("seconds"),
        "When the newest snapshot was taken, since the epoch",
    );
    for kind in Kind::ALL {
        let Some(snapshot) = now.snapshot(kind) else { continue };
        let profile: &Profile = &snapshot.profile;
        let recording = ("recording", kind.name());
        if let Coverage::Measured { allocations, frees, .. } = &profile.recording.coverage {
            coverage.row([recording, ("event", "allocation")], Number::Real(*allocations));
            coverage.row([recording, ("event", "free")], Number::Real(*frees));
        }
        seen.row([recording], Number::Real(profile.recording.seen_fraction));
        if let Some(percent) = profile.recording.cost.target_percent {
            cost.row([recording], Number::Real(percent / 100.0));
        }
        if let Some(summary) = &profile.recording.windows {
            windows.row([recording], Number::Whole(summary.opened));
        }
        events.row([recording], Number::Whole(profile.recording.events));
        for (cause, number) in causes(&profile.recording.losses) {
            losses.row([recording, ("cause", cause.as_str())], Number::Whole(number));
        }
        taken.row([recording], Number::Real(seconds(snapshot.taken)));
    }
    all.extend([coverage, seen, cost, windows, events, losses, taken]);
}

/// The losses by the names that they have in JSON.
fn causes(losses: &Losses) -> Vec<(String, u64)> {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(losses) else { return Vec::new() };
    fields.into_iter().filter_map(|(name, number)| Some((name, number.as_u64()?))).collect()
}

/// What is known of the sidecar.
fn state(now: &Now) -> [Family; 3] {
    let mut problems = Family::gauge(
        "alloctrace_problems",
        None,
        "Things that were asked for and do not work at the moment",
    );
    problems.row([], Number::Whole(now.problems.len() as u64));
    let mut lost = Family::counter(
        "alloctrace_history_lost_snapshots",
        None,
        "Snapshots that could not be kept on disk",
    );
    lost.row([], Number::Whole(now.minutes_lost));
    let mut alive = Family::gauge(
        "alloctrace_alive_timestamp",
        Some("seconds"),
        "When the engine last said that it lives, since the epoch",
    );
    if let Some(moment) = now.alive {
        alive.row([], Number::Real(seconds(moment)));
    }
    [problems, lost, alive]
}

fn history(kept: Kept) -> [Family; 3] {
    let mut bytes = Family::gauge("alloctrace_history", Some("bytes"), "Size of the history on disk");
    bytes.row([], Number::Whole(kept.bytes));
    let mut files = Family::gauge("alloctrace_history_files", None, "Files of the history");
    files.row([], Number::Whole(kept.files));
    let mut broken = Family::counter(
        "alloctrace_history_broken_files",
        None,
        "Files of the history that could not be read and were set aside",
    );
    broken.row([], Number::Whole(kept.broken));
    [bytes, files, broken]
}

/// By the names that Prometheus's own libraries give these.
fn own(own: Own) -> [Family; 2] {
    let mut cpu =
        Family::counter("process_cpu", Some("seconds"), "CPU time that alloctrace itself has taken");
    cpu.row([], Number::Real(own.cpu_seconds));
    let mut resident =
        Family::gauge("process_resident_memory", Some("bytes"), "Resident memory of alloctrace itself");
    resident.row([], Number::Whole(own.resident_bytes));
    [cpu, resident]
}

fn seconds(moment: SystemTime) -> f64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
