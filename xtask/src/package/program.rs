//! The release program for an architecture, static: cargo with what musl needs.

use super::Architecture;
use super::musl::{self, Musl};
use crate::command::{Invocation, Runner};
use crate::toolchain::Toolchain;
use crate::workspace;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};

/// Build it; its path is returned.
pub fn build(runner: &impl Runner, architecture: Architecture) -> Result<PathBuf> {
    let root = workspace::root();
    let toolchain = Toolchain::detect(runner, &root)?;
    let target = architecture.target();
    let library = toolchain.sysroot.join("lib/rustlib").join(&target).join("lib");
    let add = Invocation::new("rustup").args(["target", "add", &target]).directory(&root);
    let has_library = library.is_dir() || runner.succeeds(&add) && library.is_dir();
    ensure!(
        has_library || toolchain.has_library_sources(),
        "neither the standard library for {target} nor its sources are there; run `cargo xtask setup` first"
    );
    let musl = musl::bring(runner, architecture)?;
    // Not where other builds are: these flags would throw their work away.
    let folder = root.join("target/musl");
    let cargo = cargo(&root, &folder, &target, &musl, has_library);
    let status = cargo.to_command().status().context("failed to start cargo")?;
    ensure!(status.success(), "`{cargo}` failed");
    Ok(folder.join(target).join("release/alloctrace"))
}

fn cargo(root: &Path, folder: &Path, target: &str, musl: &Musl, has_library: bool) -> Invocation {
    let snake = target.replace('-', "_");
    let loud = snake.to_uppercase();
    let cargo = Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
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
        .args(["--config", "profile.release.strip=true"])
        .env("CARGO_TARGET_DIR", folder.display().to_string())
        .env(&format!("CARGO_TARGET_{loud}_LINKER"), musl.linker.display().to_string())
        .env(&format!("CARGO_TARGET_{loud}_RUSTFLAGS"), flags(root, musl))
        .env(&format!("CC_{snake}"), musl.compiler.display().to_string())
        .env(&format!("AR_{snake}"), musl.archiver.display().to_string())
        .without_env("RUSTFLAGS")
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .without_env("RUSTC_WRAPPER")
        .directory(root);
    if has_library {
        return cargo;
    }
    // Building the standard library is unstable in cargo; the program itself needs nothing unstable.
    cargo.args(["-Zbuild-std=std,panic_abort"]).env("RUSTC_BOOTSTRAP", "1")
}

/// Static, with our musl; folders of this machine get other names in what is shipped.
fn flags(root: &Path, musl: &Musl) -> String {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), "-Clink-self-contained=no".to_owned()];
    flags.extend(musl.folders.iter().map(|folder| format!("-Lnative={}", folder.display())));
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let renamed = [(Some(root.to_path_buf()), "/alloctrace"), (home, "/cargo")];
    for (path, name) in renamed {
        flags.extend(path.map(|path| format!("--remap-path-prefix={}={name}", path.display())));
    }
    flags.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn musl() -> Musl {
        let path = |name: &str| PathBuf::from(format!("/m/{name}"));
        Musl {
            compiler: path("cc"),
            archiver: path("ar"),
            linker: path("ld"),
            folders: vec![path("a"), path("b")],
        }
    }

    #[test]
    fn cargo_is_told_where_all_is() {
        let cargo = cargo(Path::new("/r"), Path::new("/t"), "aarch64-unknown-linux-musl", &musl(), false);
        let line = cargo.to_string();
        assert!(line.ends_with("-Zbuild-std=std,panic_abort"), "{line}");
        let value = |name: &str| {
            cargo.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
        };
        assert_eq!(value("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER"), Some("/m/ld"));
        assert_eq!(value("CC_aarch64_unknown_linux_musl"), Some("/m/cc"));
        assert_eq!(value("RUSTC_BOOTSTRAP"), Some("1"));
        let flags = value("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS").unwrap();
        assert!(
            flags.contains("+crt-static -Clink-self-contained=no -Lnative=/m/a -Lnative=/m/b"),
            "{flags}"
        );
        assert!(flags.contains("--remap-path-prefix=/r=/alloctrace"), "{flags}");
    }

    #[test]
    fn a_library_that_is_there_is_taken() {
        let cargo = cargo(Path::new("/r"), Path::new("/t"), "x86_64-unknown-linux-musl", &musl(), true);
        assert!(!cargo.to_string().contains("build-std"));
    }
}
