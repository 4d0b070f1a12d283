//! What the compiler on this machine is, as far as it decides the bytes of an eBPF object.

use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// The linker that makes one eBPF object out of LLVM bitcode, and the version of it that our objects are made with.
pub const LINKER: &str = "bpf-linker";
/// See [`LINKER`].
pub const LINKER_VERSION: &str = "0.13.0";

/// The compiler and its folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// First line of `rustc --version`, for example `rustc 1.95.0 (59807616e 2026-04-14)`.
    pub rustc: String,
    /// For example `1.95.0`.
    pub release: String,
    /// Version of the compiler's own LLVM, for example `22.1.2`.
    pub llvm: String,
    /// For example `x86_64-unknown-linux-gnu`.
    pub host: String,
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// Ask the compiler that cargo uses in `root`.
    pub fn detect(runner: &impl Runner, root: &Path) -> Result<Self> {
        let rustc = |argument: &[&str]| {
            runner.output(&Invocation::new("rustc").args(argument.iter().copied()).directory(root)).context(
                "cannot ask the compiler for its version; install Rust (https://rustup.rs) and try again",
            )
        };
        let verbose = rustc(&["--version", "--verbose"])?;
        let sysroot = rustc(&["--print", "sysroot"])?;
        let field = |name: &str| {
            let line = verbose.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
                .with_context(|| format!("`rustc --version --verbose` says nothing about `{name}`"))
        };
        Ok(Self {
            rustc: verbose.lines().next().unwrap_or_default().to_owned(),
            release: field("release:")?,
            llvm: field("LLVM version:")?,
            host: field("host:")?,
            sysroot: PathBuf::from(sysroot.trim()),
        })
    }

    /// Sources of the standard library, where cargo looks for them.
    pub fn library_sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    pub fn has_library_sources(&self) -> bool {
        self.library_sources().join("core/src/lib.rs").is_file()
    }

    /// LLVM's objcopy of this very compiler; it understands eBPF, which the system's does not.
    pub fn objcopy(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-objcopy")
    }

    /// Folder of the compiler's shared libraries, LLVM among them.
    pub fn libraries(&self) -> PathBuf {
        self.sysroot.join("lib")
    }
}

/// Version of the linker on this machine, or nothing where it is missing or does not start (its LLVM went away with an update).
pub fn linker_version(runner: &impl Runner) -> Option<String> {
    let text = runner.output(&Invocation::new(LINKER).args(["--version"])).ok()?;
    text.trim().strip_prefix(LINKER).map(|version| version.trim().to_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::command::scripted::Script;

    pub const VERBOSE: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn the_compiler_is_read_from_its_own_words() {
        let machine = Script::default().says("rustc --version", VERBOSE).says("rustc --print", "/opt/rust\n");
        let toolchain = Toolchain::detect(&machine, Path::new(".")).unwrap();
        assert_eq!(toolchain.rustc, "rustc 1.95.0 (59807616e 2026-04-14)");
        assert_eq!(toolchain.release, "1.95.0");
        assert_eq!(toolchain.llvm, "22.1.2");
        assert_eq!(toolchain.library_sources(), Path::new("/opt/rust/lib/rustlib/src/rust/library"));
    }

    #[test]
    fn a_machine_without_rust_is_told_where_to_get_it() {
        let error = Toolchain::detect(&Script::default(), Path::new(".")).unwrap_err();
        assert!(format!("{error:#}").contains("install Rust"), "{error:#}");
    }

    #[test]
    fn a_linker_that_does_not_start_has_no_version() {
        let broken =
            Script::default().fails("bpf-linker", "error while loading shared libraries: libLLVM.so.22.1");
        assert_eq!(linker_version(&broken), None);
        let good = Script::default().says("bpf-linker --version", "bpf-linker 0.13.0\n");
        assert_eq!(linker_version(&good).as_deref(), Some(LINKER_VERSION));
    }
}
