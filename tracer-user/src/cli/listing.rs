//! Rows and columns of short texts, as a table and as CSV: what `ps` and `doctor` print.
//!
//! It must not know what the columns mean.

use std::io::{IsTerminal as _, Write, stdout};

use comfy_table::{ContentArrangement, Table, presets};

use crate::output::{OutputError, csv::quoted, table::terminal_width, text::visible};

/// Rows under a header.
#[derive(Debug)]
pub struct Listing {
    /// Names of the columns.
    pub columns: Vec<&'static str>,
    /// As many cells in each.
    pub rows: Vec<Vec<String>>,
}

impl Listing {
    /// Writes it for people.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write_table(&self, writer: &mut dyn Write) -> Result<(), OutputError> {
        let mut table = Table::new();
        table.force_no_tty().load_style(presets::NOTHING);
        if let Some(width) = stdout().is_terminal().then(terminal_width).flatten() {
            table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
        }
        table.set_header(&self.columns);
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| visible(cell).into_owned()));
        }
        for line in table.lines() {
            writeln!(writer, "{}", line.trim_end()).map_err(OutputError::Write)?;
        }
        Ok(())
    }

    /// Writes it for spreadsheets.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write_csv(&self, writer: &mut dyn Write) -> Result<(), OutputError> {
        writeln!(writer, "{}", self.columns.join(",")).map_err(OutputError::Write)?;
        for row in &self.rows {
            let cells: Vec<_> = row.iter().map(|cell| quoted(cell)).collect();
            writeln!(writer, "{}", cells.join(",")).map_err(OutputError::Write)?;
        }
        Ok(())
    }
}
