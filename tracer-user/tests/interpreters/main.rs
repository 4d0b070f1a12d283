//! Compares layouts, lines, stacks and the pool census with real interpreters, one test an interpreter.
//!
//! Interpreters come from pyenv, the system and `cargo xtask setup`; one that is missing is reported as ignored, and if none is there at all
//! the run fails.
mod figures;
mod image;
mod layout;
mod lines;
mod pools;
mod stacks;
mod support;
mod survey;
mod survivors;
mod walk;

use std::process::ExitCode;

use alloctrace::discover::layout::rows;
use libtest_mimic::{Arguments, Failed, Trial};
use support::{Interpreter, interpreters};

/// One comparison, made once for each interpreter that it applies to; for the others it is reported as ignored.
struct Comparison {
    name: &'static str,
    check: fn(&Interpreter) -> anyhow::Result<()>,
    applies: fn(&Interpreter) -> bool,
}

const COMPARISONS: &[Comparison] = &[
    Comparison { name: "layout", check: layout::check, applies: |i| i.headers.is_some() },
    Comparison { name: "lines", check: lines::check, applies: |_| true },
    Comparison { name: "stacks", check: stacks::check, applies: |_| true },
    Comparison { name: "survivors", check: survivors::check, applies: |_| true },
    Comparison { name: "survey", check: survey::check, applies: |_| true },
    Comparison { name: "walk", check: walk::check, applies: |_| true },
    Comparison { name: "pools_small", check: pools::check_small, applies: |_| true },
    Comparison { name: "pools_large", check: pools::check_large, applies: |_| true },
    Comparison { name: "pools_running", check: pools::check_running, applies: |_| true },
    Comparison {
        name: "pools_subinterpreters",
        check: pools::check_subinterpreters,
        applies: pools::has_allocator_per_interpreter,
    },
    Comparison { name: "figures_mixed", check: figures::check_mixed, applies: |_| true },
    Comparison { name: "figures_fragment", check: figures::check_fragment, applies: |_| true },
    Comparison { name: "figures_leak", check: figures::check_leak, applies: |_| true },
    Comparison { name: "figures_threads", check: figures::check_threads, applies: |_| true },
    Comparison { name: "figures_churn", check: figures::check_churn, applies: |_| true },
];

fn main() -> ExitCode {
    let (found, refused) = interpreters();
    let mut trials = vec![Trial::test("some_interpreter_is_installed", {
        let count = found.len();
        move || match refused.as_slice() {
            [] if count == 0 => Err(Failed::from("none found: install one with pyenv")),
            [] => Ok(()),
            refused => Err(Failed::from(refused.join("; "))),
        }
    })];
    for Comparison { name, check, applies } in COMPARISONS {
        for interpreter in &found {
            let interpreter = interpreter.clone();
            let title = format!("{name}::{}", interpreter.label);
            let is_ignored = !applies(&interpreter);
            let trial = Trial::test(title, move || check(&interpreter).map_err(|e| format!("{e:#}").into()));
            trials.push(trial.with_ignored_flag(is_ignored));
        }
        for row in rows().iter().filter(|row| found.iter().all(|i| i.layout.minor != row.minor)) {
            let title = format!("{name}::3.{}_not_installed", row.minor);
            trials.push(Trial::test(title, || Ok(())).with_ignored_flag(true));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
