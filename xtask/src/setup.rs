//! `cargo xtask setup`: bring what building the eBPF objects and running the tests takes. Safe to repeat, and quick when all is there.
//!
//! Needed to build: bpf-linker against the compiler's own LLVM, and the sources of `core`. Good to have for tests: tools from Debian and a mounted tracefs,
//! brought only where we are root; what cannot be brought is said, and the tests that need it report themselves as skipped.

mod allocators;
mod clang;
mod core_sources;
mod cross_tools;
pub mod debian;
mod free_threaded;
mod linker;
mod musl;
mod python;
mod pythons;
mod test_files;
mod test_tools;

pub use cross_tools::bring as bring_cross_tools;
pub use python::environment as python_environment;
pub use python::pinned as pinned_environment;
pub use pythons::installed as debian_pythons;

use crate::command::{Machine, Runner};
use crate::toolchain::Toolchain;
use crate::workspace;
use anyhow::{Result, bail};
use std::path::Path;

/// Do every step, say how each ended, and fail if one that building needs did.
pub fn run() -> Result<()> {
    let mut outcomes = build_tools(&Machine)?;
    outcomes.push(("tools for tests", test_tools::bring(&Machine, &test_tools::Host::detect())));
    outcomes.push(("tracefs", test_tools::mount_tracefs(&Machine, &test_tools::Host::detect())));
    let sources = debian::Sources::read(Path::new("/"));
    outcomes.push(("allocators for tests", allocators::bring(&Machine, &sources)));
    outcomes.push(("files for tests", test_files::bring(&Machine, &sources)));
    let is_root = test_tools::Host::detect().is_root;
    outcomes.push(("interpreters for tests", pythons::bring(&Machine, &sources, is_root)));
    outcomes.push(("an interpreter for musl for tests", musl::bring(&Machine, &sources, &pythons::folder())));
    outcomes
        .push(("an interpreter by clang for tests", clang::bring(&Machine, &sources, &pythons::folder())));
    let services = python::environment(
        &Machine,
        Path::new("/usr/bin/python3"),
        &["gunicorn", "uvicorn", "greenlet", "numpy"],
    );
    outcomes.push(("Python packages for tests", services.map(|python| python.display().to_string())));
    let requirements = workspace::root().join("xtask/bench/services/requirements.txt");
    let shops = python::pinned(&Machine, Path::new("/usr/bin/python3"), "services", &requirements);
    outcomes.push(("Python packages for benches", shops.map(|python| python.display().to_string())));
    let askers = workspace::root().join("tracer-user/tests/serve/requirements.txt");
    let askers = python::pinned(&Machine, Path::new("/usr/bin/python3"), "askers", &askers);
    outcomes.push((
        "what asks the sidecar's endpoints in tests",
        askers.map(|python| python.display().to_string()),
    ));
    outcomes.push(("free-threaded interpreters for tests", free_threaded::bring(&Machine, &sources)));
    report(&outcomes)
}

/// Bring what building needs and say so; an error where that failed. For other verbs, which cannot do without.
pub fn build_tools_or_fail() -> Result<()> {
    report(&build_tools(&Machine)?)
}

type StepOutcome = (&'static str, Result<String>);

/// The steps without which nothing can be built.
fn build_tools(runner: &impl Runner) -> Result<Vec<StepOutcome>> {
    let root = workspace::root();
    let toolchain = Toolchain::detect(runner, &root)?;
    let scratch = workspace::scratch().join("setup");
    let apt = debian::Sources::read(Path::new("/"));
    Ok(vec![
        ("sources of core", core_sources::bring(runner, &toolchain, &root, &apt, &scratch)),
        ("bpf-linker", linker::bring(runner, &toolchain, &scratch)),
    ])
}

fn report(outcomes: &[StepOutcome]) -> Result<()> {
    let mut failed = Vec::new();
    for (name, outcome) in outcomes {
        match outcome {
            Ok(text) => println!("{name}: {text}"),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("could not bring {}", failed.join(", ")) }
}
