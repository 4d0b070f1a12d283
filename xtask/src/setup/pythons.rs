//! Interpreters that this machine's Debian does not have: unpacked from the packages of other releases into roots of their own.
//!
//! Why: Debian builds its Pythons with profile-guided and link-time optimisation, statically and stripped, which is what the finder of probe points must
//! cope with, and newer releases have newer compilers. Nothing is installed: each release is a folder below the target folder, and a script runs its
//! interpreters there, in a mount namespace of their own. So a test of them is a test of targets with another root and another C library, too.

use super::debian::{PrivateApt, Sources};
use crate::command::Runner;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Releases, and the interpreters that we take from each.
const RELEASES: [(&str, &[&str]); 2] = [("trixie", &["3.13"]), ("sid", &["3.14", "3.15"])];

/// Those whose debug build (`--with-pydebug`, package `python3.N-dbg`) we take as well. It runs with the libraries of the other.
const DEBUG_BUILDS: [(&str, &str); 1] = [("trixie", "3.13")];

/// Folder of the roots.
pub fn folder() -> PathBuf {
    workspace::scratch().join("pythons")
}

/// The scripts that run the interpreters, each with its root; none where nothing has been brought.
pub fn installed() -> Vec<(PathBuf, PathBuf)> {
    let all = RELEASES.into_iter().flat_map(|(suite, versions)| {
        versions.iter().map(move |version| (script(suite, version), folder().join(suite)))
    });
    all.filter(|(script, _)| script.exists()).collect()
}

fn script(suite: &str, version: &str) -> PathBuf {
    folder().join("bin").join(format!("{suite}-python{version}"))
}

/// Not among the others: benches and golden files are for release builds.
fn debug_script(suite: &str, version: &str) -> PathBuf {
    folder().join("debug").join(format!("{suite}-python{version}d"))
}

fn debug_builds(suite: &str) -> impl Iterator<Item = &'static str> {
    DEBUG_BUILDS.into_iter().filter(move |(other, _)| *other == suite).map(|(_, version)| version)
}

/// Unpack what is missing. Where the scripts cannot run, because we are not root, nothing is brought and no error made.
pub fn bring(runner: &impl Runner, sources: &Sources, is_root: bool) -> Result<String> {
    if !is_root {
        return Ok("running them takes root; tests go without them".to_owned());
    }
    let mut brought = Vec::new();
    for (suite, versions) in RELEASES {
        let has_debug_builds = debug_builds(suite).all(|version| debug_script(suite, version).exists());
        if has_debug_builds && versions.iter().all(|version| script(suite, version).exists()) {
            continue;
        }
        bring_release(runner, sources, suite, versions)
            .with_context(|| format!("cannot bring the interpreters of Debian's {suite}"))?;
        brought.extend(versions.iter().map(|version| format!("{version} of {suite}")));
    }
    Ok(if brought.is_empty() { "all there".to_owned() } else { format!("brought {}", brought.join(", ")) })
}

fn bring_release(runner: &impl Runner, sources: &Sources, suite: &str, versions: &[&str]) -> Result<()> {
    let root = folder().join(suite);
    let apt = PrivateApt::new(sources, suite, &folder().join("apt").join(suite))?;
    apt.update(runner)?;
    // base-files brings the links that make `/lib` and `/usr/lib` one.
    let mut packages = vec!["base-files".to_owned(), "libc6".to_owned(), "libgcc-s1".to_owned()];
    for version in versions {
        packages.extend([format!("python{version}-minimal"), format!("libpython{version}-stdlib")]);
    }
    let needed = apt.with_dependencies(runner, suite, &packages)?;
    apt.unpack_into(runner, suite, &needed, &root, "./")?;
    let headers: Vec<String> = versions.iter().map(|version| format!("libpython{version}-dev")).collect();
    apt.unpack_into(runner, suite, &headers, &root, "./usr/include")?;
    for version in versions {
        write_script(&script(suite, version), suite, version, &root)?;
    }
    for version in debug_builds(suite) {
        let package = [format!("python{version}-dbg")];
        apt.unpack_into(runner, suite, &package, &root, "./usr/bin")?;
        write_script(&debug_script(suite, version), suite, &format!("{version}d"), &root)?;
    }
    Ok(())
}

fn write_script(path: &Path, suite: &str, version: &str, root: &Path) -> Result<()> {
    let failed = || format!("failed to write `{}`", path.display());
    fs::create_dir_all(path.parent().unwrap_or(root)).with_context(failed)?;
    fs::write(path, script_text(suite, version, root, &workspace::root())).with_context(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(failed)
}

/// The checkout and the folder for temporary files keep their names in the root, so that tests need not know where a program runs.
/// `PYTHON_IN_ROOT` names another interpreter there, that of a virtual environment.
fn script_text(suite: &str, version: &str, root: &Path, checkout: &Path) -> String {
    let (root, checkout) = (root.display(), checkout.display());
    let mut text = format!(
        "#!/bin/sh\n# python{version} of Debian's {suite} in its own root; written by `cargo xtask setup`\n"
    );
    let _ = write!(
        text,
        "exec unshare --mount /bin/sh -c '\n\
         root=$1; shift\n\
         for folder in /proc /dev /tmp \"{checkout}\"; do\n\
         \x20   mkdir -p \"$root$folder\" && mount --bind \"$folder\" \"$root$folder\" || exit 126\n\
         done\n\
         [ -d \"$root$PWD\" ] || cd /\n\
         exec unshare --root=\"$root\" --wd=\"$PWD\" \"$@\"\n\
         ' sh \"{root}\" \"${{PYTHON_IN_ROOT:-/usr/bin/python{version}}}\" \"$@\"\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    #[test]
    fn without_root_nothing_is_brought() {
        let text = bring(&Script::default(), &Sources::default(), false).unwrap();
        assert_eq!(text, "running them takes root; tests go without them");
    }

    #[test]
    fn the_script_names_root_checkout_and_version() {
        let text = script_text("sid", "3.14", Path::new("/c/target/sid"), Path::new("/c"));
        assert!(text.starts_with("#!/bin/sh\n# python3.14 of Debian's sid "), "{text}");
        assert!(text.contains("for folder in /proc /dev /tmp \"/c\"; do\n"), "{text}");
        assert!(
            text.ends_with("' sh \"/c/target/sid\" \"${PYTHON_IN_ROOT:-/usr/bin/python3.14}\" \"$@\"\n"),
            "{text}"
        );
    }
}
