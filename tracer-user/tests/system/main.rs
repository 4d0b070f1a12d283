//! Records real programs with the real kernel: one test a behaviour, and one an interpreter where that matters.
//!
//! Needs root, or the capabilities that tracing needs. Where it cannot run everything is reported as ignored, and as failed
//! where `CI` is `true`. No test asserts on time; what takes how long is printed to standard error.
mod asked;
mod attach;
mod budget;
mod children;
mod command;
mod containers;
mod durations;
mod errors;
mod exact;
mod figures;
mod free_threaded;
mod growth;
mod interpreters;
mod kernel;
mod limits;
mod machine;
mod mallocs;
mod outputs;
mod results;
mod services;
mod serving;
mod stacks;
mod support;
mod survey;
mod switches;
mod threads;
mod truth;
mod workers;

use std::process::ExitCode;

use durations::timed;
use libtest_mimic::{Arguments, Trial};
use machine::{Interpreter, cannot_trace, interpreters};

/// One test; with a function of an interpreter it is run once for each.
enum Check {
    Once(fn() -> anyhow::Result<()>),
    Each(fn(&Interpreter) -> anyhow::Result<()>),
    /// Once for each free-threaded interpreter.
    Free(fn(&Interpreter) -> anyhow::Result<()>),
    /// For one interpreter: the system's, or the newest where there is none.
    One(fn(&Interpreter) -> anyhow::Result<()>),
}

/// A test, and whether it can be run here.
struct Test {
    name: &'static str,
    check: Check,
    runs_here: fn() -> bool,
}

const fn once(name: &'static str, check: fn() -> anyhow::Result<()>) -> Test {
    Test { name, check: Check::Once(check), runs_here: || true }
}

const fn each(name: &'static str, check: fn(&Interpreter) -> anyhow::Result<()>) -> Test {
    Test { name, check: Check::Each(check), runs_here: || true }
}

const fn free(name: &'static str, check: fn(&Interpreter) -> anyhow::Result<()>) -> Test {
    Test { name, check: Check::Free(check), runs_here: || true }
}

const fn one(name: &'static str, check: fn(&Interpreter) -> anyhow::Result<()>) -> Test {
    Test { name, check: Check::One(check), runs_here: || true }
}

impl Test {
    const fn only_if(mut self, runs_here: fn() -> bool) -> Self {
        self.runs_here = runs_here;
        self
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Every test keeps a processor busy or two; more at once would only measure each other.
    arguments.test_threads.get_or_insert(2);
    let found = interpreters();
    let reason =
        if found.is_empty() { Some("no interpreter of 3.8 to 3.15".to_owned()) } else { cannot_trace() };
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    if let Some(reason) = &reason {
        support::say(&format!("nothing can be traced here: {reason}"));
    }
    let able = reason.is_none();
    let mut trials = vec![
        Trial::test("this_machine_can_trace", move || reason.map_or(Ok(()), |reason| Err(reason.into())))
            .with_ignored_flag(!able && !is_ci),
    ];
    let missing = kinds_missing(&found);
    trials.push(
        Trial::test("every_kind_of_interpreter_is_here", move || match missing.as_slice() {
            [] => Ok(()),
            missing => {
                Err(format!("no interpreter of: {}; run `cargo xtask setup`", missing.join(", ")).into())
            }
        })
        .with_ignored_flag(!is_ci),
    );
    let tests = [
        errors::TESTS,
        command::TESTS,
        children::TESTS,
        containers::TESTS,
        services::TESTS,
        serving::TESTS,
        attach::TESTS,
        exact::TESTS,
        threads::TESTS,
        outputs::TESTS,
    ];
    for Test { name, check: kind, runs_here } in tests
        .into_iter()
        .chain([kernel::TESTS, limits::TESTS, mallocs::TESTS, truth::TESTS, survey::TESTS])
        .chain([stacks::TESTS, switches::TESTS, interpreters::TESTS, free_threaded::TESTS, workers::TESTS])
        .chain([growth::TESTS, budget::TESTS, figures::TESTS])
        .flatten()
    {
        // What setup brings must be there in CI: a test that vanishes proves nothing.
        let ignored = !able || !runs_here() && !is_ci;
        match *kind {
            Check::Once(check) => {
                trials.push(
                    Trial::test(*name, move || timed(name, || done(check()))).with_ignored_flag(ignored),
                );
            }
            Check::Each(check) | Check::Free(check) => {
                let is_free = matches!(*kind, Check::Free(_));
                for interpreter in if is_free { machine::free_threaded() } else { found.clone() } {
                    let title = format!("{name}::{}", interpreter.label);
                    let trial = Trial::test(title, move || timed(name, || done(check(&interpreter))));
                    trials.push(trial.with_ignored_flag(ignored));
                }
            }
            Check::One(check) => {
                let interpreter = machine::preferred(&found);
                let run = move || interpreter.map_or(Ok(()), |found| done(check(&found)));
                let trial = Trial::test(*name, move || timed(name, run));
                trials.push(trial.with_ignored_flag(ignored));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    durations::print();
    conclusion.exit_code()
}

/// What `cargo xtask setup` brings besides the machine's own; groups of tests would vanish with it.
fn kinds_missing(found: &[Interpreter]) -> Vec<&'static str> {
    let mut missing: Vec<_> = ["system", "pyenv", "debian", "musl", "clang"].into();
    missing.retain(|kind| !found.iter().any(|interpreter| interpreter.label.ends_with(kind)));
    missing.extend(machine::free_threaded().is_empty().then_some("free-threaded"));
    missing
}

fn done(result: anyhow::Result<()>) -> Result<(), libtest_mimic::Failed> {
    result.map_err(|error| format!("{error:#}").into())
}
