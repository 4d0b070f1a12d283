//! The report as a table for a terminal: human units, the biggest rows, and what is not shown.
//!
//! It must not know the terminal beyond its width. Names are made visible and shortened.

use std::{borrow::Cow, io::Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{
    OutputError,
    aggregate::{By, Key, Report, Row, frame_texts, stack_text},
    leaks::{self, Leaks},
    summary, text,
};
use crate::profile::{Amount, FrameId, Metric, Profile, Unit};

/// Longest name in a cell, in characters.
const CELL_CHARACTERS: usize = 56;
/// Most frames of a stack in a cell.
const CELL_FRAMES: usize = 16;

/// How a table is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Most rows.
    pub top: usize,
    /// Columns of the terminal; `None` where the output is none.
    pub width: Option<u16>,
}

/// Columns of the terminal that is our standard output; `None` where it is none.
pub fn terminal_width() -> Option<u16> {
    Table::new().width()
}

/// Writes a heading, the biggest rows and a line about the rest.
///
/// # Errors
/// When writing fails.
pub fn write(report: &Report<'_>, layout: Layout, writer: &mut dyn Write) -> Result<(), OutputError> {
    let heading = format!(
        "{} by {}\n{}\n{}",
        summary::total(report.metric, report.total),
        report.by,
        summary::processes(report.profile),
        summary::trust(report.profile),
    );
    writeln!(writer, "{heading}\n").map_err(OutputError::Write)?;
    let (shown, rest) = report.rows.split_at(layout.top.min(report.rows.len()));
    if !shown.is_empty() {
        write_table(&table(report, shown, layout.width), writer)?;
    }
    writeln!(writer, "{}", last_line(report, rest)).map_err(OutputError::Write)
}

/// Writes leaks: a heading that says what they were told by, the surest rows, and how sure that is.
///
/// # Errors
/// When writing fails.
pub fn write_leaks(leaks: &Leaks<'_>, layout: Layout, writer: &mut dyn Write) -> Result<(), OutputError> {
    let profile = leaks.profile;
    let (processes, trust) = (summary::processes(profile), summary::trust(profile));
    writeln!(writer, "{}\n{processes}\n{trust}\n", leaks::heading(leaks)).map_err(OutputError::Write)?;
    let shown = layout.top.min(leaks.rows.len());
    if shown > 0 {
        write_table(&table_of_leaks(leaks, shown, layout.width), writer)?;
    }
    let rest = match leaks.rows.len() - shown {
        _ if leaks.rows.is_empty() => "nothing grows: no stack kept taking blocks that stay".to_owned(),
        0 => "all rows shown".to_owned(),
        number => format!("{} more not shown (see --top)", text::count(number as u64)),
    };
    writeln!(writer, "{rest}; {}", leaks::CAUTION).map_err(OutputError::Write)
}

fn write_table(table: &Table, writer: &mut dyn Write) -> Result<(), OutputError> {
    // comfy-table pads the last column; trailing blanks help nobody.
    for line in table.to_string().lines() {
        writeln!(writer, "{}", line.trim_end()).map_err(OutputError::Write)?;
    }
    Ok(())
}

fn last_line(report: &Report<'_>, rest: &[Row<'_>]) -> String {
    if report.rows.is_empty() {
        return format!("no {} memory in this profile", report.metric);
    }
    if rest.is_empty() {
        return "all rows shown".to_owned();
    }
    let sum = rest.iter().fold(Amount::default(), |sum, row| sum.plus(row.amount));
    let share = share(report, sum);
    let rows = if rest.len() == 1 { "row" } else { "rows" };
    let (number, sum) = (text::count(rest.len() as u64), summary::amount(report.metric, sum));
    format!("{number} more {rows} not shown: {sum}, {share} (see --top)")
}

fn table(report: &Report<'_>, rows: &[Row<'_>], width: Option<u16>) -> Table {
    let has_errors = report.profile.estimates(report.metric);
    let is_flow = report.metric == Metric::Retained;
    let mut header = vec![if is_flow { "bytes/s" } else { "bytes" }];
    header.extend(has_errors.then_some("error"));
    header.push("share");
    header.extend((!is_flow).then_some("blocks"));
    let mut table = empty(&header, report.by, width);
    let texts = frame_texts(report.profile);
    for row in rows {
        let Amount { bytes, count } = row.amount;
        let mut cells = vec![if is_flow { text::flow(bytes) } else { text::bytes(bytes) }];
        cells.extend(has_errors.then(|| text::error(row.bytes_error, bytes)));
        cells.push(share(report, row.amount));
        cells.extend((!is_flow).then(|| text::count(count)));
        cells.extend(cells_of(report.profile, report.by, &texts, &row.key));
        table.add_row(cells);
    }
    align(&mut table, header.len());
    table
}

