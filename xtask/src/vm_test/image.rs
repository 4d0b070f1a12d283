//! The first root of a guest: a large archive of Debian's files that is kept, and a small one of ours behind it.
//!
//! It is not compressed: to unpack a hundred megabytes takes an emulated processor longer than to read them.

use super::cpio::Archive;
use super::machine::Architecture;
use super::packages::Store;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Folders that no test needs. A guest unpacks its root each time it starts, and 20 MB and 1,000 files take it a second.
const UNWANTED: [&str; 4] =
    ["usr/share", "usr/lib/valgrind", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/aarch64-linux-gnu/gconv"];
/// The same at any place: parts of the standard library that neither our programs nor what they import use, and the packages' leavings.
const UNWANTED_NAMES: [&str; 18] = [
    "_pyrepl",
    "asyncio",
    "dbm",
    "email",
    "ensurepip",
    "http",
    "idlelib",
    "multiprocessing",
    "profiling",
    "pydoc_data",
    "sqlite3",
    "test",
    "unittest",
    "urllib",
    "var",
    "wsgiref",
    "xml",
    "xmlrpc",
];
/// Beginnings of names: what those parts are linked to, and tests.
const UNWANTED_BEGINNINGS: [&str; 8] =
    ["_codecs_", "_ssl.", "_test", "debconf", "libcrypto.so", "libdb-", "libsqlite3.so", "libssl.so"];
/// Programs of the system tests that guests run as well.
const PROGRAMS: [&str; 3] = ["exact.py", "steps.py", "crowd.py"];

/// Make the root of an architecture's guests; it is gone when the result is dropped.
pub fn build(store: &Store, architecture: Architecture, tracer: &Path) -> Result<Image> {
    let path = store.of(architecture).join("image.cpio");
    let failed = || format!("failed to write `{}`", path.display());
    let mut archive = Archive::new(BufWriter::new(File::create(&path).with_context(failed)?));
    skeleton(&mut archive).with_context(failed)?;
    archive.tree(&store.root(architecture), &is_wanted)?;
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

/// Whether a file of the packages, by its path inside the root, goes into the image.
fn is_wanted(inside: &Path) -> bool {
    let name = inside.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    !UNWANTED.iter().any(|unwanted| inside == Path::new(unwanted))
        && !UNWANTED_NAMES.contains(&&*name)
        && !UNWANTED_BEGINNINGS.iter().any(|unwanted| name.starts_with(unwanted))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tests_import_goes_into_the_image() {
        for path in [
            "usr/lib/python3.11/subprocess.py",
            "usr/lib/python3.15/json",
            "usr/lib/x86_64-linux-gnu/libc.so.6",
        ] {
            assert!(is_wanted(Path::new(path)), "{path}");
        }
        for path in ["usr/share", "usr/lib/python3.14/asyncio", "usr/lib/x86_64-linux-gnu/libcrypto.so.3"] {
            assert!(!is_wanted(Path::new(path)), "{path}");
        }
    }
}
