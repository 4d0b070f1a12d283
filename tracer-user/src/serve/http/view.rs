//! Which profile a request is about: the newest snapshot, or a stretch of the past; of all processes, or of some.
//!
//! Where there is none the refusal says what there is. It must not know formats.

use std::sync::Arc;

use super::{
    answer::Refusal,
    asked::{Asked, clean},
    choose, moment,
    source::{Incident, Source},
};
use crate::output;
use crate::profile::{Live, Metric, Profile};
use crate::serve::{
    history::Span,
    redact::Redactor,
    state::{Kind, Now, Snapshot},
};

/// Most process ids that a refusal lists.
const LISTED_PIDS: usize = 20;

/// The profile that is asked for.
///
/// # Errors
/// If nothing is known.
pub fn profile(
    source: &dyn Source,
    asked: &Asked,
    redactor: Option<&Redactor>,
) -> Result<Arc<Profile>, Refusal> {
    let found = match (&asked.incident, asked.span) {
        (Some(name), _) => incident(source, asked, name, redactor),
        (None, Some(span)) => past(source, asked, span),
        (None, None) => newest(source, asked, redactor),
    }?;
    Ok(redacted(found, redactor))
}

/// The profile to compare with, where one is asked for.
///
/// # Errors
/// If nothing is known of that stretch.
pub fn base(
    source: &dyn Source,
    asked: &Asked,
    redactor: Option<&Redactor>,
) -> Result<Option<Arc<Profile>>, Refusal> {
    let Some(span) = asked.base else { return Ok(None) };
    Ok(Some(redacted(past(source, asked, span)?, redactor)))
}

/// What to show of it.
///
/// # Errors
/// If the profile knows nothing of the metric: zeros would be wrong figures.
pub fn options(asked: &Asked, profile: &Profile) -> Result<output::Options, Refusal> {
    let metric = asked.metric.unwrap_or_else(|| profile.default_metric());
    // Live is the default also where only what stands in its place is known.
    let metric = match asked.metric {
        None if !profile.knows(metric) => known(profile).next().unwrap_or(metric),
        _ => metric,
    };
    if profile.knows(metric) {
        return Ok(output::Options { metric, unit: asked.unit });
    }
    Err(Refusal::unknown(unknown(metric, profile)))
}

/// Why a metric is not known, and which are.
pub fn unknown(metric: Metric, profile: &Profile) -> String {
    let why = match profile.recording.windows.as_ref().map(|windows| windows.live()) {
        Some(Live::Retained { why } | Live::Unknown { why }) if metric == Metric::Live => format!(" ({why})"),
        _ => String::new(),
    };
    let known: Vec<&str> = known(profile).map(Metric::name).collect();
    let mode = &profile.recording.mode;
    format!(
        "`{metric}` is not known of this recording in {mode} mode{why}: use a metric of {}",
        known.join(", ")
    )
}

/// The metrics that a profile knows, the most wanted first.
pub fn known(profile: &Profile) -> impl Iterator<Item = Metric> {
    [Metric::Live, Metric::Retained, Metric::Allocated, Metric::Peak, Metric::Temporary]
        .into_iter()
        .filter(|metric| profile.knows(*metric))
}

fn redacted(profile: Arc<Profile>, redactor: Option<&Redactor>) -> Arc<Profile> {
    match redactor {
        Some(redactor) => Arc::new(redactor.profile(&profile)),
        None => profile,
    }
}

/// The part of a snapshot that is asked for.
///
/// # Errors
/// If none of the processes is in it.
pub fn of_snapshot(
    snapshot: &Snapshot,
    asked: &Asked,
    redactor: Option<&Redactor>,
) -> Result<Arc<Profile>, Refusal> {
    Ok(redacted(chosen(&snapshot.profile, asked)?, redactor))
}

