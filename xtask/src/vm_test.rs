//! `cargo xtask vm-test`: real recordings on other kernels and architectures, in machines that qemu emulates.
//!
//! Everything comes from Debian by an apt of our own: kernels, qemu, interpreters. Nothing is installed, and nothing needs root. The guests have
//! no hardware help (`-accel tcg`): /dev/kvm may be there and still not run such kernels. So results count, and times do not.
//!
//! In a guest `guest.py` records and tells what came out; `judge` decides here what that is worth.

mod cpio;
mod image;
mod judge;
mod machine;
mod packages;
mod results;

use crate::command::{Invocation, Machine, Runner as _};
use crate::setup::debian::Sources;
use crate::test::counts::Counts;
use crate::{cross, workspace};
use anyhow::{Context as _, Result};
use machine::{Architecture, Guest};
use packages::Store;
use results::{Cell, Outcome};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

/// Machines at once: an emulated machine of two processors leaves half of the host's idle.
const AT_ONCE: usize = 2;

/// Flags of `vm-test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only guests whose name contains this, such as `x86_64`, `6.1` or `full`
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Write the results to this file, for the table of what works where
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Record with the release build instead of the optimised one that tests use
    #[arg(long)]
    release: bool,
}

/// Bring what is missing, run all guests, say how each cell ended.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !cfg!(target_arch = "x86_64") {
        println!(
            "vm-test: skipped: qemu is brought for x86_64 hosts only\n{}",
            Counts { skipped: 1, ..Counts::default() }
        );
        return Ok(ExitCode::SUCCESS);
    }
    let folder = workspace::scratch().join("vm");
    let sources = Sources::read(Path::new("/"));
    let guests: Vec<Guest> = guests()
        .into_iter()
        .filter(|guest| args.only.as_ref().is_none_or(|part| guest.name().contains(part.as_str())))
        .collect();
    let tracers = Tracers::build(&guests, args.release)?;
    let mut architectures = vec![Architecture::X86_64, Architecture::Arm64];
    architectures.retain(|architecture| guests.iter().any(|guest| guest.architecture == *architecture));
    let store = Store::open(&sources, &folder, &architectures)?;
    let cells = run_guests(&store, &tracers, &guests)?;
    let mut counts = Counts::default();
    for cell in &cells {
        match cell.outcome {
            Outcome::Passed => counts.passed += 1,
            Outcome::Failed(_) => counts.failed += 1,
            Outcome::Skipped(_) => counts.skipped += 1,
        }
    }
    if let Some(path) = &args.json {
        std::fs::write(path, results::json(&cells))
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every kernel, first as it comes and then with full preemption.
fn guests() -> Vec<Guest> {
    let mut guests = Vec::new();
    for architecture in [Architecture::X86_64, Architecture::Arm64] {
        for (kernel, _) in packages::KERNELS {
            guests.push(Guest { architecture, kernel, full_preemption: false });
            guests.push(Guest { architecture, kernel, full_preemption: true });
        }
    }
    guests
}

/// The tracer's programs, for the guests that there are.
struct Tracers {
    x86_64: Option<PathBuf>,
    arm64: Option<PathBuf>,
}

impl Tracers {
    fn build(guests: &[Guest], release: bool) -> Result<Self> {
        let wants = |architecture| guests.iter().any(|guest| guest.architecture == architecture);
        let x86_64 = wants(Architecture::X86_64).then(|| build_here(release)).transpose()?;
        // Not stripped: the host's program for that may not know arm64, and a guest reads 20 MB in no time.
        let arm64 = wants(Architecture::Arm64).then(|| cross::build(&Machine)).transpose()?;
        Ok(Self { x86_64, arm64 })
    }

    fn of(&self, guest: &Guest) -> Result<&Path> {
        let tracer = match guest.architecture {
            Architecture::X86_64 => &self.x86_64,
            Architecture::Arm64 => &self.arm64,
        };
        tracer.as_deref().with_context(|| format!("there is no tracer for `{}`", guest.name()))
    }
}

/// The tracer for this machine, without its debug information.
fn build_here(release: bool) -> Result<PathBuf> {
    let root = workspace::root();
    let mut build = Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(["build", "--quiet", "--locked", "--package", "alloctrace", "--bin", "alloctrace"])
        .directory(&root);
    if release {
        build = build.args(["--release"]);
    }
    Machine.output(&build)?;
    let built = root.join("target").join(if release { "release" } else { "debug" }).join("alloctrace");
    let stripped = workspace::scratch().join("vm/alloctrace");
    std::fs::create_dir_all(workspace::scratch().join("vm")).context("failed to create the cache")?;
    let paths = [stripped.display().to_string(), built.display().to_string()];
    Machine.output(&Invocation::new("strip").args(["-o"]).args(paths))?;
    Ok(stripped)
}

/// Run all guests, some at once, and print each as it ends.
fn run_guests(store: &Store, tracers: &Tracers, guests: &[Guest]) -> Result<Vec<Cell>> {
    let left = Mutex::new(guests.iter().enumerate());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, guest)) = next(&left) {
                    let cells = run_guest(store, tracers, guest);
                    cells.iter().for_each(|cell| println!("{cell}"));
                    if let Ok(mut done) = done.lock() {
                        done.push((number, cells));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| anyhow::anyhow!("a machine's thread has panicked"))?;
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().flat_map(|(_, cells)| cells).collect())
}

fn next<'a, I: Iterator<Item = (usize, &'a Guest)>>(left: &Mutex<I>) -> Option<(usize, &'a Guest)> {
    left.lock().ok()?.next()
}

/// Run one guest and judge it. What keeps it from running at all is a failure of one cell.
fn run_guest(store: &Store, tracers: &Tracers, guest: &Guest) -> Vec<Cell> {
    let told = store
        .kernel(guest)
        .and_then(|kernel| Ok((kernel, image::build(store, guest, tracers.of(guest)?)?)))
        .and_then(|(kernel, image)| machine::run(&store.qemu, guest, &kernel, &image));
    match told {
        Ok(console) => {
            // For whoever has to find out why a cell failed; not needed to judge.
            let _ =
                std::fs::write(store.of(guest.architecture).join(format!("{}.log", guest.name())), &console);
            judge::judge(guest, &console)
        }
        Err(error) => vec![Cell::of(guest, "machine", Outcome::Failed(format!("{error:#}")))],
    }
}
