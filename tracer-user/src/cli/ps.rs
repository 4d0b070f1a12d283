//! `alloctrace ps`: the Python processes here, and what can be traced in each.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::{doctor, listing::Listing, values::Format};
use crate::{
    output::{self, text},
    plan::cache::PlanCache,
    survey::{Check, Namespace, Obstacle, PythonProcess, Tracing, pythons},
};

/// What looking for probe points may take altogether, in interpreters that the cache does not know. One takes 0.1 s or less.
pub const PLANNING: Duration = Duration::from_secs(1);
/// Longest command in a table, in characters.
const COMMAND_CHARACTERS: usize = 60;

/// List the Python processes here, and what can be traced in each
///
/// Every process with an interpreter in it is listed, also those that cannot be traced; the last columns say why not, and what to do.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How to print the processes
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // What keeps all processes from being traced; without the trial, which takes longer than everything else.
    let obstacle = doctor::look_at_host(false).iter().find_map(Check::obstacle);
    let found = survey(obstacle.as_ref())?;
    output::produce(Path::new("-"), |writer| match arguments.format {
        Format::Table if found.is_empty() => {
            writeln!(writer, "no Python process runs here, or none that may be seen")
                .map_err(output::OutputError::Write)
        }
        Format::Table => table(&found).write_table(writer),
        Format::Json => output::json::write_document(&document(&found), writer),
        Format::Csv => csv(&found).write_csv(writer),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// All Python processes.
pub fn survey(host: Option<&Obstacle>) -> anyhow::Result<Vec<PythonProcess>> {
    pythons(Path::new("/proc"), host, PlanCache::usual().as_ref(), PLANNING).context("cannot list `/proc`")
}

/// The verdict as one word, and its reason and remedy.
fn verdict(tracing: &Tracing) -> (&'static str, Option<&Obstacle>) {
    match tracing {
        Tracing::Yes => ("yes", None),
        Tracing::Partly(obstacle) => ("partly", Some(obstacle)),
        Tracing::No(obstacle) => ("no", Some(obstacle)),
    }
}

fn table(found: &[PythonProcess]) -> Listing {
    let rows = found.iter().map(|process| {
        let tracing = match verdict(&process.tracing) {
            (word, None) => word.to_owned(),
            (word, Some(Obstacle { reason, remedy })) => format!("{word}: {reason}; {remedy}"),
        };
        vec![
            process.pid.to_string(),
            process.version.clone().unwrap_or_else(|| "-".to_owned()),
            build(process),
            word(&process.c_library).unwrap_or_else(|| "-".to_owned()),
            process.malloc.unwrap_or("-").to_owned(),
            process.points.map_or_else(|| "-".to_owned(), |points| points.to_string()),
            text::bytes(process.resident_bytes),
            namespaces(process),
            text::shorten(&text::visible(&process.command), COMMAND_CHARACTERS).into_owned(),
            tracing,
        ]
    });
    let columns = vec![
        "pid",
        "version",
        "build",
        "libc",
        "malloc",
        "points",
        "resident",
        "container",
        "command",
        "tracing",
    ];
    Listing { columns, rows: rows.collect() }
}

fn build(process: &PythonProcess) -> String {
    let build = word(&process.build).unwrap_or_else(|| "-".to_owned());
    if process.embedded { format!("{build}, embedded") } else { build }
}

/// A container's id, or which namespaces are other than ours.
fn namespaces(process: &PythonProcess) -> String {
    let inner = process.inner_pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let is_other = process.pid_namespace == Namespace::Other || process.mount_namespace == Namespace::Other;
    match &process.container {
        Some(container) => format!("{container}{inner}"),
        None if is_other => format!("other namespace{inner}"),
        None => "-".to_owned(),
    }
}

/// The word that JSON has for a plain value.
fn word(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}

fn document(found: &[PythonProcess]) -> Value {
    let processes: Vec<Value> = found.iter().map(object).collect();
    json!({"schema": 1, "processes": processes})
}

fn object(process: &PythonProcess) -> Value {
    let (tracing, obstacle) = verdict(&process.tracing);
    json!({
        "pid": process.pid,
        "inner_pid": process.inner_pid,
        "command": process.command,
        "version": process.version,
        "build": process.build,
        "embedded": process.embedded,
        "file": process.file,
        "c_library": process.c_library,
        "malloc": process.malloc,
        "points": process.points,
        "resident_bytes": process.resident_bytes,
        "container": process.container,
        "pid_namespace": process.pid_namespace,
        "mount_namespace": process.mount_namespace,
        "tracing": tracing,
        "reason": obstacle.map(|obstacle| &obstacle.reason),
        "remedy": obstacle.map(|obstacle| &obstacle.remedy),
    })
}

/// The fields of the JSON objects, one a column.
fn csv(found: &[PythonProcess]) -> Listing {
    const COLUMNS: [&str; 17] = [
        "pid",
        "inner_pid",
        "command",
        "version",
        "build",
        "embedded",
        "file",
        "c_library",
        "malloc",
        "points",
        "resident_bytes",
        "container",
        "pid_namespace",
        "mount_namespace",
        "tracing",
        "reason",
        "remedy",
    ];
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let row = |process| {
        let object = object(process);
        COLUMNS.iter().map(|column| cell(&object[*column])).collect()
    };
    Listing { columns: COLUMNS.to_vec(), rows: found.iter().map(row).collect() }
}
