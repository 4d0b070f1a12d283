//! Free-threaded interpreters for tests. Debian has none, so they are built from the sources of its own, which takes two to four minutes each.
//!
//! They are built as `./configure --disable-gil` does it, without profiles, and stay below the target folder; scripts beside those of `pythons.rs` run them.

use super::debian::{PrivateApt, Sources};
use super::pythons;
use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Versions, and the suites of Debian that have their sources. Without one, only a source that somebody has put into the version's folder is built:
/// sid's 3.14.10 has another mimalloc than 3.14.4 has, and that is refused (docs/decisions/0014).
const VERSIONS: [(&str, Option<&str>); 2] = [("3.13", Some("trixie")), ("3.14", None)];

fn script(version: &str) -> PathBuf {
    pythons::folder().join("bin").join(format!("source-python{version}t"))
}

/// Where the source of a version is.
fn source_folder(version: &str) -> PathBuf {
    pythons::folder().join(format!("{version}t-source"))
}

/// Build what is missing. Where there is no mirror or no compiler, nothing is built and no error made: tests go without.
pub fn bring(runner: &impl Runner, sources: &Sources) -> Result<String> {
    let is_missing = |(version, suite): &(&str, Option<&str>)| {
        !script(version).exists() && (suite.is_some() || archive(&source_folder(version)).is_some())
    };
    let missing: Vec<_> = VERSIONS.into_iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok("all there".to_owned());
    }
    if !sources.has_mirror() || !runner.succeeds(&Invocation::new("gcc").args(["--version"])) {
        return Ok("building them takes gcc and a mirror of Debian; tests go without them".to_owned());
    }
    for (version, suite) in &missing {
        bring_version(runner, sources, version, *suite)?;
    }
    let built: Vec<String> = missing.iter().map(|(version, _)| format!("{version}t")).collect();
    Ok(format!("built {}", built.join(", ")))
}

fn bring_version(runner: &impl Runner, sources: &Sources, version: &str, suite: Option<&str>) -> Result<()> {
    let folder = source_folder(version);
    let source = match (archive(&folder), suite) {
        (None, Some(suite)) => download(runner, sources, version, suite, &folder)?,
        (source, _) => source.with_context(|| format!("no source in `{}`", folder.display()))?,
    };
    let prefix = pythons::folder().join(format!("{version}t"));
    build(runner, &source, &folder.join("tree"), &prefix)?;
    let path = script(version);
    let text = format!("#!/bin/sh\nexec \"{}/bin/python{version}t\" \"$@\"\n", prefix.display());
    fs::create_dir_all(pythons::folder().join("bin"))
        .and_then(|()| fs::write(&path, text))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("failed to write `{}`", path.display()))
}

/// The source that a folder has.
fn archive(folder: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.find(|path| path.to_string_lossy().contains(".orig.tar."))
}

/// The source as Debian has it from its authors.
fn download(
    runner: &impl Runner,
    sources: &Sources,
    version: &str,
    suite: &str,
    folder: &Path,
) -> Result<PathBuf> {
    let apt = PrivateApt::with_sources(sources, suite, folder)?;
    apt.update(runner)?;
    let package = format!("python{version}");
    apt.download_source(runner, &package, folder)
        .with_context(|| format!("cannot download the source of {package}"))?;
    archive(folder).with_context(|| format!("no source in `{}`", folder.display()))
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
        if script("3.13").exists() {
            return;
        }
        let text = bring(&Script::default(), &Sources::default()).unwrap();
        assert!(text.ends_with("tests go without them"), "{text}");
    }
}
