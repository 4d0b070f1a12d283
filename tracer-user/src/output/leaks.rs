//! Whose memory grows: the samples of a recording in budget mode as rows, the surest growth first.
//!
//! Leaks are ranked by the growth that is sure, not by what lives: a cache is large and does not grow. Growth is that of the later
//! half of the recording, estimated from blocks that outlive the tail of their window. It must not know any format.

use std::collections::HashMap;

use super::{
    OutputError,
    aggregate::{By, Key, key},
    text,
};
use crate::profile::{
    ErrorSum, Estimated, FOREIGN_MODE, Growth, Metric, Profile, Sample, WindowSummary, mean_age,
};

/// What to know before believing a table of leaks.
pub const CAUTION: &str = "`at least` holds in 99 of 100 recordings: of a hundred stacks that do not grow, one is above zero by chance";
/// Fewest windows with a tail of which growth can be told: three of the later half.
const FEWEST_TAILS: u64 = 6;
/// The shortest recording of which growth can be told, in seconds: four parts of a second in its later half.
const SHORTEST_SECONDS: f64 = 8.0;
/// Millionths from which a leak is told without being asked for.
const SURE_PPM: u32 = 990_000;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeakRow<'a> {
    /// What it stands for.
    pub key: Key<'a>,
    /// How it grows.
    pub growth: Growth,
    /// What of it lives; `None`: not known.
    pub live_bytes: Option<u64>,
    /// Half the width of the 95 % interval of that; `None`: not known.
    pub live_bytes_error: Option<u64>,
    /// Mean age of what lives; `None`: not known.
    pub age_milliseconds: Option<u64>,
}

/// All rows of which growth is known.
#[derive(Debug)]
pub struct Leaks<'a> {
    /// The profile that rows refer to.
    pub profile: &'a Profile,
    /// What rows are.
    pub by: By,
    /// What growth was told by.
    pub windows: &'a WindowSummary,
    /// The surest growth first.
    pub rows: Vec<LeakRow<'a>>,
}

/// Ranks what grows.
///
/// # Errors
/// When the profile knows nothing of growth; the error says what does.
pub fn leaks(profile: &Profile, by: By) -> Result<Leaks<'_>, OutputError> {
    if by == By::Type {
        return Err(OutputError::NoTypes);
    }
    let mut groups = HashMap::<Key<'_>, Vec<&Sample>>::new();
    for sample in &profile.samples {
        groups.entry(key(profile, sample, by)).or_default().push(sample);
    }
    let knows_live = profile.knows(Metric::Live);
    let mut rows: Vec<LeakRow<'_>> =
        groups.into_iter().filter_map(|(key, samples)| row(key, &samples, knows_live)).collect();
    let windows = profile.recording.windows.as_ref();
    let can_tell = |windows: &&WindowSummary| !rows.is_empty() || is_long_enough(profile, windows);
    let Some(windows) = windows.filter(can_tell) else {
        return Err(OutputError::NoGrowth { why: why_not(profile) });
    };
    rows.sort_unstable_by(|one, other| {
        let sure = |row: &LeakRow<'_>| (row.growth.at_least, row.growth.bytes_per_second, row.live_bytes);
        // Ties are broken by name, so that the same profile always gives the same text.
        sure(other).cmp(&sure(one)).then_with(|| one.key.compare(&other.key, profile))
    });
    Ok(Leaks { profile, by, windows, rows })
}

/// `None` where nothing is known of its growth.
fn row<'a>(key: Key<'a>, samples: &[&Sample], knows_live: bool) -> Option<LeakRow<'a>> {
    let estimated = |sample: &&Sample| -> Option<Estimated> { sample.estimated.as_deref().copied() };
    let growth = Growth::sum(samples.iter().filter_map(|sample| estimated(sample)?.growth))?;
    let (mut live_bytes, mut error) = (0_u64, ErrorSum::default());
    for sample in samples {
        live_bytes = live_bytes.saturating_add(sample.values.live.bytes);
        error.add(sample.error(Metric::Live), sample.values.live.bytes);
    }
    let ages = samples.iter().map(|sample| (sample.estimated.as_deref(), sample.values.live.bytes));
    Some(LeakRow {
        key,
        growth,
        live_bytes: knows_live.then_some(live_bytes),
        live_bytes_error: error.half_width().filter(|_| knows_live),
        age_milliseconds: mean_age(ages),
    })
}

