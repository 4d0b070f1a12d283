//! What it takes to link with musl: Debian's static library, unpacked and not installed, and a linker that knows where it is.
//!
//! rustup's own libraries for musl bring theirs, but not every machine has rustup's server to take them from. One way for all is less to go wrong.

use super::Architecture;
use crate::command::{Invocation, Runner};
use crate::setup::bring_cross_tools;
use crate::setup::debian::{PrivateApt, Sources};
use crate::workspace;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const PACKAGE: &str = "musl-dev";
const SUITE: &str = "bookworm";

/// The parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Musl {
    /// A C compiler for the architecture.
    pub compiler: PathBuf,
    /// The archiver that goes with it.
    pub archiver: PathBuf,
    /// Links as rustc asks, with musl.
    pub linker: PathBuf,
    /// Folders of libraries, for rustc.
    pub folders: Vec<PathBuf>,
}

/// Bring them unless they are there.
pub fn bring(runner: &impl Runner, architecture: Architecture) -> Result<Musl> {
    let folder = workspace::scratch().join("package").join(architecture.name());
    let root = folder.join("root");
    let libraries = root.join("usr/lib").join(format!("{}-linux-musl", architecture.name()));
    if !libraries.join("libc.a").exists() {
        unpack(runner, architecture, &folder.join("apt"), &root).with_context(|| {
            format!("cannot bring musl for {}; it comes from Debian", architecture.name())
        })?;
    }
    ensure!(
        libraries.join("libc.a").exists(),
        "Debian's `{PACKAGE}` has no `{}`",
        libraries.join("libc.a").display()
    );
    let compiler = compiler(runner, architecture)?;
    let own = folder.join("lib");
    fs::create_dir_all(&own).with_context(|| format!("failed to create `{}`", own.display()))?;
    unwinder(runner, &compiler, &own)?;
    let (linker, archiver) = (folder.join("musl-ld"), folder.join("musl-ar"));
    write_script(&linker, &linker_text(&compiler, &libraries))?;
    write_script(&archiver, &archiver_text(&compiler, architecture))?;
    Ok(Musl { compiler, archiver, linker, folders: vec![own, libraries] })
}

fn unpack(runner: &impl Runner, architecture: Architecture, apt: &Path, root: &Path) -> Result<()> {
    let sources = Sources::read(Path::new("/"));
    let apt = PrivateApt::with(&sources, &[SUITE], Some(architecture.debian_name()), apt)?;
    apt.update(runner)?;
    apt.unpack_into(runner, SUITE, &[PACKAGE], root, "./")
}

fn compiler(runner: &impl Runner, architecture: Architecture) -> Result<PathBuf> {
    if architecture.runs_here() {
        let gcc = PathBuf::from("gcc");
        ensure!(
            runner.succeeds(&Invocation::new("gcc").args(["--version"])),
            "`gcc` is missing: install it and try again"
        );
        return Ok(gcc);
    }
    ensure!(architecture == Architecture::Arm, "there is no cross compiler for {} here", architecture.name());
    bring_cross_tools(runner)
}

/// The standard library asks for libunwind; gcc's own unwinder has the same functions.
fn unwinder(runner: &impl Runner, compiler: &Path, folder: &Path) -> Result<()> {
    let ask = Invocation::new(compiler.display().to_string()).args(["-print-file-name=libgcc_eh.a"]);
    let found = PathBuf::from(runner.output(&ask)?.trim());
    let copy = folder.join("libunwind.a");
    fs::copy(&found, &copy)
        .map(drop)
        .with_context(|| format!("failed to copy `{}` to `{}`", found.display(), copy.display()))
}

/// Static and position-independent: musl's own start for that comes first, its library last.
fn linker_text(compiler: &Path, libraries: &Path) -> String {
    let (compiler, libraries) = (compiler.display(), libraries.display());
    format!(
        "#!/bin/sh\n# Links with musl, statically; written by `cargo xtask package`\n\
         exec {compiler} -nostdlib \"{libraries}/rcrt1.o\" \"{libraries}/crti.o\" \"$@\" -L\"{libraries}\" \
         -Wl,--start-group -lc -lgcc -lgcc_eh -Wl,--end-group \"{libraries}/crtn.o\"\n"
    )
}

/// The machine's own archiver for its own architecture; else that of the compiler, which may have been unpacked beside its libraries.
fn archiver_text(compiler: &Path, architecture: Architecture) -> String {
    if architecture.runs_here() {
        return "#!/bin/sh\nexec ar \"$@\"\n".to_owned();
    }
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
    fs::write(path, text).with_context(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn musl_is_first_and_last() {
        let text = linker_text(Path::new("gcc"), Path::new("/m"));
        assert!(text.contains("exec gcc -nostdlib \"/m/rcrt1.o\" \"/m/crti.o\" \"$@\""), "{text}");
        assert!(text.ends_with("\"/m/crtn.o\"\n"), "{text}");
    }

    #[test]
    fn an_unpacked_compiler_has_its_archiver_beside_it() {
        let other = Architecture::ALL.into_iter().find(|architecture| !architecture.runs_here()).unwrap();
        let unpacked = archiver_text(Path::new("/x/cross-tools/gcc"), other);
        assert!(unpacked.contains("exec \"/x/cross-tools/root/usr/bin/"), "{unpacked}");
        assert!(archiver_text(Path::new("some-gcc"), other).contains("\nexec "));
    }
}
