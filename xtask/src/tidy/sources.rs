//! Rules for source files: they say first what they are for, and they are short.

use super::File;

/// Lines of production code in a file from which it should be split.
const SOFT_LIMIT: usize = 400;
/// Lines of production code in a file that it must not exceed.
const HARD_LIMIT: usize = 600;
/// Lines of a `main.rs`, which only parses, runs and exits.
const MAIN_LIMIT: usize = 60;
/// Tables, which are read by looking something up and gain nothing from being cut in two.
const TABLES: [&str; 0] = [];

/// What is against the rules in this file.
pub fn faults(file: &File) -> Vec<String> {
    let (path, Some(text)) = (file.path.display(), file.text()) else { return Vec::new() };
    let mut faults = Vec::new();
    if let Some(wanted) = missing_header(file, text) {
        faults.push(format!("`{path}` does not begin with {wanted} that says what it is for"));
    }
    let lines = production_lines(file, text);
    if lines > HARD_LIMIT && !is_table(file) {
        faults.push(format!("`{path}` has {lines} lines without its tests; split it (at most {HARD_LIMIT})"));
    }
    if file.path.ends_with("src/main.rs") && lines > MAIN_LIMIT {
        faults.push(format!("`{path}` has {lines} lines; move work out of it (at most {MAIN_LIMIT})"));
    }
    faults
}

/// What is allowed still, but should not grow.
pub fn warnings(file: &File) -> Vec<String> {
    let (path, Some(text)) = (file.path.display(), file.text()) else { return Vec::new() };
    let lines = production_lines(file, text);
    if lines <= SOFT_LIMIT || lines > HARD_LIMIT || is_table(file) {
        return Vec::new();
    }
    vec![format!("`{path}` has {lines} lines without its tests; think of splitting it")]
}

/// The header that this kind of file must begin with, if it does not.
fn missing_header(file: &File, text: &str) -> Option<&'static str> {
    let mut lines = text.lines().skip_while(|line| line.starts_with("#!") || line.trim().is_empty());
    let first = lines.next().unwrap_or_default();
    let (wanted, starts): (_, &[&str]) = match file.path.extension()?.to_str()? {
        "rs" => ("a `//!` line", &["//!"]),
        "py" => ("a docstring or comment", &["\"\"\"", "r\"\"\"", "#"]),
        "sh" | "bt" => ("a comment", &["#", "//", "/*"]),
        _ => return None,
    };
    (!is_recorded(file) && !starts.iter().any(|start| first.starts_with(start))).then_some(wanted)
}

/// Lines of a Rust file up to its test module; nothing else has a length limit.
fn production_lines(file: &File, text: &str) -> usize {
    if !file.has_extension("rs") {
        return 0;
    }
    let lines: Vec<&str> = text.lines().collect();
    let is_test_module = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ");
    lines.windows(2).position(is_test_module).unwrap_or(lines.len())
}

fn is_table(file: &File) -> bool {
    TABLES.iter().any(|table| file.path.ends_with(table))
}

/// Recorded data is what it is.
fn is_recorded(file: &File) -> bool {
    file.path.components().any(|part| part.as_os_str() == "golden")
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn every_source_file_begins_with_its_purpose() {
        assert!(faults(&file("a/src/lib.rs", "#![no_std]\n//! What it is for.\n")).is_empty());
        assert_eq!(faults(&file("a/src/lib.rs", "use std::fs;\n")).len(), 1);
        assert_eq!(faults(&file("a/src/lib.rs", "")).len(), 1);
        assert!(
            faults(&file("a/tests/run.py", "#!/usr/bin/env python3\n\"\"\"What it is for.\"\"\"\n"))
                .is_empty()
        );
        assert_eq!(faults(&file("a/tests/run.py", "import sys\n")).len(), 1);
        assert!(faults(&file("a/tests/golden/odd.py", "import sys\n")).is_empty());
    }

    #[test]
    fn long_files_are_warned_of_then_refused() {
        let lines = |count: usize| format!("//! Header.\n{}", "x\n".repeat(count - 1));
        assert!(warnings(&file("a/b.rs", &lines(400))).is_empty());
        assert_eq!(warnings(&file("a/b.rs", &lines(401))).len(), 1);
        assert!(faults(&file("a/b.rs", &lines(600))).is_empty());
        assert_eq!(faults(&file("a/b.rs", &lines(601))).len(), 1);
    }

    #[test]
    fn tests_do_not_count_as_length() {
        let text = format!("//! Header.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "x\n".repeat(700));
        assert!(faults(&file("a/b.rs", &text)).is_empty());
    }

    #[test]
    fn main_stays_short() {
        let text = format!("//! Header.\n{}", "x\n".repeat(60));
        assert_eq!(faults(&file("a/src/main.rs", &text)).len(), 1);
    }
}
