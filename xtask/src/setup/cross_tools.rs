//! A C compiler that links for arm64, which rustc needs as its linker: the machine's own, or Debian's, unpacked and not installed.

use super::debian::{PrivateApt, Sources};
use crate::command::{Invocation, Runner};
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const COMPILER: &str = "aarch64-linux-gnu-gcc";
/// Its packages; the suite is one whose C library is old enough for the programs to run on every supported Debian.
const PACKAGES: [&str; 2] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
const SUITE: &str = "bookworm";

/// The compiler, ready to be called.
pub fn bring(runner: &impl Runner) -> Result<PathBuf> {
    if runner.succeeds(&Invocation::new(COMPILER).args(["--version"])) {
        return Ok(PathBuf::from(COMPILER));
    }
    let folder = workspace::scratch().join("cross-tools");
    let script = folder.join(COMPILER);
    if !script.exists() {
        unpack(runner, &folder).with_context(|| {
            format!("`{COMPILER}` is missing and cannot be unpacked; install {}", PACKAGES.join(" and "))
        })?;
        write_script(&script, &folder.join("root"))?;
    }
    Ok(script)
}

fn unpack(runner: &impl Runner, folder: &Path) -> Result<()> {
    let sources = Sources::read(Path::new("/"));
    let apt = PrivateApt::new(&sources, SUITE, &folder.join("apt"))?;
    apt.update(runner)?;
    let packages = apt.with_dependencies(runner, SUITE, &PACKAGES)?;
    apt.unpack_into(runner, SUITE, &packages, &folder.join("root"), "./")
}

fn write_script(path: &Path, root: &Path) -> Result<()> {
    let failed = || format!("failed to write `{}`", path.display());
    fs::write(path, script_text(root)).with_context(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(failed)
}

/// An unpacked compiler looks for its parts where it would have been installed: it must be told where they are. `libc.so` is a linker script with
/// absolute paths, which `--sysroot` moves.
fn script_text(root: &Path) -> String {
    let root = root.display();
    format!(
        "#!/bin/sh\n# The cross compiler of Debian's packages; written by `cargo xtask cross`\n\
         export LD_LIBRARY_PATH=\"{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu\" PATH=\"{root}/usr/bin:$PATH\"\n\
         exec {COMPILER} --sysroot=\"{root}\" -B\"{root}/usr/aarch64-linux-gnu/lib\" -L\"{root}/usr/aarch64-linux-gnu/lib\" \"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    #[test]
    fn a_compiler_of_the_machine_is_taken() {
        let machine = Script::default().says("aarch64-linux-gnu-gcc --version", "gcc 12.2.0\n");
        assert_eq!(bring(&machine).unwrap(), Path::new(COMPILER));
    }

    #[test]
    fn the_script_keeps_the_unpacked_parts_together() {
        let text = script_text(Path::new("/here/root"));
        assert!(text.contains("exec aarch64-linux-gnu-gcc --sysroot=\"/here/root\""), "{text}");
        assert!(text.ends_with("\"$@\"\n"), "{text}");
    }
}
