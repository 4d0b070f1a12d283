//! `cargo xtask package [--arch ARCHITECTURE]`: what users install, in `target/package`: a static program and a Debian package for each architecture.
//!
//! The programs are linked to musl and to nothing else, so they run on every distribution and in an empty container (`xtask/packages/Dockerfile` takes them from here).

mod debian;
mod elf;
#[cfg(test)]
mod manifests;
mod program;
mod texts;
mod tools;

use crate::command::{Machine, Runner};
use crate::workspace;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use texts::Texts;

/// Flags of `package`.
#[derive(clap::Args)]
pub struct Args {
    /// For this architecture only; may be given twice
    #[arg(long = "arch", value_name = "ARCHITECTURE")]
    architectures: Vec<Architecture>,
}

/// What programs are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    /// 64-bit Intel and AMD.
    #[value(name = "x86_64", alias = "amd64")]
    X86,
    /// 64-bit Arm.
    #[value(name = "aarch64", alias = "arm64")]
    Arm,
}

impl Architecture {
    const ALL: [Self; 2] = [Self::X86, Self::Arm];

    /// As compilers call it.
    fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    /// As Debian and containers call it.
    fn debian_name(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }

    /// As rustc calls its programs.
    fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.name())
    }

    /// Whether its programs run on this machine.
    fn runs_here(self) -> bool {
        self.name() == std::env::consts::ARCH
    }
}

/// Build all of it and say where it is.
pub fn run(args: &Args) -> Result<()> {
    let folder = workspace::root().join("target/package");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
    let wanted = match &args.architectures[..] {
        [] => &Architecture::ALL[..],
        some => some,
    };
    let mut programs = Vec::new();
    for architecture in wanted {
        programs.push((*architecture, program(&Machine, *architecture, &folder)?));
    }
    let texts = texts(&programs, &folder)?;
    for (architecture, program) in &programs {
        println!("{}", program.display());
        println!("{}", debian::package(&Machine, *architecture, program, &texts, &folder)?.display());
    }
    Ok(())
}

/// The program for one architecture, under the name that the Dockerfile knows.
fn program(runner: &impl Runner, architecture: Architecture, folder: &Path) -> Result<PathBuf> {
    let built = program::build(runner, architecture)?;
    let bytes = fs::read(&built).with_context(|| format!("failed to read `{}`", built.display()))?;
    elf::check_static(&bytes, architecture)
        .with_context(|| format!("`{}` is no program to ship", built.display()))?;
    let path = folder.join(format!("alloctrace-linux-{}", architecture.debian_name()));
    fs::copy(&built, &path).with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(path)
}

/// Manual pages and completions are made by the program itself: by one that runs here.
fn texts(programs: &[(Architecture, PathBuf)], folder: &Path) -> Result<Texts> {
    if let Some((_, program)) = programs.iter().find(|(architecture, _)| architecture.runs_here()) {
        return Texts::of(&Machine, program);
    }
    let here = Architecture::ALL.into_iter().find(|architecture| architecture.runs_here());
    ensure!(here.is_some(), "no program that we build runs on {}", std::env::consts::ARCH);
    here.map_or_else(|| Ok(Texts::default()), |here| Texts::of(&Machine, &program(&Machine, here, folder)?))
}