fn is_long_enough(profile: &Profile, windows: &WindowSummary) -> bool {
    windows.tails >= FEWEST_TAILS && seconds(profile) >= SHORTEST_SECONDS
}

fn seconds(profile: &Profile) -> f64 {
    profile.recording.duration_nanoseconds as f64 / 1e9
}

/// Why a profile has no growth, and what to do.
fn why_not(profile: &Profile) -> String {
    let record = "record a process that runs with `--mode budget -p PID`, for a minute or more";
    match (&*profile.recording.mode, &profile.recording.windows) {
        (FOREIGN_MODE, _) => {
            format!("the profile was not recorded by alloctrace, and knows no growth: {record}")
        }
        ("growth", _) => format!(
            "recorded in growth mode, which watches pages and no blocks: use `--metric live` for the stacks whose pages have come and stayed, or {record}"
        ),
        ("budget", None) => format!(
            "recorded in budget mode with everything seen, and growth is told from windows: use `--metric live`, or {record}"
        ),
        (_, None) => format!(
            "recorded in {} mode, and growth is told from windows: use `--metric live`, or {record}",
            profile.recording.mode
        ),
        (_, Some(WindowSummary { tails: 0, live_unknown: Some(why), .. })) => {
            format!("recorded in budget mode, and growth is not known, for {}: {record}", text::visible(why))
        }
        (_, Some(windows)) if windows.tails == 0 => {
            format!(
                "recorded in budget mode without windows whose blocks were looked at for a second, which growth is told from: {record}"
            )
        }
        (_, Some(windows)) => format!(
            "recorded in budget mode for {:.1} s, of which {} windows tell growth, too few or too short to say: record for a minute or more, or raise --budget",
            seconds(profile),
            text::count(windows.tails)
        ),
    }
}

/// Over how long, and from how many windows.
pub fn heading(leaks: &Leaks<'_>) -> String {
    format!(
        "growth by {} in the later half of {:.1} s, from {} windows of {}",
        leaks.by,
        leaks.seconds(),
        text::count(leaks.windows.tails),
        text::count(leaks.windows.opened)
    )
}

/// The first row in one line, where it is a leak for sure.
pub fn line(profile: &Profile) -> Option<String> {
    let grows =
        |sample: &Sample| sample.estimated.as_ref().is_some_and(|estimated| estimated.growth.is_some());
    if !profile.samples.iter().any(grows) {
        return None;
    }
    let leaks = leaks(profile, By::Line).ok()?;
    let LeakRow { key, growth, .. } = leaks.rows.first()?;
    if growth.likelihood_ppm < SURE_PPM || growth.at_least <= 0 {
        return None;
    }
    let place = match key {
        Key::Line { file, line: 0, function } => format!("{file} {function}"),
        Key::Line { file, line, function } => format!("{file}:{line} {function}"),
        Key::NoPython(reason) => (*reason).to_owned(),
        _ => return None,
    };
    Some(format!(
        "leak: {} (at least {}) {}, likelihood {}",
        text::rate(growth.bytes_per_second),
        text::rate(growth.at_least),
        text::visible(&place),
        text::likelihood(growth.likelihood_ppm)
    ))
}

impl Leaks<'_> {
    /// How long was recorded; growth is that of the later half.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        seconds(self.profile)
    }
}

impl LeakRow<'_> {
    /// Mean age of what lives; `None`: not known.
    #[must_use]
    pub fn age_seconds(&self) -> Option<f64> {
        self.age_milliseconds.map(|milliseconds| milliseconds as f64 / 1e3)
    }
}
