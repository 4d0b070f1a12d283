//! The Debian package: the program, its unit, pages, completions and licences, laid out in a folder and packed by `dpkg-deb`.
//!
//! Installing it starts nothing: whoever wants the sidecar says `systemctl enable --now alloctrace`.

use super::Architecture;
use super::texts::Texts;
use crate::command::{Invocation, Runner};
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const UNIT: &str = include_str!("../../packages/systemd/alloctrace.service");
const FLAGS: &str = include_str!("../../packages/systemd/alloctrace.default");
const COPYRIGHT: &str = include_str!("../../packages/debian/copyright");
const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("../../packages/debian/postinst")),
    ("prerm", include_str!("../../packages/debian/prerm")),
    ("postrm", include_str!("../../packages/debian/postrm")),
];
const MAINTAINER: &str = "The alloctrace developers <alloctrace@alloctrace.invalid>";
/// Files of the package that their owner may change.
const CONFIGURATION: &str = "/etc/default/alloctrace\n";

/// Lay it out below `folder` and pack it; the path of the package is returned.
pub fn package(
    runner: &impl Runner,
    architecture: Architecture,
    program: &Path,
    texts: &Texts,
    folder: &Path,
) -> Result<PathBuf> {
    let (version, name) = (env!("CARGO_PKG_VERSION"), architecture.debian_name());
    let root = folder.join(format!("deb-{name}"));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("failed to remove `{}`", root.display()))?;
    }
    let bytes = fs::read(program).with_context(|| format!("failed to read `{}`", program.display()))?;
    lay_out(runner, &root, &bytes, texts, &change_log(runner, version))?;
    let kibibytes = size(&root)?.div_ceil(1024);
    write(&root, "DEBIAN/control", control(version, name, kibibytes).as_bytes(), 0o644)?;
    write(&root, "DEBIAN/conffiles", CONFIGURATION.as_bytes(), 0o644)?;
    for (script, text) in SCRIPTS {
        write(&root, &format!("DEBIAN/{script}"), text.as_bytes(), 0o755)?;
    }
    let package = folder.join(format!("alloctrace_{version}_{name}.deb"));
    let paths = [root.display().to_string(), package.display().to_string()];
    let pack = Invocation::new("dpkg-deb").args(["--root-owner-group", "-Zxz", "--build"]).args(paths);
    let pack =
        commit_time(runner, "%ct").into_iter().fold(pack, |pack, time| pack.env("SOURCE_DATE_EPOCH", time));
    runner.output(&pack).context("packing takes `dpkg-deb`, which Debian has")?;
    Ok(package)
}

/// So that the same commit gives the same package: its time, in a format of git's.
fn commit_time(runner: &impl Runner, format: &str) -> Option<String> {
    let format = format!("--format={format}");
    let ask = Invocation::new("git").args(["log", "-1", &format]).directory(workspace::root());
    Some(runner.output(&ask).ok()?.trim().to_owned()).filter(|time| !time.is_empty())
}

/// Debian wants one of its own; what users notice is in NEWS.
fn change_log(runner: &impl Runner, version: &str) -> String {
    let time = commit_time(runner, "%cD").unwrap_or_else(|| "Thu, 01 Jan 1970 00:00:00 +0000".to_owned());
    format!(
        "alloctrace ({version}) unstable; urgency=medium\n\n  * What has changed is in NEWS.gz.\n\n -- {MAINTAINER}  {time}\n"
    )
}

