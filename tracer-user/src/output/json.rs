//! The report as JSON, in the form that the command line's contract fixes.
//!
//! It must not know files. Names are complete here; characters that could steer a terminal are escaped the JSON way.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::{
    OutputError,
    aggregate::{By, Key, Report, Row, frame_texts, stack_text},
    leaks::{LeakRow, Leaks},
    text::is_invisible,
};
use crate::profile::{
    Amount, Cost, Coverage, FOREIGN_MODE, Losses, Metric, Process, Profile, Recording, Residence,
    WindowSummary,
};

/// The version of the form.
const SCHEMA: u32 = 1;
/// The unit of flows and growth.
const BYTES_PER_SECOND: &str = "bytes_per_second";

#[derive(Serialize)]
struct Document<'a, R> {
    schema: u32,
    metric: &'static str,
    unit: &'static str,
    by: &'static str,
    /// Leaks have none: what grows and what shrinks is no whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Total>,
    mode: &'a str,
    /// `null` where it is not known.
    seen_fraction: Option<f64>,
    coverage: &'a Coverage,
    /// Budget mode: what the estimates stand on.
    #[serde(skip_serializing_if = "Option::is_none")]
    windows: Option<&'a WindowSummary>,
    /// Leaks: how long was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    losses: &'a Losses,
    cost: &'a Cost,
    processes: Vec<JsonProcess<'a>>,
    rows: Vec<R>,
    /// Rows left out by `--top`.
    rows_omitted: usize,
}

#[derive(Serialize)]
struct JsonProcess<'a> {
    #[serde(flatten)]
    process: &'a Process,
    /// Growth mode: how far its stacks were off, in percent of what the kernel says has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    residence_difference_percent: Option<f64>,
}

#[derive(Serialize)]
struct Total {
    bytes: u64,
    /// `null` for a flow, of which blocks are not known.
    count: Option<u64>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    #[serde(flatten)]
    key: JsonKey<'a>,
    #[serde(flatten)]
    amount: Total,
    /// Half the width of the 95 % interval; `null` where it is not known.
    bytes_error: Option<u64>,
}

