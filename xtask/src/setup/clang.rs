//! A CPython that clang has compiled, built here from Debian's source package.
//!
//! Why: clang lays out the allocator's fast paths otherwise than gcc, and Debian compiles no Python with it. It takes three minutes on two processors, once.

use super::debian::{PrivateApt, Sources};
use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const SUITE: &str = "trixie";
const VERSION: &str = "3.13";
/// What building it calls on this machine.
const TOOLS: [&str; 2] = ["clang", "make"];

/// The interpreter's place beside the others.
fn link(folder: &Path) -> PathBuf {
    folder.join("bin").join(format!("clang-python{VERSION}"))
}

/// Build it in `folder`, that of all interpreters, unless it is there. A machine that cannot goes without, and the tests with it.
pub fn bring(runner: &impl Runner, sources: &Sources, folder: &Path) -> Result<String> {
    if link(folder).exists() {
        return Ok("there".to_owned());
    }
    if !sources.has_mirror() {
        return Ok("its source comes from a mirror of Debian; tests go without it".to_owned());
    }
    if let Some(tool) =
        TOOLS.iter().find(|tool| !runner.succeeds(&Invocation::new(**tool).args(["--version"])))
    {
        return Ok(format!("building it takes `{tool}`; tests go without it"));
    }
    build(runner, sources, folder).context("cannot build a CPython by clang")?;
    Ok(format!("built {VERSION}"))
}

fn build(runner: &impl Runner, sources: &Sources, folder: &Path) -> Result<()> {
    let (root, work) = (folder.join("clang"), folder.join("clang-work"));
    let apt = PrivateApt::with_sources(sources, SUITE, &folder.join("apt/clang"))?;
    apt.update(runner)?;
    apt.download_source(runner, &format!("python{VERSION}"), &work)?;
    let script = work.join("build.sh");
    fs::write(&script, include_str!("clang/build.sh"))
        .with_context(|| format!("failed to write `{}`", script.display()))?;
    let paths = [script.display().to_string(), work.display().to_string(), root.display().to_string()];
    runner.output(&Invocation::new("sh").args(paths))?;
    // Last: what is there is complete.
    let link = link(folder);
    fs::create_dir_all(folder.join("bin"))
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    symlink(root.join("bin").join(format!("python{VERSION}")), &link)
        .with_context(|| format!("failed to link `{}`", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    fn debian() -> Sources {
        let line = "deb http://mirror.example/debian bookworm main\n".to_owned();
        Sources::parse("ID=debian\nVERSION_CODENAME=bookworm\n", &[line])
    }

    #[test]
    fn without_debian_or_a_compiler_tests_go_without() {
        let folder = tempfile::tempdir().unwrap();
        let text = bring(&Script::default(), &Sources::default(), folder.path()).unwrap();
        assert!(text.contains("tests go without it"), "{text}");
        let machine = Script::default().fails("clang", "not found");
        let text = bring(&machine, &debian(), folder.path()).unwrap();
        assert_eq!(text, "building it takes `clang`; tests go without it");
    }

    #[test]
    fn a_build_that_fails_leaves_nothing_that_looks_whole() {
        let folder = tempfile::tempdir().unwrap();
        let machine =
            Script::default().says("clang", "").says("make", "").fails("apt-get update", "E: no mirror");
        let error = bring(&machine, &debian(), folder.path()).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot build a CPython by clang: "), "{error:#}");
        assert!(!link(folder.path()).exists());
    }
}