fn lay_out(runner: &impl Runner, root: &Path, program: &[u8], texts: &Texts, change_log: &str) -> Result<()> {
    write(root, "usr/bin/alloctrace", program, 0o755)?;
    write(root, "usr/lib/systemd/system/alloctrace.service", UNIT.as_bytes(), 0o644)?;
    write(root, "etc/default/alloctrace", FLAGS.as_bytes(), 0o644)?;
    write(root, "usr/share/doc/alloctrace/copyright", COPYRIGHT.as_bytes(), 0o644)?;
    let changes =
        fs::read(workspace::root().join("CHANGELOG.md")).context("failed to read `CHANGELOG.md`")?;
    let mut compressed = vec![
        write(root, "usr/share/doc/alloctrace/changelog", change_log.as_bytes(), 0o644)?,
        write(root, "usr/share/doc/alloctrace/NEWS", &changes, 0o644)?,
    ];
    for (name, page) in &texts.pages {
        compressed.push(write(root, &format!("usr/share/man/man1/{name}"), page.as_bytes(), 0o644)?);
    }
    for (path, text) in &texts.completions {
        write(root, &format!("usr/share/{path}"), text.as_bytes(), 0o644)?;
    }
    let paths = compressed.iter().map(|path| path.display().to_string());
    runner.output(&Invocation::new("gzip").args(["-9n"]).args(paths)).map(drop)
}

fn control(version: &str, architecture: &str, kibibytes: u64) -> String {
    format!(
        "Package: alloctrace\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\n\
         Installed-Size: {kibibytes}\nSection: devel\nPriority: optional\nHomepage: https://github.com/alloctrace/alloctrace\n\
         Description: which Python line holds the memory, told from the kernel\n \
         alloctrace records the memory of CPython processes from outside them, by probes\n \
         in the kernel (eBPF): a program that it starts, one that has been running for\n \
         weeks, or all of a host. As a service it keeps recording beside them, for a\n \
         hundredth of their processor time, and answers over HTTP.\n"
    )
}

/// A file below a root, with its folders; its path is returned.
fn write(root: &Path, path: &str, bytes: &[u8], mode: u32) -> Result<PathBuf> {
    let path = root.join(path);
    let failed = || format!("failed to write `{}`", path.display());
    fs::create_dir_all(path.parent().unwrap_or(root)).with_context(failed)?;
    fs::write(&path, bytes).with_context(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).with_context(failed)?;
    Ok(path)
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("failed to list `{}`", folder.display()))? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Machine;

    fn output(program: &str, arguments: &[&str]) -> String {
        Machine.output(&Invocation::new(program).args(arguments.iter().copied())).unwrap()
    }

    #[test]
    fn the_package_is_one_to_dpkg() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, vec![0; 5000]).unwrap();
        let texts = Texts {
            pages: vec![("alloctrace.1".to_owned(), ".TH alloctrace 1\n".to_owned())],
            completions: vec![("bash-completion/completions/alloctrace", "complete\n".to_owned())],
        };
        let package = match package(&Machine, Architecture::Arm, &program, &texts, folder.path()) {
            Ok(package) => package,
            // A machine that is no Debian: that is what is said, and nothing else.
            Err(error) => {
                assert!(!Machine.succeeds(&Invocation::new("dpkg-deb").args(["--version"])), "{error:#}");
                assert!(format!("{error:#}").starts_with("packing takes `dpkg-deb`"), "{error:#}");
                return;
            }
        };
        let path = package.display().to_string();
        assert!(path.ends_with(concat!("alloctrace_", env!("CARGO_PKG_VERSION"), "_arm64.deb")));
        let field = |name| output("dpkg-deb", &["--field", &path, name]).trim().to_owned();
        assert_eq!((field("Package").as_str(), field("Architecture").as_str()), ("alloctrace", "arm64"));
        assert!(field("Installed-Size").parse::<u64>().unwrap() >= 5);
        let contents = output("dpkg-deb", &["--contents", &path]);
        for file in [
            "-rwxr-xr-x root/root",
            "./usr/bin/alloctrace\n",
            "./usr/share/man/man1/alloctrace.1.gz\n",
            "./usr/lib/systemd/system/alloctrace.service\n",
            "./usr/share/doc/alloctrace/changelog.gz\n",
            "./usr/share/doc/alloctrace/NEWS.gz\n",
            "./etc/default/alloctrace\n",
            "./usr/share/bash-completion/completions/alloctrace\n",
        ] {
            assert!(contents.contains(file), "{file} is not in\n{contents}");
        }
        for (script, text) in SCRIPTS {
            assert!(text.starts_with("#!/bin/sh\nset -e\n"), "{script}");
        }
    }
}
