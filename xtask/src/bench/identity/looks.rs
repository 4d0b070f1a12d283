//! What became of blocks that were followed by budget mode's looks, as tables: by kind of block over all programs, and by program.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Kinds with fewer blocks than this that lived or were taken for alive are put together.
const ENOUGH: u64 = 100;
/// The last of a window's looks: what it takes for alive is a survivor.
const LAST_LOOK_MS: u64 = 1000;

/// Blocks that lived or did not, and how many of them were taken for alive.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    blocks: u64,
    not_free: u64,
    kept: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.not_free += other.not_free;
        self.kept += other.kept;
    }
}

#[derive(Debug, Clone)]
struct Row {
    kind: String,
    wait_ms: u64,
    lives: bool,
    count: Count,
}

/// The counts of one program on one interpreter.
pub struct Looked {
    label: String,
    rows: Vec<Row>,
    raw: serde_json::Value,
}

impl Looked {
    /// From what the measuring program says.
    pub fn parse(label: &str, text: &str) -> Result<Self> {
        let raw: serde_json::Value =
            serde_json::from_str(text).with_context(|| format!("{label}: `{text}` is no JSON"))?;
        let rows = raw["rows"].as_array().with_context(|| format!("{label}: no `rows`"))?;
        let rows =
            rows.iter().map(|row| parse_row(row).with_context(|| format!("{label}: `{row}` is no row")));
        Ok(Self { label: label.to_owned(), rows: rows.collect::<Result<_>>()?, raw })
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "label": self.label, "counts": self.raw })
    }
}

fn parse_row(row: &serde_json::Value) -> Result<Row> {
    let number = |name: &str| row[name].as_u64().with_context(|| format!("no `{name}`"));
    Ok(Row {
        kind: row["kind"].as_str().context("no `kind`")?.to_owned(),
        wait_ms: number("wait_ms")?,
        lives: row["lives"].as_bool().context("no `lives`")?,
        count: Count { blocks: number("blocks")?, not_free: number("not_free")?, kept: number("kept")? },
    })
}

#[derive(Debug, Default, Clone, Copy)]
struct Line {
    dead: Count,
    alive: Count,
}

impl Line {
    fn add(&mut self, other: Self) {
        self.dead.add(other.dead);
        self.alive.add(other.alive);
    }
}

/// All tables.
pub fn text(looked: &[Looked]) -> String {
    let rows: Vec<(&str, &Row)> =
        looked.iter().flat_map(|one| one.rows.iter().map(|row| (one.label.as_str(), row))).collect();
    let last: Vec<(&str, &Row)> =
        rows.iter().copied().filter(|(_, row)| row.wait_ms == LAST_LOOK_MS).collect();
    [
        table("by kind, after 1 s", few_together(lines(&last, |(_, row)| row.kind.clone()))),
        table("by program, after 1 s", lines(&last, |(label, _)| (*label).to_owned())),
        table("by time", lines(&rows, |(_, row)| format!("{:>5} ms", row.wait_ms))),
    ]
    .join("\n\n")
}

fn lines(rows: &[(&str, &Row)], name: impl Fn(&(&str, &Row)) -> String) -> BTreeMap<String, Line> {
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    for row in rows {
        let line = lines.entry(name(row)).or_default();
        if row.1.lives { line.alive.add(row.1.count) } else { line.dead.add(row.1.count) }
    }
    lines
}

fn few_together(lines: BTreeMap<String, Line>) -> BTreeMap<String, Line> {
    let mut kept: BTreeMap<String, Line> = BTreeMap::new();
    for (name, line) in lines {
        let is_rare = line.alive.blocks < ENOUGH && line.dead.kept < ENOUGH;
        kept.entry(if is_rare { "rarer kinds".to_owned() } else { name }).or_default().add(line);
    }
    kept
}

/// Freed blocks, the percent of them that the allocator's state and identity do not tell, living ones and the percent that is lost, and what
/// is taken for alive in percent of what is.
fn table(title: &str, mut lines: BTreeMap<String, Line>) -> String {
    let all = lines.values().fold(Line::default(), |mut sum, line| {
        sum.add(*line);
        sum
    });
    lines.insert("~ all".to_owned(), all);
    let width = lines.keys().map(String::len).max().unwrap_or(0).max(title.len());
    let head = ["freed", "in use %", "kept %", "alive", "lost %", "taken %"];
    let row = |name: &str, cells: [String; 6]| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:>8}")).collect();
        format!("{name:width$}{cells}")
    };
    let percent = |part: u64, whole: u64| match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1}", 100.0 * part as f64 / whole as f64),
    };
    let mut text = vec![row(title, head.map(str::to_owned))];
    text.extend(lines.iter().map(|(name, Line { dead, alive })| {
        let cells = [
            dead.blocks.to_string(),
            percent(dead.not_free, dead.blocks),
            percent(dead.kept, dead.blocks),
            alive.blocks.to_string(),
            percent(alive.blocks - alive.kept.min(alive.blocks), alive.blocks),
            percent(dead.kept + alive.kept, alive.blocks),
        ];
        row(name, cells)
    }));
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"followed": 5, "lost": 0, "rows": [
        {"kind": "Str", "wait_ms": 1000, "lives": false, "blocks": 400, "not_free": 200, "kept": 20},
        {"kind": "Str", "wait_ms": 1000, "lives": true, "blocks": 100, "not_free": 100, "kept": 99},
        {"kind": "Str", "wait_ms": 5000, "lives": true, "blocks": 50, "not_free": 50, "kept": 50},
        {"kind": "Set", "wait_ms": 1000, "lives": false, "blocks": 9, "not_free": 9, "kept": 9}]}"#;

    #[test]
    fn shares_are_of_what_was_freed_and_of_what_lived() {
        let text = text(&[Looked::parse("JSON loop, 3.11", TEXT).unwrap()]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(words.contains(&vec!["Str", "400", "50.0", "5.0", "100", "1.0", "119.0"]), "{text}");
        assert!(words.contains(&vec!["rarer", "kinds", "9", "100.0", "100.0", "0", "-", "-"]), "{text}");
        assert!(words.contains(&vec!["5000", "ms", "0", "-", "-", "50", "0.0", "100.0"]), "{text}");
    }

    #[test]
    fn what_is_no_result_is_quoted() {
        assert!(Looked::parse("a", "no").is_err_and(|error| error.to_string() == "a: `no` is no JSON"));
    }
}
