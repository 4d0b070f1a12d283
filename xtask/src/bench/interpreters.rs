//! Interpreters to measure on.

use anyhow::{Context as _, Result};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Versions in the order in which they suit bpftrace: from 3.12 on `_PyObject_Malloc` begins with a `push`, which the kernel emulates; before, each
/// trap there is single-stepped.
const PREFERRED: [&str; 5] = ["3.12", "3.13", "3.11", "3.10", "3.9"];
const SYSTEM: &str = "/usr/bin/python3";

/// An interpreter and the file that its allocator is in.
pub struct Interpreter {
    pub label: String,
    pub python: PathBuf,
    pub allocator: PathBuf,
}

/// One of pyenv's with a shared library, built by it without profile-guided optimisation: it keeps its symbols and calls its allocator.
pub fn not_inlining() -> Result<Interpreter> {
    let versions = pyenv_versions();
    let found = PREFERRED.iter().find_map(|wanted| {
        let prefix = format!("{wanted}.");
        let folder = versions
            .iter()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))?;
        shared(folder, wanted)
    });
    found.context("no interpreter of pyenv with a shared library; `PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.12`")
}

/// One of pyenv's, of this minor version.
pub fn of_pyenv(version: &str) -> Option<PathBuf> {
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{version}.")))
    };
    pyenv_versions().into_iter().find(is_it).map(|folder| folder.join("bin/python3"))
}

fn shared(folder: &Path, version: &str) -> Option<Interpreter> {
    let allocator = folder.join(format!("lib/libpython{version}.so.1.0"));
    let label = format!("Python {}", folder.file_name()?.to_string_lossy());
    allocator.is_file().then(|| Interpreter { label, python: folder.join("bin/python3"), allocator })
}

fn pyenv_versions() -> Vec<PathBuf> {
    let home = env::home_dir().map(|home| home.join(".pyenv"));
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from).or(home).unwrap_or_default();
    let entries = fs::read_dir(root.join("versions")).into_iter().flatten();
    let mut folders: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// The distribution's, optimised by profile.
pub fn system() -> Option<Interpreter> {
    let python = fs::canonicalize(SYSTEM).ok()?;
    Some(Interpreter { label: format!("The system's `{SYSTEM}`"), allocator: python.clone(), python })
}
