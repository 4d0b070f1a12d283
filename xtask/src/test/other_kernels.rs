//! The recordings on other kernels and architectures (`cargo xtask vm-test`) as a part of `cargo xtask test`.
//!
//! They take about ten minutes, so they can be left out; and downloads, so they may be impossible. Both count as one skipped test, and as one that failed
//! with `CI=true`.

use super::counts::Counts;
use crate::vm_test::Lab;
use anyhow::Result;
use std::ffi::OsString;

/// Leaves them out, whatever it is set to.
const LEFT_OUT: &str = "ALLOCTRACE_NO_VM";
const NAME: &str = "other kernels";

/// How it went.
enum Outcome {
    /// The reason why nothing was run.
    NotRun(String),
    Run(Result<Counts>),
}

/// Run all of them, say how each ended, and count.
pub fn run(is_left_out: bool) -> Counts {
    let outcome = if is_left_out || std::env::var_os(LEFT_OUT).is_some() {
        Outcome::NotRun("left out, as asked for".to_owned())
    } else {
        match Lab::whole() {
            Ok(lab) => Outcome::Run(lab.count()),
            Err(error) => Outcome::NotRun(format!("{error:#}")),
        }
    };
    count(outcome, std::env::var_os("CI"))
}

fn count(outcome: Outcome, ci: Option<OsString>) -> Counts {
    let mut counts = Counts::default();
    match outcome {
        Outcome::Run(Ok(run)) => counts.add(run),
        Outcome::Run(Err(error)) => counts.check(NAME, Err(error)),
        Outcome::NotRun(reason) if ci.is_some_and(|value| value == "true") => {
            counts.check(NAME, Err(anyhow::anyhow!("not run: {reason}")));
        }
        Outcome::NotRun(reason) => {
            println!("{NAME}: skipped: {reason}");
            counts.skipped += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(outcome: Outcome, ci: Option<&str>) -> (u64, u64, u64) {
        let Counts { passed, failed, skipped } = count(outcome, ci.map(OsString::from));
        (passed, failed, skipped)
    }

    #[test]
    fn cells_are_counted_as_tests() {
        let cells = Counts { passed: 60, failed: 1, skipped: 4 };
        assert_eq!(counted(Outcome::Run(Ok(cells)), Some("true")), (60, 1, 4));
        assert_eq!(counted(Outcome::Run(Err(anyhow::anyhow!("it does not build"))), None), (0, 1, 0));
    }

    #[test]
    fn what_was_not_run_is_skipped_and_fails_a_ci() {
        let not_run = || Outcome::NotRun("no mirror".to_owned());
        assert_eq!(counted(not_run(), None), (0, 0, 1));
        assert_eq!(counted(not_run(), Some("false")), (0, 0, 1));
        assert_eq!(counted(not_run(), Some("true")), (0, 1, 0));
    }
}
