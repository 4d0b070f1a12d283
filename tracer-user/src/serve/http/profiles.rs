//! `/flamegraph.svg`, `/profile.pb.gz`, `/folded` and `/report.json`: a profile in one of the formats of `output`.
//!
//! It must not know where profiles come from, nor who may ask.

use std::{io::Write, sync::Arc};

use axum::{
    extract,
    http::{HeaderValue, StatusCode, Uri, header},
    response::Response,
};

use super::{
    Site,
    answer::{Made, Refusal},
    asked::Asked,
    choose, endpoints, script, view,
};
use crate::output::{
    Options, OutputError,
    aggregate::{self, By},
    flamegraph, folded, json,
};
use crate::profile::{Profile, pprof};

type Answer = Result<Response, Refusal>;
type Shared = extract::State<Arc<Site>>;

/// `/flamegraph.svg`
pub async fn flame_graph(extract::State(site): Shared, uri: Uri) -> Answer {
    let asked = site.asked(&uri, &endpoints::FLAME_GRAPH)?;
    make(site, asked, |asked, profile, base, options| {
        let options = flamegraph::Options { metric: options.metric, unit: options.unit, inverted: false };
        let profile = bounded(profile, options.metric, asked);
        let svg = match base {
            None => bytes(|writer| flamegraph::write(&profile, options, writer)),
            Some(base) => {
                let base = bounded(base, options.metric, asked);
                bytes(|writer| flamegraph::write_difference(&profile, &base, options, writer))
            }
        }?;
        let policy = script::policy(&svg);
        Ok(Made::new("image/svg+xml", svg).with(header::CONTENT_SECURITY_POLICY, policy))
    })
    .await
}

/// `/profile.pb.gz`
pub async fn pprof_file(extract::State(site): Shared, uri: Uri) -> Answer {
    let asked = site.asked(&uri, &endpoints::PROFILE)?;
    let name = HeaderValue::from_static("attachment; filename=\"alloctrace.pb.gz\"");
    site.make(move |site| {
        let profile = view::profile(site.source(), &asked, site.redactor())?;
        let encoded = pprof::encode(&profile).map_err(|error| Refusal::fault(&error))?;
        Ok(Made::new("application/octet-stream", encoded).with(header::CONTENT_DISPOSITION, name))
    })
    .await
}

/// `/folded`
pub async fn folded_stacks(extract::State(site): Shared, uri: Uri) -> Answer {
    let asked = site.asked(&uri, &endpoints::FOLDED)?;
    make(site, asked, |asked, profile, _, options| {
        let profile = bounded(profile, options.metric, asked);
        let text = bytes(|writer| folded::write(&profile, options.metric, options.unit, writer))?;
        Ok(Made::new("text/plain; charset=utf-8", text))
    })
    .await
}

/// `/report.json`
pub async fn report(extract::State(site): Shared, uri: Uri) -> Answer {
    let asked = site.asked(&uri, &endpoints::REPORT)?;
    make(site, asked, |asked, profile, base, options| {
        let document = bytes(|writer| match base {
            None => write_report(profile, asked, options, writer),
            Some(base) => {
                let mut part = |text: &str, profile: &Profile| {
                    writer.write_all(text.as_bytes()).map_err(OutputError::Write)?;
                    write_report(profile, asked, options, writer)
                };
                part("{\"schema\": 1,\n\"base\": ", base)?;
                part(",\n\"now\": ", profile)?;
                writer.write_all(b"}\n").map_err(OutputError::Write)
            }
        })?;
        Ok(Made::new("application/json", document))
    })
    .await
}

/// Finds what is asked for, and makes an answer of it in the workshop.
async fn make(
    site: Arc<Site>,
    asked: Asked,
    of: impl FnOnce(&Asked, &Profile, Option<&Profile>, Options) -> Result<Made, Refusal> + Send + 'static,
) -> Answer {
    site.make(move |site| {
        let profile = view::profile(site.source(), &asked, site.redactor())?;
        let base = view::base(site.source(), &asked, site.redactor())?;
        let options = view::options(&asked, &profile)?;
        of(&asked, &profile, base.as_deref(), options)
    })
    .await
}

fn write_report(
    profile: &Profile,
    asked: &Asked,
    options: Options,
    writer: &mut dyn Write,
) -> Result<(), OutputError> {
    // Of all groupings this one alone can be larger than the profile.
    let bounded = (asked.by == By::Stack).then(|| bounded(profile, options.metric, asked));
    let profile = bounded.as_deref().unwrap_or(profile);
    let thinned = choose::with_fewer_looks(profile, choose::MOST_LOOKS);
    let profile = thinned.as_ref().unwrap_or(profile);
    let report = aggregate::aggregate(profile, asked.by, options.metric, options.unit)?;
    json::write(&report, Some(asked.top), writer)
}

/// The profile, or the largest of it where its text would be too large.
fn bounded<'a>(
    profile: &'a Profile,
    metric: crate::profile::Metric,
    asked: &Asked,
) -> std::borrow::Cow<'a, Profile> {
    match choose::largest(profile, metric, asked.unit, choose::MOST_TEXT_BYTES) {
        Some(largest) => std::borrow::Cow::Owned(largest),
        None => std::borrow::Cow::Borrowed(profile),
    }
}

fn bytes(write: impl FnOnce(&mut Vec<u8>) -> Result<(), OutputError>) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    write(&mut bytes).map_err(refusal)?;
    Ok(bytes)
}

/// What the formats refuse, in the words of a request.
fn refusal(error: OutputError) -> Refusal {
    match error {
        OutputError::NoTypes => {
            Refusal::wrong("by: recordings do not know types: use `by=line` or `by=function`")
        }
        OutputError::NothingToDraw { metric } => Refusal::unknown(format!(
            "nothing to draw: the profile holds no {metric} memory; ask for another metric, or for more time"
        )),
        OutputError::TooLarge { .. } => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Refusal::new(status, "more stacks than can be shown at once: ask for one process by `pid`")
        }
        error => Refusal::fault(&error),
    }
}
