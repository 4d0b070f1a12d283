//! Python packages that tests run and a bench compares with, in environments of their own under the target folder.

use crate::command::{Invocation, Runner};
use crate::workspace;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// A virtual environment of `interpreter` that has `packages`; returns the path of its interpreter.
pub fn environment(runner: &impl Runner, interpreter: &Path, packages: &[&str]) -> Result<PathBuf> {
    let version = runner.output(
        &Invocation::new(interpreter.display().to_string())
            .args(["-c", "import platform; print(platform.python_version())"]),
    )?;
    let folder = workspace::scratch().join(format!("python-{}", version.trim()));
    let python = folder.join("bin/python");
    let has = |package: &&str| {
        let import = Invocation::new(python.display().to_string())
            .args(["-c".to_owned(), format!("import {package}")]);
        runner.succeeds(&import)
    };
    if packages.iter().all(has) {
        return Ok(python);
    }
    runner
        .output(
            &Invocation::new(interpreter.display().to_string())
                .args(["-m", "venv"])
                .args([folder.display().to_string()]),
        )
        .context("cannot make a virtual environment; on Debian it takes the package python3-venv")?;
    let install = Invocation::new(python.display().to_string()).args(["-m", "pip", "install", "--quiet"]);
    runner.output(&install.args(packages.iter().copied())).with_context(|| {
        format!("cannot install {}; it takes the Python package index", packages.join(", "))
    })?;
    Ok(python)
}
