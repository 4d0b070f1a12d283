//! bpf-linker, built against the LLVM inside the Rust compiler: no other LLVM understands that compiler's bitcode for certain, and none need be installed.

use crate::command::{Invocation, Runner};
use crate::toolchain::{LINKER, LINKER_VERSION, Toolchain, linker_version};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Install the linker unless the right version is there and starts.
pub fn bring(runner: &impl Runner, toolchain: &Toolchain, scratch: &Path) -> Result<String> {
    if linker_version(runner).as_deref() == Some(LINKER_VERSION) {
        return Ok(format!("{LINKER_VERSION} is there"));
    }
    let prefix = llvm_prefix(toolchain, scratch)?;
    println!("bpf-linker: building {LINKER_VERSION}, which takes a minute or two");
    runner.output(&install(toolchain, &prefix, scratch)).with_context(|| {
        format!(
            "cannot install {LINKER} {LINKER_VERSION} against LLVM {}; it takes the crate registry and a C compiler (`cc`), and a version of {LINKER} that knows this LLVM",
            toolchain.llvm
        )
    })?;
    let found = linker_version(runner);
    ensure!(
        found.as_deref() == Some(LINKER_VERSION),
        "{LINKER} {LINKER_VERSION} is installed, but `{LINKER} --version` {}; put cargo's `bin` folder first in `PATH`",
        found.map_or_else(|| "does not start".to_owned(), |version| format!("says {version}"))
    );
    Ok(format!("{LINKER_VERSION} installed"))
}

/// A folder that looks like an installed LLVM to the linker's build script: `lib/libLLVM.so`, a link to the compiler's.
fn llvm_prefix(toolchain: &Toolchain, scratch: &Path) -> Result<PathBuf> {
    let library = llvm_library(&toolchain.libraries())?;
    let prefix = scratch.join("llvm");
    let libraries = prefix.join("lib");
    fs::create_dir_all(&libraries).with_context(|| format!("failed to create `{}`", libraries.display()))?;
    let link = libraries.join("libLLVM.so");
    // An older link may point to a compiler that has been updated since.
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).with_context(|| format!("failed to remove `{}`", link.display()))?;
    }
    std::os::unix::fs::symlink(&library, &link)
        .with_context(|| format!("failed to link `{}`", link.display()))?;
    Ok(prefix)
}

fn llvm_library(libraries: &Path) -> Result<PathBuf> {
    let entries =
        fs::read_dir(libraries).with_context(|| format!("failed to list `{}`", libraries.display()))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("libLLVM.so."))
        .map(|entry| entry.path())
        .with_context(|| {
            format!(
                "the compiler has no LLVM of its own in `{}` (no `libLLVM.so.*`: a distribution's Rust?); use Rust from rustup, or install {LINKER} {LINKER_VERSION} by hand",
                libraries.display()
            )
        })
}

fn install(toolchain: &Toolchain, prefix: &Path, scratch: &Path) -> Invocation {
    let libraries = prefix.join("lib").display().to_string();
    let flags = [
        format!("-Lnative={libraries}"),
        format!("-Clink-arg=-Wl,-rpath,{}", toolchain.libraries().display()),
    ];
    let major = toolchain.llvm.split('.').next().unwrap_or_default();
    Invocation::new("cargo")
        .args([
            "install",
            LINKER,
            "--version",
            LINKER_VERSION,
            "--locked",
            "--force",
            "--quiet",
            "--no-default-features",
        ])
        .args(["--features".to_owned(), format!("llvm-{major}")])
        .args(["--target-dir".to_owned(), scratch.join("bpf-linker").display().to_string()])
        .env("LLVM_PREFIX", prefix.display().to_string())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // The checkout's own pinning and target folder are not the linker's.
        .directory(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    fn toolchain(sysroot: &Path) -> Toolchain {
        Toolchain {
            rustc: "rustc 1.95.0".to_owned(),
            release: "1.95.0".to_owned(),
            llvm: "22.1.2".to_owned(),
            host: "x86_64-unknown-linux-gnu".to_owned(),
            sysroot: sysroot.to_path_buf(),
        }
    }

    fn sysroot_with(libraries: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        libraries.iter().for_each(|name| fs::write(folder.path().join("lib").join(name), "").unwrap());
        folder
    }

    fn error_of(machine: &Script, libraries: &[&str]) -> String {
        let sysroot = sysroot_with(libraries);
        let error = bring(machine, &toolchain(sysroot.path()), &sysroot.path().join("scratch")).unwrap_err();
        format!("{error:#}").replace(&sysroot.path().display().to_string(), "SYSROOT")
    }

    #[test]
    fn nothing_is_done_when_the_right_version_starts() {
        let machine = Script::default().says("bpf-linker --version", "bpf-linker 0.13.0");
        let outcome = bring(&machine, &toolchain(Path::new("missing")), Path::new("missing")).unwrap();
        assert_eq!(outcome, "0.13.0 is there");
        assert!(!machine.ran("cargo"));
    }

    #[test]
    fn a_compiler_without_its_own_llvm_is_named() {
        assert_eq!(
            error_of(&Script::default(), &["librustc_driver.so", "libLLVM-22-rust-1.95.0-stable.so"]),
            "the compiler has no LLVM of its own in `SYSROOT/lib` (no `libLLVM.so.*`: a distribution's Rust?); use Rust from rustup, or install bpf-linker 0.13.0 by hand"
        );
    }

    #[test]
    fn an_unreachable_registry_is_quoted() {
        let machine = Script::default()
            .fails("cargo install bpf-linker", "error: download of config.json failed\ncurl failed");
        let text = error_of(&machine, &["libLLVM.so.22.1-rust-1.95.0-stable"]);
        assert!(
            text.starts_with(
                "cannot install bpf-linker 0.13.0 against LLVM 22.1.2; it takes the crate registry"
            ),
            "{text}"
        );
        assert!(text.ends_with("failed: error: download of config.json failed; curl failed"), "{text}");
    }

    #[test]
    fn an_installed_linker_that_is_not_found_says_path() {
        let machine = Script::default().says("cargo install bpf-linker", "");
        let text = error_of(&machine, &["libLLVM.so.22.1-rust-1.95.0-stable"]);
        assert_eq!(
            text,
            "bpf-linker 0.13.0 is installed, but `bpf-linker --version` does not start; put cargo's `bin` folder first in `PATH`"
        );
    }

    #[test]
    fn another_version_in_the_way_is_named() {
        let machine = Script::default()
            .says("cargo install bpf-linker", "")
            .says("bpf-linker --version", "bpf-linker 0.9.13");
        let text = error_of(&machine, &["libLLVM.so.22.1-rust-1.95.0-stable"]);
        assert!(text.contains("says 0.9.13; put cargo's `bin` folder first"), "{text}");
    }
}
