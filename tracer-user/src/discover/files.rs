//! What is known of files that were read: hundreds of processes run the same interpreter, which has megabytes.
//!
//! A file is known by its identity and time, never by its name. It must not know processes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustc_hash::FxHashMap;

use super::layout::InterpreterLayout;
use super::target::{DiscoverError, Version};

/// Files that are remembered; a host has no more interpreters, but may run any number of other programs.
const MAX_FILES: usize = 4096;

/// Device, inode, size and time of its last change, and the offset that was asked about.
type Identity = (u64, u64, u64, i64, i64, u64);

/// What a file says of the interpreter in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// Its version.
    pub version: Version,
    /// Where it keeps things.
    pub layout: InterpreterLayout,
    /// Address of `_PyRuntime` in the file.
    pub runtime: u64,
    /// Address in the file of the offset that was asked about.
    pub first: u64,
}

/// Files that were read.
#[derive(Debug, Default)]
pub struct Files {
    known: FxHashMap<Identity, Option<Facts>>,
}

impl Files {
    /// What is known of a file, or what `read` says of it. What fails is tried again the next time.
    pub(super) fn facts(
        &mut self,
        path: &Path,
        offset: u64,
        read: impl FnOnce() -> Result<Option<Facts>, DiscoverError>,
    ) -> Result<Option<Facts>, DiscoverError> {
        let Some(identity) = identity(path, offset) else { return read() };
        if let Some(facts) = self.known.get(&identity) {
            return Ok(*facts);
        }
        let facts = read()?;
        if self.known.len() >= MAX_FILES {
            self.known.clear();
        }
        self.known.insert(identity, facts);
        Ok(facts)
    }
}

fn identity(path: &Path, offset: u64) -> Option<Identity> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec(), offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let (mut files, mut reads) = (Files::default(), 0);
        let mut ask = |offset| {
            let found = files.facts(&path, offset, || {
                reads += 1;
                Ok(None)
            });
            assert!(found.unwrap().is_none());
            reads
        };
        assert_eq!([ask(0), ask(0), ask(4096), ask(0)], [1, 1, 2, 2]);
        fs::write(&path, "another").unwrap();
        assert_eq!(ask(0), 3);
    }
}
