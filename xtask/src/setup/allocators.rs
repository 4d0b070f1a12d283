//! Allocators that tests put in the place of the C library's: unpacked from Debian's packages, never installed.

use super::debian::{PrivateApt, Sources};
use crate::command::Runner;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs;

/// Built against the oldest C library of the releases that we test on, so that they load everywhere.
const RELEASE: &str = "bookworm";
/// jemalloc also to be linked statically, with its header. `tracer-user/tests/system/mallocs.rs` names the files.
const PACKAGES: [&str; 4] = ["libjemalloc2", "libjemalloc-dev", "libtcmalloc-minimal4", "libmimalloc2.0"];

/// Unpack them unless they are there. A machine that is no Debian goes without.
pub fn bring(runner: &impl Runner, sources: &Sources) -> Result<String> {
    let folder = workspace::scratch().join("allocators");
    if folder.exists() {
        return Ok("all there".to_owned());
    }
    if !sources.has_mirror() {
        return Ok(
            "this machine has no apt sources of Debian; tests of other mallocs will be skipped".to_owned()
        );
    }
    // Renamed when whole: a folder that is there is complete.
    let part = workspace::scratch().join("allocators.part");
    let apt = PrivateApt::new(sources, RELEASE, &part.join("apt"))?;
    apt.update(runner)?;
    apt.unpack_into(runner, RELEASE, &PACKAGES, &part, "./usr/lib")
        .with_context(|| format!("cannot bring the allocators of Debian's {RELEASE}"))?;
    fs::rename(&part, &folder).with_context(|| format!("failed to rename `{}`", part.display()))?;
    Ok(format!("brought {}", PACKAGES.join(", ")))
}
