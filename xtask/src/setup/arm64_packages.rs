//! Arm64 programs that the finder of probe points is tested with, unpacked from Debian's packages: interpreters, C libraries, and large programs of
//! other kinds. They are read, never run, so any machine with apt can bring them, whatever its own architecture.

use super::debian::{PrivateApt, Sources};
use crate::command::Runner;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;

/// Releases and what is taken from each. `tracer-user/tests/plan_arm64.rs` names the files.
const RELEASES: [(&str, &[&str]); 3] = [
    (
        "bookworm",
        &[
            "python3.11-minimal",
            "libpython3.11",
            "libc6",
            "libjemalloc2",
            "libmimalloc2.0",
            "libtcmalloc-minimal4",
            "musl",
            "cmake",
            "gdb",
            "git",
            "libllvm14",
            "libnode108",
            "libruby3.1",
            "libsqlite3-0",
            "libssl3",
            "perl-base",
            "php8.2-cli",
            "postgresql-15",
            "vim",
        ],
    ),
    ("trixie", &["python3.13-minimal", "libpython3.13", "libc6"]),
    ("sid", &["python3.14-minimal", "libpython3.14", "python3.15-minimal", "libpython3.15", "libc6"]),
];

/// Each package has a folder of its own here, below that of its release.
fn folder() -> PathBuf {
    workspace::scratch().join("arm64")
}

/// Unpack what is missing. A machine that is no Debian goes without.
pub fn bring(runner: &impl Runner, sources: &Sources) -> Result<String> {
    if !sources.has_mirror() {
        return Ok(
            "this machine has no apt sources of Debian; tests of arm64 files will be skipped".to_owned()
        );
    }
    let mut brought = 0;
    for (suite, packages) in RELEASES {
        brought += bring_release(runner, sources, suite, packages)
            .with_context(|| format!("cannot bring the arm64 packages of Debian's {suite}"))?;
    }
    Ok(if brought == 0 { "all there".to_owned() } else { format!("brought {brought} packages") })
}

/// How many packages were missing and have been brought.
fn bring_release(runner: &impl Runner, sources: &Sources, suite: &str, packages: &[&str]) -> Result<usize> {
    let home = folder().join(suite);
    let missing: Vec<&str> =
        packages.iter().copied().filter(|package| !home.join(package).exists()).collect();
    if missing.is_empty() {
        return Ok(0);
    }
    let apt = PrivateApt::with(sources, &[suite], Some("arm64"), &folder().join("apt").join(suite))?;
    apt.update(runner)?;
    for package in &missing {
        // Renamed when whole: a folder that is there is complete.
        let (part, whole) = (home.join(format!("{package}.part")), home.join(package));
        apt.unpack_into(runner, suite, &[package], &part, "./")?;
        fs::rename(&part, &whole).with_context(|| format!("failed to rename `{}`", part.display()))?;
    }
    Ok(missing.len())
}
