//! `cargo xtask compatibility`: the table of docs/COMPATIBILITY.md from what tests have measured.
//!
//! The system tests write a line for each interpreter below the target folder, `cargo xtask vm-test --json FILE` writes its cells. Both are taken into
//! `docs/compatibility.json`, which is checked in: no machine has all kernels and interpreters. The table is made from that file alone.

use crate::workspace;
use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const RESULTS: &str = "docs/compatibility.json";
const PAGE: &str = "docs/COMPATIBILITY.md";
/// Between these lines of the page stands the table.
const BEGIN: &str = "<!-- table: written by `cargo xtask compatibility` -->";
const END: &str = "<!-- end of table -->";

/// What tells cells apart.
const KEYS: [&str; 6] = ["interpreter", "origin", "build", "c_library", "architecture", "kernel"];
/// What is measured of each; any may be missing.
const FIGURES: [&str; 5] = ["allocations", "frees", "whole_stacks", "lines", "equal_lines"];

/// Flags of `compatibility`.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing; fail unless the table is what the results give
    #[arg(long)]
    check: bool,
    /// Take in the cells that `cargo xtask vm-test --json FILE` has written
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    vm: Vec<PathBuf>,
}

/// Take in what there is, and write the table or compare it.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    let root = workspace::root();
    let mut cells = read_results(&root.join(RESULTS))?;
    let lines = fs::read_to_string(workspace::scratch().join("compatibility.jsonl")).unwrap_or_default();
    for line in lines.lines() {
        take_in(&mut cells, &serde_json::from_str(line).context("a line of the system tests is no JSON")?);
    }
    for path in &args.vm {
        let text =
            fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        let told: Value =
            serde_json::from_str(&text).with_context(|| format!("`{}` is no JSON", path.display()))?;
        worst_of_guests(&told).iter().for_each(|cell| take_in(&mut cells, cell));
    }
    let all: Vec<Value> = cells.values().cloned().map(Value::Object).collect();
    write(&root.join(RESULTS), &format!("{:#}\n", json!({"schema": 1, "cells": all})))?;
    let page = root.join(PAGE);
    write(&page, &with_table(&read(&page)?, &table(&cells))?)
}

/// Fail unless the page's table is what the checked-in results give.
pub fn check() -> Result<()> {
    let root = workspace::root();
    let (cells, page) = (read_results(&root.join(RESULTS))?, read(&root.join(PAGE))?);
    if with_table(&page, &table(&cells))? != page {
        bail!("the table of `{PAGE}` is not what `{RESULTS}` gives; run `cargo xtask compatibility`");
    }
    Ok(())
}

/// By what tells them apart.
type Cells = BTreeMap<Vec<String>, Map<String, Value>>;

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))
}

fn read_results(path: &Path) -> Result<Cells> {
    let results: Value =
        serde_json::from_str(&read(path)?).with_context(|| format!("`{}` is no JSON", path.display()))?;
    let mut cells = Cells::new();
    for cell in results["cells"].as_array().into_iter().flatten() {
        take_in(&mut cells, cell);
    }
    Ok(cells)
}

/// Adds a cell, or replaces those figures of it that were measured anew.
fn take_in(cells: &mut Cells, told: &Value) {
    let text = |key: &str| told[key].as_str().unwrap_or_default();
    let key = KEYS.map(|key| if key == "kernel" { series(text(key)) } else { text(key).to_owned() });
    let cell = cells.entry(sorted(&key)).or_default();
    for (name, value) in KEYS.iter().zip(key) {
        cell.insert((*name).to_owned(), value.into());
    }
    for name in FIGURES {
        if !told[name].is_null() {
            cell.insert(name.to_owned(), told[name].clone());
        }
    }
}

/// Versions by their numbers, not their letters.
fn sorted(key: &[String]) -> Vec<String> {
    let padded =
        |text: &String| text.split('.').map(|part| format!("{part:0>4}")).collect::<Vec<_>>().join(".");
    vec![padded(&key[0]), key[1].clone(), key[2].clone(), key[3].clone(), key[4].clone(), padded(&key[5])]
}

/// `6.18` of `6.18.44-arch1`.
fn series(release: &str) -> String {
    release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".")
}

/// One cell for each interpreter and kernel of emulated machines: the worst that any test of theirs has measured.
fn worst_of_guests(told: &Value) -> Vec<Value> {
    let mut worst: BTreeMap<String, Value> = BTreeMap::new();
    for cell in told["cells"].as_array().into_iter().flatten() {
        let (Some(interpreter), true) = (cell["interpreter"].as_str(), cell["outcome"] == "passed") else {
            continue;
        };
        if cell["coverage"].is_null() {
            continue;
        }
        let text = |key: &str| cell[key].as_str().unwrap_or_default().to_owned();
        let known =
            worst.entry(format!("{interpreter} {} {}", text("architecture"), series(&text("kernel"))));
        let known = known.or_insert_with(|| {
            json!({"interpreter": interpreter, "origin": "debian", "build": "static, PGO", "c_library": "glibc",
                   "architecture": text("architecture"), "kernel": text("kernel")})
        });
        let coverage = &cell["coverage"];
        let figures = [
            ("allocations", &coverage["allocations"]),
            ("frees", &coverage["frees"]),
            ("whole_stacks", &cell["complete_stacks"]),
        ];
        for (name, found) in figures {
            if !found.is_null() && (known[name].is_null() || found.as_f64() < known[name].as_f64()) {
                known[name] = found.clone();
            }
        }
    }
    worst.into_values().collect()
}

