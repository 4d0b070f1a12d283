//! The first root of a guest: a large archive of Debian's files that is kept, and a small one of ours behind it.
//!
//! It is not compressed: to unpack a hundred megabytes takes an emulated processor longer than to read them.

use super::cpio::Archive;
use super::machine::Guest;
use super::packages::Store;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Folders that no test needs.
const UNWANTED: [&str; 9] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/zoneinfo",
    "usr/share/lintian",
    "usr/lib/python3.14/idlelib",
    "usr/lib/python3.15/idlelib",
    "var",
    "usr/lib/valgrind",
];
/// Programs of the system tests that guests run as well.
const PROGRAMS: [&str; 3] = ["exact.py", "steps.py", "crowd.py"];

/// Make the root of a guest; it is gone when the result is dropped.
pub fn build(store: &Store, guest: &Guest, tracer: &Path) -> Result<Image> {
    let path = store.of(guest.architecture).join(format!("{}.cpio", guest.name()));
    let failed = || format!("failed to write `{}`", path.display());
    let mut archive = Archive::new(BufWriter::new(File::create(&path).with_context(failed)?));
    skeleton(&mut archive).with_context(failed)?;
    let is_wanted = |inside: &Path| !UNWANTED.iter().any(|unwanted| inside == Path::new(unwanted));
    archive.tree(&store.root(guest.architecture), &is_wanted)?;
    archive.directory("tests").with_context(failed)?;
    let sources = workspace::root().join("xtask/src/vm_test/guest");
    let programs = workspace::root().join("tracer-user/tests/programs");
    let mut files = vec![("init", sources.join("init.sh")), ("tests/guest.py", sources.join("guest.py"))];
    let names = PROGRAMS.map(|name| (format!("tests/{name}"), programs.join(name)));
    files.extend(names.iter().map(|(name, from)| (name.as_str(), from.clone())));
    files.push(("tests/alloctrace", tracer.to_path_buf()));
    for (name, from) in files {
        let content = fs::read(&from).with_context(|| format!("failed to read `{}`", from.display()))?;
        archive.file(name, 0o755, &content).with_context(failed)?;
    }
    archive.finish().and_then(|mut file| file.flush()).with_context(failed)?;
    Ok(Image(path))
}

/// What packages do not bring: mount points, the links of a merged /usr, and the devices of the first process.
fn skeleton(archive: &mut Archive<impl std::io::Write>) -> std::io::Result<()> {
    for name in ["dev", "proc", "sys", "tmp", "run", "home", "usr"] {
        archive.directory(name)?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        archive.directory(&format!("usr/{name}"))?;
        archive.link(name, &format!("usr/{name}"))?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)
}

/// A file that is removed with its owner: each has a hundred megabytes.
pub struct Image(PathBuf);

impl Image {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What is left is replaced by the next run.
        let _ = fs::remove_file(&self.0);
    }
}
