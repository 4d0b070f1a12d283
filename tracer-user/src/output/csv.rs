//! The report as CSV (RFC 4180, but with plain line feeds): a header, then a row a line.
//!
//! It must not know files. Names are made visible (`text.rs`), so a line is always a row; numbers are plain.

use std::{borrow::Cow, io::Write};

use super::{
    OutputError,
    aggregate::{By, Key, Report, frame_texts, stack_text},
    leaks::Leaks,
    text::visible,
};
use crate::profile::{Amount, Growth, Metric, Profile};

/// Writes the first `top` rows, or all of them. An error that is not known is an empty field.
///
/// # Errors
/// When writing fails.
pub fn write(report: &Report<'_>, top: Option<usize>, writer: &mut dyn Write) -> Result<(), OutputError> {
    let is_flow = report.metric == Metric::Retained;
    let figures = if is_flow { "bytes_per_second,bytes_error" } else { "bytes,count,bytes_error" };
    writeln!(writer, "{},{figures}", columns(report.by)).map_err(OutputError::Write)?;
    let names = Names::new(report.profile, report.by);
    for row in report.rows.iter().take(top.unwrap_or(usize::MAX)) {
        let (name, error) = (names.of(&row.key), or_empty(row.bytes_error));
        match row.amount {
            Amount { bytes, .. } if is_flow => writeln!(writer, "{name},{bytes},{error}"),
            Amount { bytes, count } => writeln!(writer, "{name},{bytes},{count},{error}"),
        }
        .map_err(OutputError::Write)?;
    }
    Ok(())
}

/// Writes the first `top` leaks, or all of them.
///
/// # Errors
/// When writing fails.
pub fn write_leaks(leaks: &Leaks<'_>, top: Option<usize>, writer: &mut dyn Write) -> Result<(), OutputError> {
    let figures = "growth_bytes_per_second,at_least_bytes_per_second,likelihood,live_bytes,live_bytes_error,mean_age_seconds";
    writeln!(writer, "{},{figures}", columns(leaks.by)).map_err(OutputError::Write)?;
    let names = Names::new(leaks.profile, leaks.by);
    for row in leaks.rows.iter().take(top.unwrap_or(usize::MAX)) {
        let Growth { bytes_per_second, at_least, .. } = row.growth;
        writeln!(
            writer,
            "{},{bytes_per_second},{at_least},{},{},{},{}",
            names.of(&row.key),
            row.growth.likelihood(),
            or_empty(row.live_bytes),
            or_empty(row.live_bytes_error),
            or_empty(row.age_seconds())
        )
        .map_err(OutputError::Write)?;
    }
    Ok(())
}

fn or_empty(number: Option<impl ToString>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// The columns that name a row.
fn columns(by: By) -> &'static str {
    match by {
        By::Line => "file,line,function",
        By::Function => "file,function",
        // A reason stands in a column of its own where there is none for functions.
        By::File => "file,function",
        By::Module => "module,function",
        By::Stack => "stack",
        By::Type => "type",
        By::Process => "pid,command",
        By::Thread => "pid,thread,command",
    }
}

/// Names rows.
struct Names<'a> {
    profile: &'a Profile,
    by: By,
    texts: Vec<String>,
}

impl<'a> Names<'a> {
    fn new(profile: &'a Profile, by: By) -> Self {
        Self { profile, by, texts: frame_texts(profile) }
    }

    /// The fields that name a row.
    fn of(&self, key: &Key<'_>) -> String {
        let process = |index: u32| self.profile.processes.get(index as usize);
        let pid = |index| process(index).map_or(0, |process| process.pid);
        let command = |index| quoted(process(index).map_or("", |process| &process.command)).into_owned();
        match key {
            Key::Line { file, line, function } => format!("{},{line},{}", quoted(file), quoted(function)),
            Key::Function { file, function } => format!("{},{}", quoted(file), quoted(function)),
            Key::File(file) => format!("{},", quoted(file)),
            Key::Module(module) => format!("{},", quoted(module)),
            Key::NoPython(reason) if self.by == By::Line => format!(",,{}", quoted(reason)),
            Key::NoPython(reason) => format!(",{}", quoted(reason)),
            Key::Stack(stack) => {
                let frames: Vec<String> =
                    stack_text(&self.texts, stack.to_vec()).map(|frame| frame.replace(';', ",")).collect();
                quoted(&frames.join(";")).into_owned()
            }
            Key::Process(index) => format!("{},{}", pid(index.0), command(index.0)),
            Key::Thread(index, thread) => format!("{},{thread},{}", pid(index.0), command(index.0)),
        }
    }
}

/// A field in quotes where it needs them. What a spreadsheet would take for a formula gets a `'` before it.
pub fn quoted(name: &str) -> Cow<'_, str> {
    let mut text = visible(name);
    if text.starts_with(['=', '+', '-', '@']) {
        text = Cow::Owned(format!("'{text}"));
    }
    if text.contains(['"', ',']) { Cow::Owned(format!("\"{}\"", text.replace('"', "\"\""))) } else { text }
}
