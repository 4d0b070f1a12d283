//! What was counted, as tables: by kind of block over all programs, and by program over all kinds.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Kinds with fewer reuses and fewer living blocks than this are put together.
const ENOUGH: u64 = 200;
/// Blocks are taken for live ones in budget mode only when they have lived so long.
const TAIL_MS: u64 = 50;

/// Blocks of which this is known, and how many looked different by type, by fixed words, by all words.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    blocks: u64,
    differ: [u64; 3],
}

impl Count {
    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.differ.iter_mut().zip(other.differ).for_each(|(sum, more)| *sum += more);
    }

    fn percents(&self) -> [String; 3] {
        self.differ.map(|differ| match self.blocks {
            0 => "-".to_owned(),
            blocks => format!("{:.1}", 100.0 * differ as f64 / blocks as f64),
        })
    }
}

/// One row of the measuring program.
#[derive(Debug, Clone)]
struct Row {
    kind: String,
    size: String,
    tail_ms: u64,
    wait_ms: u64,
    truth: String,
    count: Count,
}

/// The counts of one program on one interpreter.
pub struct Counted {
    pub label: String,
    pub followed: u64,
    pub lost: u64,
    rows: Vec<Row>,
    raw: serde_json::Value,
}

impl Counted {
    /// From what the measuring program says.
    pub fn parse(label: &str, text: &str) -> Result<Self> {
        let raw: serde_json::Value =
            serde_json::from_str(text).with_context(|| format!("{label}: `{text}` is no JSON"))?;
        let number = |name: &str| raw[name].as_u64().with_context(|| format!("{label}: no `{name}`"));
        let rows = raw["rows"].as_array().with_context(|| format!("{label}: no `rows`"))?;
        let rows =
            rows.iter().map(|row| parse_row(row).with_context(|| format!("{label}: `{row}` is no row")));
        Ok(Self {
            label: label.to_owned(),
            followed: number("followed")?,
            lost: number("lost")?,
            rows: rows.collect::<Result<_>>()?,
            raw,
        })
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "label": self.label, "counts": self.raw })
    }
}

fn parse_row(row: &serde_json::Value) -> Result<Row> {
    let text = |name: &str| row[name].as_str().map(str::to_owned).with_context(|| format!("no `{name}`"));
    let number = |value: &serde_json::Value| value.as_u64().context("no number");
    let (kind, type_name) = (text("kind")?, text("type")?);
    let differ = &row["differ"];
    Ok(Row {
        kind: if type_name.is_empty() { kind } else { format!("{kind} {type_name}") },
        size: text("size")?,
        tail_ms: number(&row["tail_ms"])?,
        wait_ms: number(&row["wait_ms"])?,
        truth: text("truth")?,
        count: Count {
            blocks: number(&row["blocks"])?,
            differ: [number(&differ[0])?, number(&differ[1])?, number(&differ[2])?],
        },
    })
}

/// Blocks that were reused, and blocks that are the same.
#[derive(Debug, Default, Clone, Copy)]
struct Line {
    reused: Count,
    same: Count,
}

/// All tables.
pub fn text(counted: &[Counted]) -> String {
    let rows: Vec<(&str, &Row)> =
        counted.iter().flat_map(|one| one.rows.iter().map(|row| (one.label.as_str(), row))).collect();
    let lived: Vec<(&str, &Row)> = rows.iter().copied().filter(|(_, row)| row.tail_ms == TAIL_MS).collect();
    let size = |row: &Row| if row.size == "malloc" { ", malloc" } else { "" }.to_owned();
    [
        table("by kind", few_together(lines(&lived, |(_, row)| row.kind.clone() + &size(row)))),
        table("by size", lines(&lived, |(_, row)| row.size.clone())),
        table("by time since", lines(&lived, |(_, row)| format!("{:>5} ms", row.wait_ms))),
        table("by program", lines(&lived, |(label, _)| (*label).to_owned())),
        table("by tail", lines(&rows, |(_, row)| format!("{:>2} ms", row.tail_ms))),
    ]
    .join("\n\n")
}

