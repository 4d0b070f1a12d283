//! A free-threaded interpreter for tests. Debian has none, so one is built from the source of its python3.13, which takes about two minutes.
//!
//! It is built as `./configure --disable-gil` does it, without profiles, and stays below the target folder; a script beside those of `pythons.rs` runs it.

use super::debian::{PrivateApt, Sources};
use super::pythons;
use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const SUITE: &str = "trixie";
const VERSION: &str = "3.13";

fn script() -> PathBuf {
    pythons::folder().join("bin").join(format!("source-python{VERSION}t"))
}

/// Build what is missing. Where there is no mirror or no compiler, nothing is built and no error made: tests go without.
pub fn bring(runner: &impl Runner, sources: &Sources) -> Result<String> {
    if script().exists() {
        return Ok("all there".to_owned());
    }
    if !sources.has_mirror() || !runner.succeeds(&Invocation::new("gcc").args(["--version"])) {
        return Ok("building it takes gcc and a mirror of Debian; tests go without it".to_owned());
    }
    let folder = pythons::folder().join(format!("{VERSION}t-source"));
    let archive = download(runner, sources, &folder)?;
    let prefix = pythons::folder().join(format!("{VERSION}t"));
    build(runner, &archive, &folder.join("tree"), &prefix)?;
    let path = script();
    let text = format!("#!/bin/sh\nexec \"{}/bin/python{VERSION}t\" \"$@\"\n", prefix.display());
    fs::create_dir_all(pythons::folder().join("bin"))
        .and_then(|()| fs::write(&path, text))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(format!("built {VERSION}t from the source of Debian's {SUITE}"))
}

/// The source as Debian has it from its authors.
fn download(runner: &impl Runner, sources: &Sources, folder: &Path) -> Result<PathBuf> {
    let apt = PrivateApt::new(sources, SUITE, folder)?;
    let list = folder.join("sources.list");
    let lines = fs::read_to_string(&list).with_context(|| format!("failed to read `{}`", list.display()))?;
    fs::write(&list, lines.replace("deb [", "deb-src ["))
        .with_context(|| format!("failed to write `{}`", list.display()))?;
    apt.update(runner)?;
    let package = format!("python{VERSION}");
    let command = Invocation::new("apt-get")
        .args(["source", "--download-only", "--tar-only", "-qq", package.as_str()])
        .env("APT_CONFIG", folder.join("apt.conf").display().to_string())
        .directory(folder);
    runner.output(&command).with_context(|| format!("cannot download the source of {package}"))?;
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_archive = |path: &PathBuf| path.to_string_lossy().contains(".orig.tar.");
    files.into_iter().find(is_archive).with_context(|| format!("no source in `{}`", folder.display()))
}

fn build(runner: &impl Runner, archive: &Path, tree: &Path, prefix: &Path) -> Result<()> {
    fs::create_dir_all(tree).with_context(|| format!("failed to create `{}`", tree.display()))?;
    let text = |path: &Path| path.display().to_string();
    let unpack =
        ["-xf".to_owned(), text(archive), "-C".to_owned(), text(tree), "--strip-components=1".to_owned()];
    runner.output(&Invocation::new("tar").args(unpack))?;
    let configure = Invocation::new("./configure").directory(tree).args([
        "-q".to_owned(),
        "--disable-gil".to_owned(),
        "--without-ensurepip".to_owned(),
        "--disable-test-modules".to_owned(),
        format!("--prefix={}", text(prefix)),
    ]);
    runner.output(&configure).context("cannot configure a free-threaded Python")?;
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    runner.output(&Invocation::new("make").directory(tree).args(["-s".to_owned(), format!("-j{jobs}")]))?;
    runner.output(&Invocation::new("make").directory(tree).args(["-s", "install"]))?;
    fs::remove_dir_all(tree).with_context(|| format!("failed to remove `{}`", tree.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    #[test]
    fn without_a_mirror_nothing_is_built() {
        if script().exists() {
            return;
        }
        let text = bring(&Script::default(), &Sources::default()).unwrap();
        assert!(text.ends_with("tests go without it"), "{text}");
    }
}