#[derive(Serialize)]
struct JsonLeak<'a> {
    #[serde(flatten)]
    key: JsonKey<'a>,
    growth_bytes_per_second: i64,
    at_least_bytes_per_second: i64,
    likelihood: f64,
    /// `null` where it is not known what lives.
    live_bytes: Option<u64>,
    live_bytes_error: Option<u64>,
    mean_age_seconds: Option<f64>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonKey<'a> {
    Line { file: Option<&'a str>, line: Option<u32>, function: &'a str },
    Function { file: Option<&'a str>, function: &'a str },
    File { file: &'a str },
    Module { module: &'a str },
    NoModule { module: Option<&'a str>, file: Option<&'a str>, function: &'a str },
    Stack { stack: Vec<&'a str> },
    Process { pid: u32, command: &'a str, process: u32 },
    Thread { pid: u32, thread: u32, command: &'a str, process: u32 },
}

/// Writes the first `top` rows, or all of them.
///
/// # Errors
/// When writing fails.
pub fn write(report: &Report<'_>, top: Option<usize>, writer: &mut dyn Write) -> Result<(), OutputError> {
    let Report { profile, metric, by, .. } = *report;
    let shown = top.unwrap_or(report.rows.len()).min(report.rows.len());
    let texts = frame_texts(profile);
    let unit = if metric == Metric::Retained { BYTES_PER_SECOND } else { report.unit.name() };
    let document = Document {
        metric: metric.name(),
        unit,
        total: Some(total(metric, report.total)),
        rows: report.rows[..shown].iter().map(|row| json_row(report, &texts, row)).collect(),
        rows_omitted: report.rows.len() - shown,
        ..about(profile, by)
    };
    write_document(&document, writer)
}

/// Writes the first `top` leaks, or all of them.
///
/// # Errors
/// When writing fails.
pub fn write_leaks(leaks: &Leaks<'_>, top: Option<usize>, writer: &mut dyn Write) -> Result<(), OutputError> {
    let shown = top.unwrap_or(leaks.rows.len()).min(leaks.rows.len());
    let texts = frame_texts(leaks.profile);
    let document = Document {
        metric: "growth",
        unit: BYTES_PER_SECOND,
        seconds: Some(leaks.seconds()),
        rows: leaks.rows[..shown].iter().map(|row| json_leak(leaks, &texts, row)).collect(),
        rows_omitted: leaks.rows.len() - shown,
        ..about(leaks.profile, leaks.by)
    };
    write_document(&document, writer)
}

/// What a document says of the recording.
fn about<R>(profile: &Profile, by: By) -> Document<'_, R> {
    let Recording { mode, seen_fraction, coverage, windows, losses, cost, .. } = &profile.recording;
    Document {
        schema: SCHEMA,
        metric: "",
        unit: "",
        by: by.name(),
        total: None,
        mode,
        seen_fraction: (mode != FOREIGN_MODE).then_some(*seen_fraction),
        coverage,
        windows: windows.as_ref(),
        seconds: None,
        losses,
        cost,
        processes: profile.processes.iter().map(json_process).collect(),
        rows: Vec::new(),
        rows_omitted: 0,
    }
}

fn total(metric: Metric, amount: Amount) -> Total {
    Total { bytes: amount.bytes, count: (metric != Metric::Retained).then_some(amount.count) }
}

/// Writes any document with every character escaped that could steer a terminal.
///
/// # Errors
/// When writing fails.
pub fn write_document(document: &impl Serialize, writer: &mut dyn Write) -> Result<(), OutputError> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *writer, Terminal::default());
    document.serialize(&mut serializer).map_err(|source| OutputError::Write(source.into()))?;
    writeln!(writer).map_err(OutputError::Write)
}

fn json_process(process: &Process) -> JsonProcess<'_> {
    let percent = process.residence.as_ref().and_then(Residence::difference_percent);
    JsonProcess { process, residence_difference_percent: percent }
}

fn json_row<'a>(report: &Report<'a>, texts: &'a [String], row: &'a Row<'a>) -> JsonRow<'a> {
    let key = json_key(report.profile, report.by, texts, &row.key);
    JsonRow { key, amount: total(report.metric, row.amount), bytes_error: row.bytes_error }
}

fn json_leak<'a>(leaks: &Leaks<'a>, texts: &'a [String], row: &'a LeakRow<'a>) -> JsonLeak<'a> {
    JsonLeak {
        key: json_key(leaks.profile, leaks.by, texts, &row.key),
        growth_bytes_per_second: row.growth.bytes_per_second,
        at_least_bytes_per_second: row.growth.at_least,
        likelihood: row.growth.likelihood(),
        live_bytes: row.live_bytes,
        live_bytes_error: row.live_bytes_error,
        mean_age_seconds: row.age_seconds(),
    }
}

fn json_key<'a>(profile: &'a Profile, by: By, texts: &'a [String], key: &'a Key<'a>) -> JsonKey<'a> {
    let process = |index: u32| profile.processes.get(index as usize);
    let who = |index| process(index).map_or((0, ""), |process| (process.pid, &*process.command));
    match key {
        Key::Line { file, line, function } => {
            JsonKey::Line { file: Some(file), line: (*line > 0).then_some(*line), function }
        }
        Key::Function { file, function } => JsonKey::Function { file: Some(file), function },
        Key::File(file) => JsonKey::File { file },
        Key::Module(module) => JsonKey::Module { module },
        Key::NoPython(function) => match by {
            By::Line => JsonKey::Line { file: None, line: None, function },
            By::Module => JsonKey::NoModule { module: None, file: None, function },
            _ => JsonKey::Function { file: None, function },
        },
        Key::Stack(stack) => JsonKey::Stack { stack: stack_text(texts, stack.to_vec()).collect() },
        Key::Process(index) => {
            let (pid, command) = who(index.0);
            JsonKey::Process { pid, command, process: index.0 }
        }
        Key::Thread(index, thread) => {
            let (pid, command) = who(index.0);
            JsonKey::Thread { pid, thread: *thread, command, process: index.0 }
        }
    }
}

/// Pretty JSON that escapes what a terminal might obey. JSON itself demands that only of ASCII controls.
#[derive(Default)]
struct Terminal(PrettyFormatter<'static>);

impl Formatter for Terminal {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain_from = 0;
        for (position, character) in fragment.char_indices().filter(|(_, character)| is_invisible(*character))
        {
            writer.write_all(&fragment.as_bytes()[plain_from..position])?;
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain_from = position + character.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain_from..])
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}
