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
use crate::{cross, setup, workspace};
use anyhow::{Context as _, Result, ensure};
use image::Image;
use machine::{Architecture, Guest};
use packages::Store;
use results::{Cell, Outcome};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

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

/// Bring what is missing, run the guests, say how each cell ended.
pub fn run(args: &Args) -> Result<ExitCode> {
    let name = |guest: &Guest| guest.name();
    let is_asked = |guest: &Guest| args.only.as_ref().is_none_or(|part| name(guest).contains(part.as_str()));
    let lab = Lab::bring(guests().into_iter().filter(is_asked).collect())?;
    let cells = lab.run(args.release)?;
    if let Some(path) = &args.json {
        std::fs::write(path, results::json(&cells))
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    let counts = count(&cells);
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many cells ended which way.
fn count(cells: &[Cell]) -> Counts {
    let mut counts = Counts::default();
    for cell in cells {
        match cell.outcome {
            Outcome::Passed => counts.passed += 1,
            Outcome::Failed(_) => counts.failed += 1,
            Outcome::Skipped(_) => counts.skipped += 1,
        }
    }
    counts
}

/// Guests, and all that is downloaded for them.
pub struct Lab {
    guests: Vec<Guest>,
    store: Store,
}

impl Lab {
    /// For the whole matrix.
    ///
    /// # Errors
    /// What keeps it from being run here; nothing is said about the tracer then.
    pub fn whole() -> Result<Self> {
        Self::bring(guests())
    }

    fn bring(guests: Vec<Guest>) -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "qemu is brought for x86_64 hosts only");
        let folder = workspace::scratch().join("vm");
        let mut architectures = vec![Architecture::X86_64, Architecture::Arm64];
        architectures.retain(|architecture| guests.iter().any(|guest| guest.architecture == *architecture));
        if architectures.contains(&Architecture::Arm64) {
            setup::bring_cross_tools(&Machine)?;
        }
        let store = Store::open(&Sources::read(Path::new("/")), &folder, &architectures)?;
        Ok(Self { guests, store })
    }

    /// Run all guests with the tracer that tests use, and count their cells.
    pub fn count(&self) -> Result<Counts> {
        Ok(count(&self.run(false)?))
    }

    fn run(&self, release: bool) -> Result<Vec<Cell>> {
        let mut images = Vec::new();
        for architecture in [Architecture::X86_64, Architecture::Arm64] {
            if self.guests.iter().any(|guest| guest.architecture == architecture) {
                let tracer = build_tracer(architecture, release)?;
                images.push((architecture, image::build(&self.store, architecture, &tracer)?));
            }
        }
        run_guests(&self.store, &images, &self.guests)
    }
}

/// The tracer for guests of an architecture.
fn build_tracer(architecture: Architecture, release: bool) -> Result<PathBuf> {
    match architecture {
        Architecture::X86_64 => build_here(release),
        Architecture::Arm64 if release => cross::build(&Machine, cross::Build::Release),
        Architecture::Arm64 => cross::build(&Machine, cross::Build::Tests),
    }
}

/// Every kernel, first as it comes and then with full preemption: the longest first, so that none of them is left alone at the end.
fn guests() -> Vec<Guest> {
    let mut guests = Vec::new();
    for full_preemption in [false, true] {
        for architecture in [Architecture::Arm64, Architecture::X86_64] {
            guests.extend(packages::KERNELS.map(|(kernel, _)| Guest {
                architecture,
                kernel,
                full_preemption,
            }));
        }
    }
    guests
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
fn run_guests(store: &Store, images: &[(Architecture, Image)], guests: &[Guest]) -> Result<Vec<Cell>> {
    let left = Mutex::new(guests.iter().enumerate());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, guest)) = next(&left) {
                    let started = Instant::now();
                    let cells = run_guest(store, images, guest);
                    cells.iter().for_each(|cell| println!("{cell}"));
                    println!("vm {}: {} s", guest.name(), started.elapsed().as_secs());
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
fn run_guest(store: &Store, images: &[(Architecture, Image)], guest: &Guest) -> Vec<Cell> {
    let image = images.iter().find(|(architecture, _)| *architecture == guest.architecture);
    let told = store.kernel(guest).and_then(|kernel| {
        let (_, image) = image.with_context(|| format!("there is no image for `{}`", guest.name()))?;
        machine::run(&store.qemu, guest, &kernel, image.path())
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_booted_both_ways_on_both_architectures_and_records_under_load() {
        let guests = guests();
        assert_eq!(guests.len(), 12);
        for (kernel, _) in packages::KERNELS {
            for architecture in [Architecture::X86_64, Architecture::Arm64] {
                let of_it: Vec<&Guest> = guests
                    .iter()
                    .filter(|guest| guest.kernel == kernel && guest.architecture == architecture)
                    .collect();
                assert_eq!(of_it.iter().filter(|guest| guest.full_preemption).count(), 1);
                assert!(of_it.iter().any(|guest| guest.tests().contains("stress")));
                assert!(of_it.iter().any(|guest| guest.tests().contains("programs")));
            }
        }
    }
}
