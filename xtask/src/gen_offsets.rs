//! `cargo xtask gen-offsets`: writes the rows of the layout table from the headers of the interpreters that are installed.
//!
//! Why: nobody should type offsets. `tests/interpreters/layout.c`, compiled against an interpreter's own headers, prints them; this puts them into Rust. One row
//! a minor version, from its oldest patch release here; minor versions that are not here keep no row, so all must be. The tests of the tracer compile the same
//! program again and compare. The text of the file is in `gen_offsets/rows.rs`.

mod rows;

use crate::command::{Invocation, Machine, Runner};
use crate::{setup, workspace};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SOURCE: &str = "tracer-user/tests/interpreters/layout.c";
const TABLE: &str = "tracer-user/src/discover/layout/rows.rs";
/// Minor versions that the table has.
const MINORS: std::ops::RangeInclusive<u8> = 8..=15;

/// What the C program prints, by name.
pub type Offsets = BTreeMap<String, u64>;

/// An interpreter with headers.
struct Headers {
    version: (u8, u8),
    folders: Vec<PathBuf>,
}

/// Find the interpreters, compile, and write the table.
pub fn run() -> Result<()> {
    let root = workspace::root();
    let mut oldest: BTreeMap<u8, Headers> = BTreeMap::new();
    for headers in interpreters(&Machine) {
        let known = oldest.get(&headers.version.0);
        if known.is_none_or(|known| headers.version < known.version) {
            oldest.insert(headers.version.0, headers);
        }
    }
    let missing: Vec<String> =
        MINORS.filter(|minor| !oldest.contains_key(minor)).map(|minor| format!("3.{minor}")).collect();
    if !missing.is_empty() {
        bail!("no headers of {} here: install them with pyenv or `cargo xtask setup`", missing.join(", "));
    }
    let mut table = Vec::new();
    for (minor, headers) in &oldest {
        let offsets = compile(&Machine, &root, headers)?;
        println!("3.{minor}.{}: {} numbers", headers.version.1, offsets.len());
        table.push((headers.version, offsets));
    }
    let path = root.join(TABLE);
    fs::write(&path, rows::text(&table)?).with_context(|| format!("failed to write `{}`", path.display()))?;
    Machine
        .output(&Invocation::new("rustfmt").args(["--edition", "2024"]).args([path.display().to_string()]))?;
    println!("wrote {TABLE}");
    Ok(())
}

/// Every interpreter of pyenv and of other Debian releases that has headers.
fn interpreters(runner: &impl Runner) -> Vec<Headers> {
    let pyenv = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let pyenv = pyenv.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let versions = pyenv.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let pyenv = versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python3"));
    let all = pyenv.map(|python| (python, PathBuf::from("/"))).chain(setup::debian_pythons());
    all.filter_map(|(python, root)| headers(runner, &python, &root)).collect()
}

fn headers(runner: &impl Runner, python: &Path, root: &Path) -> Option<Headers> {
    let program = "import sys, sysconfig; print(*sys.version_info[:4], sysconfig.get_path('include'))";
    let ask = Invocation::new(python.display().to_string()).args(["-I", "-c", program]);
    let answer = runner.output(&ask).ok()?;
    let [major, minor, micro, level, include] =
        answer.trim().splitn(5, ' ').collect::<Vec<_>>().try_into().ok()?;
    let include = root.join(include.trim_start_matches('/'));
    let usable = major == "3" && level == "final" && include.join("Python.h").exists();
    let folders = vec![include.clone(), include.join("internal"), root.join("usr/include")];
    let version = (minor.parse().ok()?, micro.parse().ok()?);
    (usable && MINORS.contains(&version.0)).then_some(Headers { version, folders })
}

fn compile(runner: &impl Runner, root: &Path, headers: &Headers) -> Result<Offsets> {
    let folder = workspace::scratch().join("offsets");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
    let binary = folder.join("layout").display().to_string();
    let folders = headers.folders.iter().map(|folder| format!("-I{}", folder.display()));
    let source = root.join(SOURCE).display().to_string();
    runner.output(&Invocation::new("gcc").args(["-w"]).args(folders).args([
        source,
        "-o".to_owned(),
        binary.clone(),
    ]))?;
    parse(&runner.output(&Invocation::new(binary))?)
}

fn parse(text: &str) -> Result<Offsets> {
    let mut offsets = Offsets::new();
    for line in text.lines() {
        let (name, number) =
            line.split_once(' ').with_context(|| format!("`{line}` is no name and number"))?;
        let number = number.parse().with_context(|| format!("`{line}` has no number"))?;
        ensure!(offsets.insert(name.to_owned(), number).is_none(), "`{name}` is printed twice");
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_lines_are_names_and_numbers() {
        assert_eq!(parse("a.b 1\na.c 20\n").unwrap().get("a.c"), Some(&20));
        assert!(parse("a.b\n").is_err() && parse("a.b x\n").is_err() && parse("a 1\na 1\n").is_err());
    }

    #[test]
    fn a_pre_release_gives_no_row() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("include")).unwrap();
        fs::write(folder.path().join("include/Python.h"), "").unwrap();
        let found = |level: &str| {
            let machine = crate::command::scripted::Script::default()
                .says("python", &format!("3 15 0 {level} /include\n"));
            headers(&machine, Path::new("python"), folder.path()).map(|headers| headers.version)
        };
        assert_eq!((found("final"), found("beta")), (Some((15, 0)), None));
    }
}
