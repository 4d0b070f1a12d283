//! The report as CSV (RFC 4180, but with plain line feeds): a header, then a row a line.
//!
//! It must not know files. Names are made visible (`text.rs`), so a line is always a row; numbers are plain.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use super::{
    OutputError,
    aggregate::{By, Key, Report, Row, frame_texts, stack_text},
    text::visible,
};

/// Writes the first `top` rows, or all of them.
///
/// # Errors
/// When writing fails.
pub fn write(report: &Report<'_>, top: Option<usize>, writer: &mut dyn Write) -> Result<(), OutputError> {
    let columns = match report.by {
        By::Line => "file,line,function",
        By::Function => "file,function",
        By::File => "file",
        By::Module => "module",
        By::Stack => "stack",
        By::Type => "type",
        By::Process => "pid,command",
        By::Thread => "pid,thread,command",
    };
    // A reason stands in a column of its own where there is no column for functions.
    let reason = if matches!(report.by, By::File | By::Module) { ",function" } else { "" };
    writeln!(writer, "{columns}{reason},bytes,count").map_err(OutputError::Write)?;
    let texts = frame_texts(report.profile);
    for row in report.rows.iter().take(top.unwrap_or(usize::MAX)) {
        write_row(report, &texts, row, writer).map_err(OutputError::Write)?;
    }
    Ok(())
}

fn write_row(report: &Report<'_>, texts: &[String], row: &Row<'_>, writer: &mut dyn Write) -> io::Result<()> {
    let process = |index: u32| report.profile.processes.get(index as usize);
    let pid = |index| process(index).map_or(0, |process| process.pid);
    let command = |index| quoted(process(index).map_or("", |process| &process.command)).into_owned();
    match &row.key {
        Key::Line { file, line, function } => write!(writer, "{},{line},{}", quoted(file), quoted(function)),
        Key::Function { file, function } => write!(writer, "{},{}", quoted(file), quoted(function)),
        Key::File(file) => write!(writer, "{},", quoted(file)),
        Key::Module(module) => write!(writer, "{},", quoted(module)),
        Key::NoPython(reason) if report.by == By::Line => write!(writer, ",,{}", quoted(reason)),
        Key::NoPython(reason) => write!(writer, ",{}", quoted(reason)),
        Key::Stack(stack) => {
            let frames: Vec<String> =
                stack_text(texts, stack.to_vec()).map(|frame| frame.replace(';', ",")).collect();
            write!(writer, "{}", quoted(&frames.join(";")))
        }
        Key::Process(index) => write!(writer, "{},{}", pid(index.0), command(index.0)),
        Key::Thread(index, thread) => write!(writer, "{},{thread},{}", pid(index.0), command(index.0)),
    }?;
    writeln!(writer, ",{},{}", row.amount.bytes, row.amount.count)
}

/// A field in quotes where it needs them. What a spreadsheet would take for a formula gets a `'` before it.
pub fn quoted(name: &str) -> Cow<'_, str> {
    let mut text = visible(name);
    if text.starts_with(['=', '+', '-', '@']) {
        text = Cow::Owned(format!("'{text}"));
    }
    if text.contains(['"', ',']) { Cow::Owned(format!("\"{}\"", text.replace('"', "\"\""))) } else { text }
}