fn table_of_leaks(leaks: &Leaks<'_>, shown: usize, width: Option<u16>) -> Table {
    let header = ["growth", "at least", "likelihood", "live", "mean age"];
    let mut table = empty(&header, leaks.by, width);
    let texts = frame_texts(leaks.profile);
    let or_unknown = |cell: Option<String>| cell.unwrap_or_else(|| "?".to_owned());
    for row in &leaks.rows[..shown] {
        let mut cells = vec![
            text::rate(row.growth.bytes_per_second),
            text::rate(row.growth.at_least),
            text::likelihood(row.growth.likelihood_ppm),
            or_unknown(row.live_bytes.map(text::bytes)),
            or_unknown(row.age_milliseconds.map(text::age)),
        ];
        cells.extend(cells_of(leaks.profile, leaks.by, &texts, &row.key));
        table.add_row(cells);
    }
    align(&mut table, header.len());
    table
}

/// A table with a header: columns of figures, then those of names.
fn empty(figures: &[&str], by: By, width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.force_no_tty().load_style(presets::NOTHING);
    if let Some(width) = width {
        table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
    }
    let names: &[&str] = match by {
        By::Line => &["line", "function"],
        By::Function => &["function", "file"],
        By::File => &["file"],
        By::Module => &["module"],
        By::Stack => &["stack, outermost first"],
        By::Type => &["type"],
        By::Process => &["pid", "command"],
        By::Thread => &["pid", "thread", "command"],
    };
    table.set_header(figures.iter().chain(names));
    table
}

fn align(table: &mut Table, figures: usize) {
    for column in table.column_iter_mut().take(figures) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn share(report: &Report<'_>, amount: Amount) -> String {
    let unit: Unit = report.unit;
    format!("{:.1} %", text::percent(unit.of(amount), unit.of(report.total)))
}

fn cells_of(profile: &Profile, by: By, texts: &[String], key: &Key<'_>) -> Vec<String> {
    let process = |index: u32| profile.processes.get(index as usize);
    let pid = |index| process(index).map_or(0, |process| process.pid).to_string();
    let command = |index| process(index).map_or_else(String::new, text::command);
    match key {
        Key::Line { file, line: 0, function } => vec![path(file), name(function)],
        Key::Line { file, line, function } => vec![format!("{}:{line}", path(file)), name(function)],
        Key::Function { file, function } => vec![name(function), path(file)],
        Key::File(file) => vec![path(file)],
        Key::Module(module) => vec![name(module)],
        Key::NoPython(reason) => match by {
            By::Line => vec!["-".to_owned(), name(reason)],
            By::Function => vec![name(reason), "-".to_owned()],
            _ => vec![format!("- {}", name(reason))],
        },
        Key::Stack(stack) => vec![stack_cell(texts, stack.to_vec())],
        Key::Process(index) => vec![pid(index.0), command(index.0)],
        Key::Thread(index, thread) => vec![pid(index.0), thread.to_string(), command(index.0)],
    }
}

/// A frame a line; of a deep stack, the innermost, which tell more.
fn stack_cell(texts: &[String], mut stack: Vec<FrameId>) -> String {
    let hidden = stack.len().saturating_sub(CELL_FRAMES);
    stack.truncate(CELL_FRAMES);
    let mut lines: Vec<String> = stack_text(texts, stack)
        .map(|frame| text::shorten(frame, 2 * CELL_CHARACTERS).into_owned())
        .collect();
    if hidden > 0 {
        lines.insert(0, format!("... {hidden} more frames"));
    }
    lines.join("\n")
}

fn name(name: &str) -> String {
    text::shorten(&text::visible(name), CELL_CHARACTERS).into_owned()
}

/// Of a long path the end tells most.
fn path(path: &str) -> String {
    let path = text::visible(path);
    let excess = path.chars().count().saturating_sub(CELL_CHARACTERS);
    let path: Cow<'_, str> = match excess {
        0 => path,
        _ => Cow::Owned(['…'].into_iter().chain(path.chars().skip(excess + 1)).collect()),
    };
    path.into_owned()
}
