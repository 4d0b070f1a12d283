//! speedscope's file format: one profile a metric, all over one table of frames.
//!
//! It must not know files. The schema is <https://www.speedscope.app/file-format-schema.json>.

use std::io::Write;

use serde::Serialize;

use super::{OutputError, text};
use crate::profile::{Metric, Profile, Unit};

#[derive(Serialize)]
struct File {
    #[serde(rename = "$schema")]
    schema: &'static str,
    shared: Shared,
    profiles: Vec<SampledProfile>,
    name: String,
    #[serde(rename = "activeProfileIndex")]
    active_profile_index: usize,
    exporter: String,
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<SharedFrame>,
}

#[derive(Serialize)]
struct SharedFrame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SampledProfile {
    r#type: &'static str,
    name: &'static str,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<u32>>,
    weights: Vec<u64>,
}

/// Writes all metrics that are known, in one unit; `metric` is the one shown first.
///
/// # Errors
/// When writing fails.
pub fn write(
    profile: &Profile,
    metric: Metric,
    unit: Unit,
    writer: &mut dyn Write,
) -> Result<(), OutputError> {
    // What is not known would be a profile of zeros, and of a flow no blocks are known.
    let has_unit = move |metric: &Metric| *metric != Metric::Retained || unit == Unit::Bytes;
    let known = || Metric::ALL.into_iter().filter(|metric| profile.knows(*metric)).filter(has_unit);
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        shared: Shared { frames: frames(profile) },
        profiles: known().map(|metric| sampled(profile, metric, unit)).collect(),
        name: profile.processes.first().map_or_else(|| "no process".to_owned(), text::process),
        active_profile_index: known().position(|known| known == metric).unwrap_or(0),
        exporter: format!("alloctrace {}", env!("CARGO_PKG_VERSION")),
    };
    serde_json::to_writer(&mut *writer, &file).map_err(|source| OutputError::Write(source.into()))?;
    writeln!(writer).map_err(OutputError::Write)
}

/// The profile's frames, then a root for every process.
fn frames(profile: &Profile) -> Vec<SharedFrame> {
    let frames = profile.frames.iter().map(|frame| SharedFrame {
        name: text::frame(frame),
        file: frame.file.as_deref().map(|file| text::visible(file).into_owned()),
        line: (frame.line > 0).then_some(frame.line),
    });
    let roots = profile.processes.iter().map(|process| {
        let name = text::process(process);
        SharedFrame { name, file: None, line: None }
    });
    frames.chain(roots).collect()
}

fn sampled(profile: &Profile, metric: Metric, unit: Unit) -> SampledProfile {
    let (mut samples, mut weights) = (Vec::new(), Vec::new());
    for sample in &profile.samples {
        let weight = unit.of(sample.amount(metric));
        if weight > 0 {
            let root = profile.frames.len() as u32 + sample.process.0;
            let stack = sample.stack.to_vec().into_iter().rev().map(|frame| frame.0);
            samples.push(std::iter::once(root).chain(stack).collect());
            weights.push(weight);
        }
    }
    // speedscope knows units of time, bytes, and none.
    let unit = if unit == Unit::Bytes { "bytes" } else { "none" };
    let end_value = weights.iter().copied().fold(0, u64::saturating_add);
    SampledProfile {
        r#type: "sampled",
        name: metric.name(),
        unit,
        start_value: 0,
        end_value,
        samples,
        weights,
    }
}
