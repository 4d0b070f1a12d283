//! The C compiler for an architecture, which compiles what little C there is in our dependencies; musl itself comes with Rust's standard library for it.
//!
//! Headers are those of glibc: the C in question needs what both libraries have.

use super::Architecture;
use crate::command::{Invocation, Runner};
use crate::setup::bring_cross_tools;
use crate::workspace;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Both tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// Compiles; it does not link.
    pub compiler: PathBuf,
    /// Makes archives: that of another architecture may not know its objects.
    pub archiver: PathBuf,
}

/// Bring them unless they are there.
pub fn bring(runner: &impl Runner, architecture: Architecture) -> Result<Tools> {
    if architecture.runs_here() {
        let has = |program: &str| runner.succeeds(&Invocation::new(program).args(["--version"]));
        ensure!(has("gcc") && has("ar"), "`gcc` or `ar` is missing: install gcc and try again");
        return Ok(Tools { compiler: "gcc".into(), archiver: "ar".into() });
    }
    ensure!(architecture == Architecture::Arm, "there is no cross compiler for {} here", architecture.name());
    let compiler = bring_cross_tools(runner)?;
    let archiver = workspace::scratch().join("package").join(format!("{}-ar", architecture.name()));
    write_script(&archiver, &archiver_text(&compiler, architecture))?;
    Ok(Tools { compiler, archiver })
}

/// The archiver that goes with a cross compiler, which may have been unpacked beside its libraries.
fn archiver_text(compiler: &Path, architecture: Architecture) -> String {
    let program = format!("{}-linux-gnu-ar", architecture.name());
    let root = compiler.parent().filter(|folder| folder.is_absolute()).map(|folder| folder.join("root"));
    let Some(root) = root else { return format!("#!/bin/sh\nexec {program} \"$@\"\n") };
    let root = root.display();
    format!(
        "#!/bin/sh\nexport LD_LIBRARY_PATH=\"{root}/usr/lib/{0}-linux-gnu:{root}/lib/{0}-linux-gnu\"\n\
         exec \"{root}/usr/bin/{program}\" \"$@\"\n",
        std::env::consts::ARCH
    )
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("failed to write `{}`", path.display());
    fs::create_dir_all(path.parent().unwrap_or(path)).with_context(failed)?;
    fs::write(path, text).with_context(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    fn here() -> Architecture {
        Architecture::ALL.into_iter().find(|architecture| architecture.runs_here()).unwrap()
    }

    #[test]
    fn the_machines_own_tools_are_taken_for_its_own_programs() {
        let machine = Script::default().says("gcc --version", "gcc 12\n").says("ar --version", "ar 2.40\n");
        let expected = Tools { compiler: "gcc".into(), archiver: "ar".into() };
        assert_eq!(bring(&machine, here()).unwrap(), expected);
        assert!(bring(&Script::default(), here()).unwrap_err().to_string().contains("install gcc"));
    }

    #[test]
    fn an_unpacked_compiler_has_its_archiver_beside_it() {
        let unpacked = archiver_text(Path::new("/x/cross-tools/aarch64-linux-gnu-gcc"), Architecture::Arm);
        assert!(unpacked.contains("exec \"/x/cross-tools/root/usr/bin/aarch64-linux-gnu-ar\""), "{unpacked}");
        let installed = archiver_text(Path::new("aarch64-linux-gnu-gcc"), Architecture::Arm);
        assert_eq!(installed, "#!/bin/sh\nexec aarch64-linux-gnu-ar \"$@\"\n");
    }
}
