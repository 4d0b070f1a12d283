//! The sources of `core`, which the BPF target is built from: rustup's `rust-src`, or Debian's package of exactly the compiler's version.
//!
//! Both give the same bytes: the metadata of 1.95.0's own `libcore` holds the hash of every source file, and Debian's files have those hashes.

use super::debian::{self, Sources};
use crate::command::{Invocation, Runner};
use crate::toolchain::Toolchain;
use anyhow::{Context as _, Result, anyhow};
use std::fs;
use std::path::Path;

/// Bring the sources unless they are there; try rustup, then Debian.
pub fn bring(
    runner: &impl Runner,
    toolchain: &Toolchain,
    root: &Path,
    apt: &Sources,
    scratch: &Path,
) -> Result<String> {
    if toolchain.has_library_sources() {
        return Ok(format!("{} is there", toolchain.release));
    }
    let Err(rustup) = from_rustup(runner, toolchain, root) else { return Ok("brought by rustup".to_owned()) };
    from_debian(runner, toolchain, apt, scratch).map(|version| format!("brought from Debian's rust-src {version}")).map_err(
        |debian| {
            anyhow!(
                "neither rustup nor Debian has the sources for {}: {rustup:#}; {debian:#}. bring them by hand to `{}`",
                toolchain.rustc,
                toolchain.library_sources().display()
            )
        },
    )
}

fn from_rustup(runner: &impl Runner, toolchain: &Toolchain, root: &Path) -> Result<()> {
    runner.output(&Invocation::new("rustup").args(["component", "add", "rust-src"]).directory(root))?;
    toolchain.has_library_sources().then_some(()).with_context(|| {
        format!(
            "rustup added `rust-src` to another toolchain than the one in `{}`",
            toolchain.sysroot.display()
        )
    })
}

/// Download, unpack and copy Debian's package; returns its version.
fn from_debian(runner: &impl Runner, toolchain: &Toolchain, apt: &Sources, scratch: &Path) -> Result<String> {
    let folder = scratch.join("rust-src");
    let private = debian::PrivateApt::new(apt, "trixie-backports", &folder)?;
    let versions = private.versions(runner, "rust-src")?;
    let wanted = format!("{}+", toolchain.release);
    let version = versions.iter().find(|version| version.starts_with(&wanted)).with_context(|| {
        format!(
            "Debian's trixie-backports offers rust-src {}, but the compiler is {}",
            if versions.is_empty() { "in no version".to_owned() } else { versions.join(", ") },
            toolchain.release
        )
    })?;
    let unpacked = private.unpack(runner, "rust-src", version)?;
    let library = unpacked.join(format!("usr/src/rustc-{}/library", toolchain.release));
    install(runner, &library, &toolchain.library_sources())?;
    fs::remove_dir_all(&folder).with_context(|| format!("failed to remove `{}`", folder.display()))?;
    Ok(version.clone())
}

/// Copied, not linked: the package's folder lies where `cargo clean` takes it away.
fn install(runner: &impl Runner, library: &Path, destination: &Path) -> Result<()> {
    let parent = destination.parent().context("the compiler's folder has no parent")?;
    fs::create_dir_all(parent).with_context(|| {
        format!("failed to create `{}`; run as the user who owns the compiler", parent.display())
    })?;
    let copy = Invocation::new("cp").args(["-R".to_owned(), "-T".to_owned()]);
    runner.output(&copy.args([library.display().to_string(), destination.display().to_string()])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    const MIRROR: &str = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n";
    const MADISON: &str = " rust-src | 1.96.0+dfsg1-1~bpo13+1 | http://mirror.example/debian trixie-backports/main amd64 Packages\n rust-src | 1.93.1+dfsg1-1~bpo13+1 | http://mirror.example/debian trixie-backports/main amd64 Packages\n";

    fn run(machine: &Script, apt: &Sources) -> String {
        let folder = tempfile::tempdir().unwrap();
        let toolchain = Toolchain {
            rustc: "rustc 1.95.0 (59807616e 2026-04-14)".to_owned(),
            release: "1.95.0".to_owned(),
            llvm: "22.1.2".to_owned(),
            host: "x86_64-unknown-linux-gnu".to_owned(),
            sysroot: folder.path().join("rust"),
        };
        let outcome = bring(machine, &toolchain, folder.path(), apt, &folder.path().join("scratch"));
        let text = outcome.unwrap_or_else(|error| format!("{error:#}"));
        text.replace(&folder.path().display().to_string(), "HERE")
    }

    fn debian() -> Sources {
        Sources::parse("ID=debian\nVERSION_CODENAME=bookworm\n", &[MIRROR.to_owned()])
    }

    fn offline() -> Script {
        Script::default().fails("rustup component add rust-src", "error: could not download file")
    }

    #[test]
    fn both_routes_closed_names_both_and_the_way_out() {
        let machine = offline().fails("apt-get update", "E: Could not connect");
        assert_eq!(
            run(&machine, &debian()),
            "neither rustup nor Debian has the sources for rustc 1.95.0 (59807616e 2026-04-14): `rustup component add rust-src` failed: error: could not download file; \
             cannot reach Debian's trixie-backports at `http://mirror.example/debian`: `apt-get update -qq` failed: E: Could not connect. \
             bring them by hand to `HERE/rust/lib/rustlib/src/rust/library`"
        );
    }

    #[test]
    fn a_version_that_is_not_offered_is_named_with_those_that_are() {
        let machine = offline().says("apt-get update", "").says("apt-cache madison rust-src", MADISON);
        let text = run(&machine, &debian());
        assert!(
            text.contains("trixie-backports offers rust-src 1.96.0+dfsg1-1~bpo13+1, 1.93.1+dfsg1-1~bpo13+1, but the compiler is 1.95.0"),
            "{text}"
        );
    }

    #[test]
    fn a_suite_without_the_package_says_so() {
        let machine = offline().says("apt-get update", "").says("apt-cache madison rust-src", "");
        let text = run(&machine, &debian());
        assert!(text.contains("offers rust-src in no version"), "{text}");
    }

    #[test]
    fn a_machine_that_is_not_debian_says_so() {
        let fedora = Sources::parse("ID=fedora\n", &[]);
        let text = run(&Script::default(), &fedora);
        assert!(
            text.contains("failed to start `rustup`; this machine has no apt sources of Debian"),
            "{text}"
        );
    }

    #[test]
    fn a_download_that_left_no_package_says_where_it_looked() {
        let machine = offline()
            .says("apt-get update", "")
            .says("apt-cache madison rust-src", " rust-src | 1.95.0+dfsg1-2~bpo13+1 | mirror")
            .says("apt-get download -qq rust-src=1.95.0+dfsg1-2~bpo13+1", "");
        let text = run(&machine, &debian());
        assert!(
            text.contains("cannot find the package that was downloaded in `HERE/scratch/rust-src`"),
            "{text}"
        );
    }
}
