//! The release program for an architecture, static: cargo with a target of rustc's that brings musl.
//!
//! rustc's own linker links it: a C compiler would look for its own C library first.

use super::Architecture;
use super::tools::{self, Tools};
use crate::command::{Invocation, Runner};
use crate::toolchain::Toolchain;
use crate::workspace;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};

/// It comes with the compiler, which finds it.
const LINKER: &str = "rust-lld";

/// Build it; its path is returned.
pub fn build(runner: &impl Runner, architecture: Architecture) -> Result<PathBuf> {
    let root = workspace::root();
    let toolchain = Toolchain::detect(runner, &root)?;
    let target = architecture.target();
    bring_library(runner, &toolchain, &target, &root)?;
    let tools = tools::bring(runner, architecture)?;
    // Not where other builds are: these flags would throw their work away.
    let folder = root.join("target/musl");
    let cargo = cargo(&root, &toolchain.sysroot, &folder, &target, &tools);
    let status = cargo.to_command().status().context("failed to start cargo")?;
    ensure!(status.success(), "`{cargo}` failed");
    Ok(folder.join(target).join("release/alloctrace"))
}

/// The standard library for the target, unless it is there.
fn bring_library(runner: &impl Runner, toolchain: &Toolchain, target: &str, root: &Path) -> Result<()> {
    let library = toolchain.sysroot.join("lib/rustlib").join(target).join("lib");
    let add = Invocation::new("rustup").args(["target", "add", target]).directory(root);
    if !library.is_dir() {
        runner.output(&add).context("static programs take Rust's standard library for musl, from rustup")?;
    }
    ensure!(
        library.is_dir(),
        "rustup added `{target}` to another toolchain than `{}`",
        toolchain.sysroot.display()
    );
    Ok(())
}

fn cargo(root: &Path, sysroot: &Path, folder: &Path, target: &str, tools: &Tools) -> Invocation {
    let snake = target.replace('-', "_");
    let loud = snake.to_uppercase();
    Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            "alloctrace",
            "--bin",
            "alloctrace",
            "--target",
            target,
        ])
        // The linker strips: the host's own program for that may not know the architecture.
        .args(["--config", "profile.release.strip=true"])
        .env("CARGO_TARGET_DIR", folder.display().to_string())
        .env(&format!("CARGO_TARGET_{loud}_LINKER"), LINKER)
        .env(&format!("CARGO_TARGET_{loud}_RUSTFLAGS"), flags(root, sysroot))
        .env(&format!("CC_{snake}"), tools.compiler.display().to_string())
        .env(&format!("AR_{snake}"), tools.archiver.display().to_string())
        .without_env("RUSTFLAGS")
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .without_env("RUSTC_WRAPPER")
        .directory(root)
}

/// Static; folders of this machine get other names in what is shipped.
fn flags(root: &Path, sysroot: &Path) -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let renamed =
        [(Some(root.to_path_buf()), "/alloctrace"), (home, "/cargo"), (Some(sysroot.to_path_buf()), "/rust")];
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    for (path, name) in renamed {
        flags.extend(path.map(|path| format!("--remap-path-prefix={}={name}", path.display())));
    }
    flags.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    #[test]
    fn cargo_is_told_where_all_is() {
        let tools = Tools { compiler: "/m/cc".into(), archiver: "/m/ar".into() };
        let cargo =
            cargo(Path::new("/r"), Path::new("/s"), Path::new("/t"), "aarch64-unknown-linux-musl", &tools);
        assert!(cargo.to_string().contains("--target aarch64-unknown-linux-musl"), "{cargo}");
        let value = |name: &str| {
            cargo.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
        };
        assert_eq!(value("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER"), Some("rust-lld"));
        assert_eq!(value("CC_aarch64_unknown_linux_musl"), Some("/m/cc"));
        assert_eq!(value("AR_aarch64_unknown_linux_musl"), Some("/m/ar"));
        let flags = value("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS").unwrap();
        assert!(
            flags.starts_with("-Ctarget-feature=+crt-static --remap-path-prefix=/r=/alloctrace"),
            "{flags}"
        );
    }

    #[test]
    fn without_rustup_it_is_said_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let sysroot = folder.path().to_path_buf();
        let toolchain = Toolchain {
            rustc: String::new(),
            release: String::new(),
            llvm: String::new(),
            host: String::new(),
            sysroot,
        };
        let bring = |machine: &Script| bring_library(machine, &toolchain, "t-musl", Path::new("."));
        let error = format!("{:#}", bring(&Script::default()).unwrap_err());
        assert!(error.starts_with("static programs take Rust's standard library for musl"), "{error}");
        let elsewhere = Script::default().says("rustup target add t-musl", "");
        assert!(bring(&elsewhere).unwrap_err().to_string().contains("another toolchain"));
        std::fs::create_dir_all(folder.path().join("lib/rustlib/t-musl/lib")).unwrap();
        bring(&Script::default()).unwrap();
    }
}
