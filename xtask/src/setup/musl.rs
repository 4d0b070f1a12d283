//! A CPython that is linked to musl, built here from Debian's source package: nothing prebuilt comes from a package registry.
//!
//! Why: musl has another malloc, another loader and another C library's file name than glibc, and containers of Alpine run it. `musl/build.sh` does the work;
//! it takes about a minute and a half on two processors, once.

use super::debian::{PrivateApt, Sources};
use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const RECIPE: &str = include_str!("musl/build.sh");
const SUITE: &str = "trixie";
const VERSION: &str = "3.13";
const PACKAGES: [&str; 4] = ["musl", "musl-dev", "musl-tools", "libffi-dev"];
/// What the recipe calls on this machine, besides the shell.
const TOOLS: [&str; 2] = ["gcc", "make"];

/// The interpreter's place beside the scripts of the others.
fn link(folder: &Path) -> PathBuf {
    folder.join("bin").join(format!("musl-python{VERSION}"))
}

/// Build it in `folder`, that of all interpreters, unless it is there. A machine that cannot goes without, and the tests with it.
pub fn bring(runner: &impl Runner, sources: &Sources, folder: &Path) -> Result<String> {
    if link(folder).exists() {
        return Ok("there".to_owned());
    }
    if !cfg!(target_arch = "x86_64") || !sources.has_mirror() {
        return Ok("it is built on Debian for x86_64 only; tests go without it".to_owned());
    }
    if let Some(tool) =
        TOOLS.iter().find(|tool| !runner.succeeds(&Invocation::new(**tool).args(["--version"])))
    {
        return Ok(format!("building it takes `{tool}`; tests go without it"));
    }
    build(runner, sources, folder).context("cannot build the CPython for musl")?;
    Ok(format!("built {VERSION}"))
}

fn build(runner: &impl Runner, sources: &Sources, folder: &Path) -> Result<()> {
    let (root, work) = (folder.join("musl"), folder.join("musl-work"));
    let apt = PrivateApt::with_sources(sources, SUITE, &folder.join("apt/musl"))?;
    apt.update(runner)?;
    apt.download(runner, SUITE, &PACKAGES, &work)?;
    apt.download_source(runner, &format!("python{VERSION}"), &work)?;
    let script = work.join("build.sh");
    fs::write(&script, RECIPE).with_context(|| format!("failed to write `{}`", script.display()))?;
    let paths = [script.display().to_string(), work.display().to_string(), root.display().to_string()];
    runner.output(&Invocation::new("sh").args(paths).args(["x86_64-linux-musl"]))?;
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

    const LINE: &str = "deb http://mirror.example/debian bookworm main\n";

    fn debian() -> Sources {
        Sources::parse("ID=debian\nVERSION_CODENAME=bookworm\n", &[LINE.to_owned()])
    }

    #[test]
    fn without_debian_or_a_compiler_tests_go_without() {
        let folder = tempfile::tempdir().unwrap();
        let text = bring(&Script::default(), &Sources::default(), folder.path()).unwrap();
        assert!(text.contains("tests go without it"), "{text}");
        if cfg!(target_arch = "x86_64") {
            let machine = Script::default().says("gcc", "").fails("make", "not found");
            assert_eq!(
                bring(&machine, &debian(), folder.path()).unwrap(),
                "building it takes `make`; tests go without it"
            );
        }
    }

    #[test]
    fn what_is_there_is_not_built_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(link(folder.path()), "").unwrap();
        assert_eq!(bring(&Script::default(), &debian(), folder.path()).unwrap(), "there");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_build_that_fails_leaves_nothing_that_looks_whole() {
        let folder = tempfile::tempdir().unwrap();
        let machine =
            Script::default().says("gcc", "").says("make", "").fails("apt-get update", "E: no mirror");
        let error = bring(&machine, &debian(), folder.path()).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot build the CPython for musl: "), "{error:#}");
        assert!(!link(folder.path()).exists());
    }
}