/// Why there is no snapshot.
pub fn nothing_yet(now: &Now, kind: Kind, redactor: Option<&Redactor>) -> Refusal {
    let say = |problem: &String| redactor.map_or_else(|| problem.clone(), |redactor| redactor.text(problem));
    let problems: Vec<String> = now.problems.iter().map(say).collect();
    let why = match problems.as_slice() {
        [] => "it has just begun, or does not run".to_owned(),
        problems => problems.join("; "),
    };
    Refusal::unknown(format!("no snapshot of {} yet: {why}", kind.name()))
}

fn newest(source: &dyn Source, asked: &Asked, redactor: Option<&Redactor>) -> Result<Arc<Profile>, Refusal> {
    let now = source.now();
    let snapshot = now.snapshot(asked.kind).ok_or_else(|| nothing_yet(&now, asked.kind, redactor))?;
    chosen(&snapshot.profile, asked)
}

/// Of those whose names are hashes, the one whose hash is asked for.
fn incident(
    source: &dyn Source,
    asked: &Asked,
    name: &str,
    redactor: Option<&Redactor>,
) -> Result<Arc<Profile>, Refusal> {
    let is_asked_for = |incident: &Incident| match redactor {
        Some(redactor) => redactor.incident(&incident.name) == name,
        None => incident.name == name,
    };
    let unknown =
        || Refusal::unknown(format!("no incident `{}` is kept: see / for those that are", clean(name)));
    // Only names that are listed are asked for, so that none can lead out of their folder.
    let known = source.incidents().into_iter().find(is_asked_for).ok_or_else(unknown)?;
    match source.incident(&known.name) {
        Ok(Some(profile)) => chosen(&Arc::new(profile), asked),
        Ok(None) => Err(unknown()),
        Err(error) => Err(Refusal::fault(&error)),
    }
}

fn chosen(profile: &Arc<Profile>, asked: &Asked) -> Result<Arc<Profile>, Refusal> {
    if asked.pids.is_empty() {
        return Ok(Arc::clone(profile));
    }
    let chosen = choose::processes(profile, |process| asked.pids.contains(&process.pid));
    if chosen.processes.is_empty() {
        return Err(Refusal::unknown(unknown_pids(asked, profile)));
    }
    Ok(Arc::new(chosen))
}

fn unknown_pids(asked: &Asked, profile: &Profile) -> String {
    let mut known: Vec<String> = profile.processes.iter().map(|process| process.pid.to_string()).collect();
    let more = if known.len() > LISTED_PIDS { " and others, see /census.json" } else { "" };
    known.truncate(LISTED_PIDS);
    let list = if known.is_empty() { "no process is".to_owned() } else { known.join(", ") + more };
    format!("no process {} is recorded: {list} known", numbers(&asked.pids))
}

fn numbers(pids: &[u32]) -> String {
    pids.iter().take(LISTED_PIDS).map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn past(source: &dyn Source, asked: &Asked, span: Span) -> Result<Arc<Profile>, Refusal> {
    match source.query(asked.kind, span, &asked.pids) {
        Ok(Some((_, profile))) => Ok(Arc::new(profile)),
        Ok(None) => Err(Refusal::unknown(nothing_then(source, asked, span))),
        Err(error) => Err(Refusal::fault(&error)),
    }
}

fn nothing_then(source: &dyn Source, asked: &Asked, span: Span) -> String {
    let spans = source.spans(asked.kind);
    let what = match asked.pids.as_slice() {
        [] => asked.kind.name().to_owned(),
        pids => format!("{} of process {}", asked.kind.name(), numbers(pids)),
    };
    let asked_for = format!("{} to {}", moment::utc(span.from), moment::utc(span.to));
    let there_is = match (spans.first(), spans.last()) {
        (Some(first), Some(last)) => {
            format!("the history holds {} to {}", moment::utc(first.from), moment::utc(last.to))
        }
        _ => format!("the history holds nothing of {} yet", Kind::name(asked.kind)),
    };
    format!("nothing is known of {what} from {asked_for}: {there_is}")
}