fn table(cells: &Cells) -> String {
    let mut text = String::from(
        "| CPython | from | build | C library | architecture | kernel | allocations seen | frees seen | whole stacks | lines as tracemalloc has them |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for cell in cells.values() {
        let key = KEYS.map(|key| cell[key].as_str().unwrap_or_default());
        let share =
            |name: &str| cell.get(name).and_then(Value::as_f64).map_or_else(|| "-".to_owned(), percent);
        let number = |name: &str| cell.get(name).and_then(Value::as_u64);
        let lines = match (number("equal_lines"), number("lines")) {
            (Some(equal), Some(all)) => format!("{equal} of {all}"),
            _ => "-".to_owned(),
        };
        let shares = ["allocations", "frees", "whole_stacks"].map(share);
        let _ = writeln!(text, "| {} | {} | {lines} |", key.join(" | "), shares.join(" | "));
    }
    text
}

/// Cut, not rounded: 99.996 % is not 100 %.
fn percent(share: f64) -> String {
    // The product of a share that is a whole number of hundredths of a percent may lie just below it.
    format!("{:.2} %", (share * 10_000.0 + 1e-6).floor() / 100.0)
}

/// The page with another table.
fn with_table(page: &str, table: &str) -> Result<String> {
    let lacks = || format!("`{PAGE}` lacks the line `{BEGIN}` or `{END}`");
    let (before, rest) = page.split_once(BEGIN).with_context(lacks)?;
    let (_, after) = rest.split_once(END).with_context(lacks)?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(interpreter: &str, kernel: &str) -> Value {
        json!({"interpreter": interpreter, "origin": "debian", "build": "static", "c_library": "glibc", "architecture": "x86_64",
               "kernel": kernel, "allocations": 0.999_96, "frees": 1.0})
    }

    #[test]
    fn later_figures_replace_earlier_ones_and_leave_others() {
        let mut cells = Cells::new();
        take_in(&mut cells, &cell("3.11.2", "6.18.44"));
        let mut later = cell("3.11.2", "6.18.45-arch1");
        later["allocations"] = Value::Null;
        later["frees"] = json!(0.5);
        later["lines"] = json!(10);
        take_in(&mut cells, &later);
        let found: Vec<_> = cells.values().collect();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (&found[0]["allocations"], &found[0]["frees"], &found[0]["lines"]),
            (&json!(0.999_96), &json!(0.5), &json!(10))
        );
        assert_eq!(found[0]["kernel"], "6.18");
    }

    #[test]
    fn the_table_is_in_order_and_never_better_than_the_figures() {
        let mut cells = Cells::new();
        take_in(&mut cells, &cell("3.11.2", "6.18"));
        take_in(&mut cells, &cell("3.9.18", "6.18"));
        take_in(&mut cells, &cell("3.9.18", "6.1"));
        let table = table(&cells);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| 3.9.18 | debian | static | glibc | x86_64 | 6.1 | 99.99 % | 100.00 % | - | - |",
                "| 3.9.18 | debian | static | glibc | x86_64 | 6.18 | 99.99 % | 100.00 % | - | - |",
                "| 3.11.2 | debian | static | glibc | x86_64 | 6.18 | 99.99 % | 100.00 % | - | - |",
            ]
        );
    }

    #[test]
    fn of_guests_the_worst_counts() {
        let guest = |test: &str, outcome: &str, share: f64| {
            json!({"architecture": "arm64", "kernel": "6.12.1", "preempt": "full", "test": test, "interpreter": "3.11.2",
                   "outcome": outcome, "coverage": {"allocations": share, "frees": 1.0}, "complete_stacks": 1.0})
        };
        let told = json!({"cells": [guest("exact", "passed", 1.0), guest("stress", "passed", 0.9995), guest("x", "skipped", 0.1)]});
        let found = worst_of_guests(&told);
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0]["allocations"], &found[0]["whole_stacks"]), (&json!(0.9995), &json!(1.0)));
    }

    #[test]
    fn the_rest_of_the_page_stays() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(with_table(&page, "new\n").unwrap(), format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert!(with_table("no table", "").is_err());
    }

    #[test]
    fn shares_are_cut_and_not_rounded() {
        assert_eq!([1.0, 0.999_999, 0.9999, 0.5].map(percent), ["100.00 %", "99.99 %", "99.99 %", "50.00 %"]);
    }
}
