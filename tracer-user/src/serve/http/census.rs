//! `/census.json`: what the memory of each process is made of: requested, held free, resident, or why that is not known.
//!
//! It must not know how memory is read.

use std::sync::Arc;

use axum::{extract, http::Uri, response::Response};

use super::{
    Site,
    answer::{Made, Refusal},
    endpoints, known, moment,
};
use crate::profile::{Change, Figures, Process, Series, Verdict};
use crate::serve::{redact::Redactor, state::Now};

#[derive(serde::Serialize)]
struct Document {
    schema: u32,
    processes: Vec<Row>,
}

#[derive(serde::Serialize)]
struct Row {
    pid: u32,
    command: String,
    interpreter: String,
    allocator: String,
    ended: bool,
    recording: &'static str,
    /// `null`: nobody has looked.
    looked: Option<String>,
    /// What the program asked for and has not given back; `null`: not known.
    requested_bytes: Option<u64>,
    /// What its allocators hold free.
    held_bytes: Option<u64>,
    resident_bytes: Option<u64>,
    /// Resident and neither; below zero where parts of the others are not resident.
    rest_bytes: Option<i128>,
    #[serde(flatten)]
    figures: Option<Figures>,
    change: Option<Changed>,
}

#[derive(serde::Serialize)]
struct Changed {
    seconds: f64,
    requested_bytes: i128,
    held_bytes: i128,
    resident_bytes: i128,
    /// `use`, `kept` or `elsewhere`; `null`: none is clear.
    verdict: Option<&'static str>,
}

/// `/census.json`
pub async fn census(extract::State(site): extract::State<Arc<Site>>, uri: Uri) -> Result<Response, Refusal> {
    let asked = site.asked(&uri, &endpoints::CENSUS)?;
    site.make(move |site| {
        let now = site.source().now();
        let mut processes = rows(&now, site.redactor());
        if !asked.pids.is_empty() {
            processes.retain(|row| asked.pids.contains(&row.pid));
        }
        if processes.is_empty() {
            let error = "no such process is recorded: see /census.json for those that are, and /healthz for why there may be none";
            return Err(Refusal::unknown(error));
        }
        Ok(Made::json(&Document { schema: 1, processes }))
    })
    .await
}

fn rows(now: &Now, redactor: Option<&Redactor>) -> Vec<Row> {
    let row = |known: &known::KnownProcess<'_>| {
        let redacted = redactor.map(|redactor| redactor.process(known.process));
        let Process { pid, command, interpreter, allocator, ended, memory, .. } =
            redacted.as_ref().unwrap_or(known.process);
        let figures = known.look.map(|seen| match redactor {
            Some(redactor) => redactor.figures(&seen.look.figures),
            None => seen.look.figures.clone(),
        });
        let of = |part: fn(&Figures) -> Option<u64>| figures.as_ref().and_then(part);
        Row {
            pid: *pid,
            command: command.clone(),
            interpreter: interpreter.clone(),
            allocator: allocator.clone(),
            ended: *ended,
            recording: known.kind.name(),
            looked: known.look.map(|seen| moment::utc(seen.at)),
            requested_bytes: of(Figures::requested_bytes),
            held_bytes: of(Figures::held_bytes),
            resident_bytes: of(Figures::resident_bytes),
            rest_bytes: figures.as_ref().and_then(Figures::rest_bytes),
            change: changed(memory),
            figures,
        }
    };
    known::processes(now).iter().map(row).collect()
}

fn changed(series: &Series) -> Option<Changed> {
    let Change { nanoseconds, requested, held, resident } = series.change()?;
    Some(Changed {
        seconds: nanoseconds as f64 / 1e9,
        requested_bytes: requested,
        held_bytes: held,
        resident_bytes: resident,
        verdict: series.verdict().map(|verdict| match verdict {
            Verdict::Use => "use",
            Verdict::Kept => "kept",
            Verdict::Elsewhere => "elsewhere",
        }),
    })
}
