//! The sidecar's HTTP side from outside: in this process for each answer, and over sockets with the programs that will ask it.
//!
//! A program that is not installed makes its tests ignored, not passed; where `CI` is set they fail instead.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows test functions, not those of another harness"
)]

mod answers;
mod browser;
mod connections;
mod document;
#[path = "../output/fixture.rs"]
mod fixture;
mod go;
mod guarded;
mod hostile;
mod names;
mod prometheus;
mod questions;
mod support;

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

/// Whether a program runs here.
fn has(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
}

/// The trials of one file; `needs`: what they need, and whether it is there.
fn trials(file: &str, needs: bool, tests: &[(&str, fn())]) -> Vec<Trial> {
    let is_ignored = !needs && std::env::var_os("CI").is_none();
    let trial = |(name, test): &(&str, fn())| {
        let test = *test;
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(format!("{file}::{name}"), run).with_ignored_flag(is_ignored)
    };
    tests.iter().map(trial).collect()
}

fn main() -> ExitCode {
    let all = [
        trials("answers", true, answers::TESTS),
        trials("questions", true, questions::TESTS),
        trials("guarded", true, guarded::TESTS),
        trials("connections", true, connections::TESTS),
        trials("encrypted", has("openssl", "version") && has("curl", "--version"), connections::ENCRYPTED),
        trials("document", true, document::TESTS),
        trials("fuzzed", document::schemathesis().is_some(), document::FUZZED),
        trials("hostile", true, hostile::TESTS),
        trials("names", true, names::TESTS),
        trials("prometheus", has("promtool", "--version"), prometheus::TESTS),
        trials("prometheus_server", has("prometheus", "--version"), prometheus::SERVER),
        trials("go", has("go", "version"), go::TESTS),
        trials("browser", has("chromium", "--version"), browser::TESTS),
    ];
    libtest_mimic::run(&Arguments::from_args(), all.into_iter().flatten().collect()).exit_code()
}
