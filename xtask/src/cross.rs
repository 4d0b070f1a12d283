//! `cargo xtask cross`: the release program for arm64, built on a machine of another architecture.
//!
//! Where rustup has the target's standard library it is used (`rustup target add aarch64-unknown-linux-gnu`); elsewhere it is built from the sources
//! that `cargo xtask setup` brings. Debian's ready-made one is of another compiler build, which rustc refuses.

use crate::command::{Invocation, Machine, Runner};
use crate::toolchain::Toolchain;
use crate::{setup, workspace};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};

/// The target.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// As users have it.
    Release,
    /// As tests have it: quicker to build, and without what only a debugger reads.
    Tests,
}

/// Build it and say where it is.
pub fn run() -> Result<()> {
    let program = build(&Machine, Build::Release)?;
    println!("{}", program.display());
    Ok(())
}

/// Build it; its path is returned.
pub fn build(runner: &impl Runner, build: Build) -> Result<PathBuf> {
    let root = workspace::root();
    let toolchain = Toolchain::detect(runner, &root)?;
    let has_library = has_target_library(&toolchain) || brings_target_library(runner, &toolchain, &root);
    ensure!(
        has_library || toolchain.has_library_sources(),
        "neither the standard library for {TARGET} nor its sources are there; run `cargo xtask setup` first"
    );
    let linker = setup::bring_cross_tools(runner)?;
    let cargo = cargo(&root, &linker, has_library, build);
    let status = cargo.to_command().status().context("failed to start cargo")?;
    ensure!(status.success(), "`{cargo}` failed");
    let folder = match build {
        Build::Release => "release",
        Build::Tests => "debug",
    };
    Ok(root.join("target").join(TARGET).join(folder).join("alloctrace"))
}

fn has_target_library(toolchain: &Toolchain) -> bool {
    toolchain.sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
}

fn brings_target_library(runner: &impl Runner, toolchain: &Toolchain, root: &Path) -> bool {
    runner.succeeds(&Invocation::new("rustup").args(["target", "add", TARGET]).directory(root))
        && has_target_library(toolchain)
}

fn cargo(root: &Path, linker: &Path, has_library: bool, build: Build) -> Invocation {
    let profile: &[&str] = match build {
        Build::Release => &["--release"],
        // The linker strips: the host's own program for that may not know arm64.
        Build::Tests => &["--config", "profile.dev.debug=0", "--config", "profile.dev.strip=true"],
    };
    let cargo = Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(["build", "--locked", "--package", "alloctrace", "--bin", "alloctrace", "--target", TARGET])
        .args(profile.iter().copied())
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", linker.display().to_string())
        .without_env("CARGO_TARGET_DIR")
        .without_env("RUSTC_WRAPPER")
        .directory(root);
    if has_library {
        return cargo;
    }
    // Building the standard library is unstable in cargo; the program itself needs nothing unstable.
    cargo.args(["-Zbuild-std=std,panic_abort"]).env("RUSTC_BOOTSTRAP", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_built_only_where_it_is_missing() {
        let line =
            |has_library| cargo(Path::new("here"), Path::new("cc"), has_library, Build::Release).to_string();
        assert!(!line(true).contains("build-std"));
        assert!(line(false).ends_with("--release -Zbuild-std=std,panic_abort"));
    }

    #[test]
    fn only_users_get_the_release_build() {
        let line = |build| cargo(Path::new("here"), Path::new("cc"), true, build).to_string();
        assert!(line(Build::Release).ends_with("--target aarch64-unknown-linux-gnu --release"));
        assert!(!line(Build::Tests).contains("--release"));
    }
}
