//! The report as a table for a terminal: human units, the biggest rows, and what is not shown.
//!
//! It must not know the terminal beyond its width. Names are made visible and shortened.

use std::{borrow::Cow, io::Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{
    OutputError,
    aggregate::{By, Key, Report, Row, frame_texts, stack_text},
    summary, text,
};
use crate::profile::{Amount, FrameId, Unit};

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
        // comfy-table pads the last column; trailing blanks help nobody.
        for line in table(report, shown, layout.width).lines() {
            writeln!(writer, "{}", line.trim_end()).map_err(OutputError::Write)?;
        }
    }
    writeln!(writer, "{}", last_line(report, rest)).map_err(OutputError::Write)
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
    let (number, bytes) = (text::count(rest.len() as u64), text::bytes(sum.bytes));
    format!("{number} more {rows} not shown: {bytes} in {}, {share} (see --top)", text::blocks(sum.count))
}

fn table(report: &Report<'_>, rows: &[Row<'_>], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.force_no_tty().load_style(presets::NOTHING);
    if let Some(width) = width {
        table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
    }
    let names: &[&str] = match report.by {
        By::Line => &["line", "function"],
        By::Function => &["function", "file"],
        By::File => &["file"],
        By::Module => &["module"],
        By::Stack => &["stack, outermost first"],
        By::Type => &["type"],
        By::Process => &["pid", "command"],
        By::Thread => &["pid", "thread", "command"],
    };
    table.set_header(["bytes", "share", "blocks"].iter().chain(names));
    let texts = frame_texts(report.profile);
    for row in rows {
        let Amount { bytes, count } = row.amount;
        let mut cells = vec![text::bytes(bytes), share(report, row.amount), text::count(count)];
        cells.extend(cells_of(report, &texts, &row.key));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn share(report: &Report<'_>, amount: Amount) -> String {
    let unit: Unit = report.unit;
    format!("{:.1} %", text::percent(unit.of(amount), unit.of(report.total)))
}

fn cells_of(report: &Report<'_>, texts: &[String], key: &Key<'_>) -> Vec<String> {
    let process = |index: u32| report.profile.processes.get(index as usize);
    let pid = |index| process(index).map_or(0, |process| process.pid).to_string();
    let command = |index| process(index).map_or_else(String::new, text::command);
    match key {
        Key::Line { file, line: 0, function } => vec![path(file), name(function)],
        Key::Line { file, line, function } => vec![format!("{}:{line}", path(file)), name(function)],
        Key::Function { file, function } => vec![name(function), path(file)],
        Key::File(file) => vec![path(file)],
        Key::Module(module) => vec![name(module)],
        Key::NoPython(reason) => match report.by {
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
