//! Python packages that tests run and a bench compares with, in environments of their own under the target folder.

use crate::command::{Invocation, Runner};
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs;
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

/// Ends well where every argument, `name==version`, is installed as it says.
const HAS_ALL: &str = "\
import sys, importlib.metadata as metadata
for wanted in sys.argv[1:]:
    name, version = wanted.split('==')
    assert metadata.version(name) == version
";

/// A virtual environment of `interpreter`, its folder named `label` and the version, with exactly the versions that a file of requirements names; returns the path of its interpreter.
pub fn pinned(runner: &impl Runner, interpreter: &Path, label: &str, requirements: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(requirements)
        .with_context(|| format!("failed to read `{}`", requirements.display()))?;
    let wanted: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let version = runner.output(
        &Invocation::new(interpreter.display().to_string())
            .args(["-c", "import platform; print(platform.python_version())"]),
    )?;
    let folder = workspace::scratch().join(format!("{label}-{}", version.trim()));
    let python = folder.join("bin/python");
    let look = Invocation::new(python.display().to_string()).args(["-c", HAS_ALL]);
    if runner.succeeds(&look.args(wanted.iter().copied())) {
        return Ok(python);
    }
    runner
        .output(&Invocation::new(interpreter.display().to_string()).args([
            "-m",
            "venv",
            &folder.display().to_string(),
        ]))
        .context("cannot make a virtual environment; on Debian it takes the package python3-venv")?;
    let install = Invocation::new(python.display().to_string()).args(["-m", "pip", "install", "--quiet"]);
    runner.output(&install.args(wanted.iter().copied())).with_context(|| {
        format!("cannot install {}; it takes the Python package index", wanted.join(", "))
    })?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    fn requirements() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# why\nfastapi==1.0\n\ndjango==2.0\n").unwrap();
        file
    }

    #[test]
    fn an_environment_with_the_right_versions_is_taken() {
        let python = workspace::scratch().join("shop-3.11.2/bin/python");
        let machine = Script::default().says("python3", "3.11.2\n").says(&python.display().to_string(), "");
        assert_eq!(pinned(&machine, Path::new("python3"), "shop", requirements().path()).unwrap(), python);
        assert!(!machine.ran("python3 -m venv"));
    }

    #[test]
    fn another_version_is_replaced_and_comments_are_not_installed() {
        let python = workspace::scratch().join("shop-3.11.2/bin/python").display().to_string();
        let machine = Script::default()
            .fails(&format!("{python} -c"), "AssertionError")
            .says("python3", "3.11.2\n")
            .says(&format!("{python} -m pip"), "");
        pinned(&machine, Path::new("python3"), "shop", requirements().path()).unwrap();
        assert!(machine.ran(&format!("{python} -m pip install --quiet fastapi==1.0 django==2.0")));
    }
}