fn lines(rows: &[(&str, &Row)], name: impl Fn(&(&str, &Row)) -> String) -> BTreeMap<String, Line> {
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    for row in rows {
        let line = lines.entry(name(row)).or_default();
        match row.1.truth.as_str() {
            "reused" => line.reused.add(row.1.count),
            "same" => line.same.add(row.1.count),
            // Freed blocks are known by the allocator's own state, resized ones have another content by right.
            _ => {}
        }
    }
    lines
}

fn few_together(lines: BTreeMap<String, Line>) -> BTreeMap<String, Line> {
    let mut kept: BTreeMap<String, Line> = BTreeMap::new();
    for (name, line) in lines {
        let is_rare = line.reused.blocks < ENOUGH && line.same.blocks < ENOUGH;
        let sum = kept.entry(if is_rare { "rarer kinds".to_owned() } else { name }).or_default();
        sum.reused.add(line.reused);
        sum.same.add(line.same);
    }
    kept
}

fn table(title: &str, mut lines: BTreeMap<String, Line>) -> String {
    let all = lines.values().fold(Line::default(), |mut sum, line| {
        sum.reused.add(line.reused);
        sum.same.add(line.same);
        sum
    });
    lines.insert("~ all".to_owned(), all);
    let width = lines.keys().map(String::len).max().unwrap_or(0).max(title.len());
    let head = ["reused", "type", "fixed", "all", "same", "type", "fixed", "all"];
    let row = |name: &str, cells: [String; 8]| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:>7}")).collect();
        format!("{name:width$}{cells}")
    };
    let mut text = vec![row(title, head.map(str::to_owned))];
    text.extend(lines.iter().map(|(name, line)| {
        let ([a, b, c], [d, e, f]) = (line.reused.percents(), line.same.percents());
        row(name, [line.reused.blocks.to_string(), a, b, c, line.same.blocks.to_string(), d, e, f])
    }));
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"followed": 5, "lost": 0, "rows": [
        {"kind": "Str", "type": "", "size": "to 64", "tail_ms": 50, "wait_ms": 10, "truth": "reused", "blocks": 400, "differ": [100, 300, 400]},
        {"kind": "Str", "type": "", "size": "to 64", "tail_ms": 50, "wait_ms": 10, "truth": "same", "blocks": 1000, "differ": [0, 1, 20]},
        {"kind": "Str", "type": "", "size": "to 64", "tail_ms": 0, "wait_ms": 10, "truth": "same", "blocks": 1000, "differ": [500, 500, 500]},
        {"kind": "Str", "type": "", "size": "to 64", "tail_ms": 50, "wait_ms": 10, "truth": "freed", "blocks": 9, "differ": [9, 9, 9]},
        {"kind": "Plain", "type": "float", "size": "malloc", "tail_ms": 50, "wait_ms": 100, "truth": "same", "blocks": 1, "differ": [1, 1, 1]}]}"#;

    #[test]
    fn shares_are_of_what_was_reused_and_of_what_was_not() {
        let text = text(&[Counted::parse("JSON loop, 3.11", TEXT).unwrap()]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(
            words.contains(&vec!["Str", "400", "25.0", "75.0", "100.0", "1000", "0.0", "0.1", "2.0"]),
            "{text}"
        );
        assert!(
            words.contains(&vec!["rarer", "kinds", "0", "-", "-", "-", "1", "100.0", "100.0", "100.0"]),
            "{text}"
        );
        assert!(
            words.contains(&vec!["0", "ms", "0", "-", "-", "-", "1000", "50.0", "50.0", "50.0"]),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_result_is_quoted() {
        assert!(Counted::parse("a", "no").is_err_and(|error| error.to_string() == "a: `no` is no JSON"));
        let error = Counted::parse("a", r#"{"followed": 1, "lost": 0, "rows": [{}]}"#).err().unwrap();
        assert_eq!(format!("{error:#}"), "a: `{}` is no row: no `kind`");
    }
}
