//! Counting tests: from the summary line that libtest and libtest-mimic print, and from checks that are one test each.

use anyhow::Result;
use std::fmt;

/// How many tests ended which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    pub fn add(&mut self, other: Self) {
        let Self { passed, failed, skipped } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// Count a check as one test and say how it ended.
    pub fn check(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                println!("{name}: ok");
                self.passed += 1;
            }
            Err(error) => {
                eprintln!("{name}: FAILED: {error:#}");
                self.failed += 1;
            }
        }
    }

    /// Take the counts of a line like `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; ...`.
    pub fn read_line(&mut self, line: &str) {
        let Some(summary) = line.trim().strip_prefix("test result:") else { return };
        let words: Vec<&str> = summary.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts_of(lines: &[&str]) -> String {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.read_line(line));
        counts.to_string()
    }

    #[test]
    fn summaries_of_both_harnesses_add_up() {
        let libtest =
            "test result: ok. 22 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.11s";
        let mimic = "test result: FAILED. 3 passed; 2 failed; 5 ignored; 0 measured; 0 filtered out; finished in 12.34s";
        assert_eq!(counts_of(&[libtest, "test a ... ok", mimic]), "25 passed, 2 failed, 6 skipped");
    }

    #[test]
    fn other_lines_do_not_count() {
        assert_eq!(
            counts_of(&["running 3 tests", "3 passed", "  7 failed; test result"]),
            "0 passed, 0 failed, 0 skipped"
        );
    }

    #[test]
    fn a_check_is_one_test() {
        let mut counts = Counts::default();
        counts.check("good", Ok(()));
        counts.check("bad", Err(anyhow::anyhow!("reason")));
        assert_eq!(counts, Counts { passed: 1, failed: 1, skipped: 0 });
    }
}
