//! For tests: a folder that looks like a host's root.
//!
//! It must not know what is read from it.

use std::fs;

use tempfile::TempDir;

/// With these files, by their paths below it.
pub fn root(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}
