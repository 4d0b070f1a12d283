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
use anyhow::{Result, anyhow, bail};
use std::path::{Path, PathBuf};

/// Do every step, say how each ended, and fail if one that building needs did.
///
/// In two lanes, as most steps download, configure or link and leave processors idle: what cargo and pip bring, and what is made of Debian's packages.
pub fn run() -> Result<()> {
    let (built, brought) = std::thread::scope(|scope| {
        let brought = scope.spawn(from_debian);
        let built = build_tools(&Machine).map(|mut outcomes| {
            outcomes.extend(python_packages());
            outcomes
        });
        (built, brought.join())
    });
    let mut outcomes = built?;
    outcomes.extend(brought.map_err(|_| anyhow!("the thread that brings Debian's packages has panicked"))?);
    report(&outcomes)
}

/// In this order: interpreters are built with the tools.
fn from_debian() -> Vec<StepOutcome> {
    let (host, sources) = (test_tools::Host::detect(), debian::Sources::read(Path::new("/")));
    let folder = pythons::folder();
    vec![
        ("tools for tests", test_tools::bring(&Machine, &host)),
        ("tracefs", test_tools::mount_tracefs(&Machine, &host)),
        ("allocators for tests", allocators::bring(&Machine, &sources)),
        ("files for tests", test_files::bring(&Machine, &sources)),
        ("interpreters for tests", pythons::bring(&Machine, &sources, host.is_root)),
        ("an interpreter for musl for tests", musl::bring(&Machine, &sources, &folder)),
        ("an interpreter by clang for tests", clang::bring(&Machine, &sources, &folder)),
        ("free-threaded interpreters for tests", free_threaded::bring(&Machine, &sources)),
    ]
}

fn python_packages() -> Vec<StepOutcome> {
    let python = Path::new("/usr/bin/python3");
    let said = |environment: Result<PathBuf>| environment.map(|python| python.display().to_string());
    let services = python::environment(&Machine, python, &["gunicorn", "uvicorn", "greenlet", "numpy"]);
    let requirements = workspace::root().join("xtask/bench/services/requirements.txt");
    let shops = python::pinned(&Machine, python, "services", &requirements);
    vec![("Python packages for tests", said(services)), ("Python packages for benches", said(shops))]
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
