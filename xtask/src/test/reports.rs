//! What failed tests said, kept to be shown once more at the end: hours of output lie between a failure and the line of counts.

/// Lines of one test that are kept: the error and its context come first.
const LINES: usize = 20;
/// Tests of which anything is kept.
const TESTS: usize = 30;

/// The reports of failed tests, as libtest and libtest-mimic print them: `---- name ----`, then what was said, then the next one or the list `failures:`.
#[derive(Debug, Default)]
pub struct Reports {
    lines: Vec<String>,
    tests: usize,
    left: usize,
}

impl Reports {
    /// Takes a line of the output.
    pub fn read_line(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" ----") {
            self.tests += 1;
            self.left = if self.tests > TESTS { 0 } else { LINES + 1 };
        } else if line == "failures:" || line.starts_with("test result:") {
            self.left = 0;
        }
        if self.left > 0 && !line.trim().is_empty() {
            self.lines.push(line.to_owned());
            self.left -= 1;
        }
    }

    /// What was kept.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_tests_say_is_kept_and_nothing_else() {
        let mut reports = Reports::default();
        let output = "test a ... ok\nfailures:\n\n---- b ----\nwrong\n\nbecause\n---- c ----\nlate\n\nfailures:\n    b\n    c\ntest result: FAILED. 1 passed";
        output.lines().for_each(|line| reports.read_line(line));
        let kept: Vec<&str> = reports.lines().collect();
        assert_eq!(kept, ["---- b ----", "wrong", "because", "---- c ----", "late"]);
    }

    #[test]
    fn a_long_report_is_cut() {
        let mut reports = Reports::default();
        reports.read_line("---- b ----");
        (0..1_000).for_each(|number| reports.read_line(&number.to_string()));
        assert_eq!(reports.lines().count(), LINES + 1);
    }
}
