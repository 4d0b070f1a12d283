//! `cargo xtask tidy`: rules of this repository that compilers and linters do not know.
//!
//! Every source file begins by saying what it is for; files and `main` stay short; nothing of one machine (its folders, its package servers) gets in; paths
//! that the docs name exist; the change log is there.

mod docs;
mod forbidden;
mod sources;

use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders that are not ours.
const SKIPPED: [&str; 3] = [".git", "target", "node_modules"];

/// A file of the checkout, with its path from the root.
pub struct File {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

impl File {
    /// The text, or nothing for a binary file.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }

    pub fn has_extension(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|found| found == extension)
    }
}

/// Apply all rules to the checkout; print what is against them, and what soon will be.
pub fn run() -> Result<()> {
    let root = workspace::root();
    let files = read(&root)?;
    for file in &files {
        sources::warnings(file).iter().for_each(|text| println!("tidy: {text}"));
    }
    let faults = faults(&root, &files);
    faults.iter().for_each(|text| eprintln!("tidy: {text}"));
    match faults.len() {
        0 => Ok(()),
        1 => bail!("one rule is broken; it is named above"),
        count => bail!("{count} rules are broken; they are named above"),
    }
}

fn faults(root: &Path, files: &[File]) -> Vec<String> {
    let mut faults: Vec<String> = Vec::new();
    for file in files {
        faults.extend(sources::faults(file));
        faults.extend(forbidden::faults(file));
        faults.extend(docs::faults(file, |path| root.join(path).exists()));
    }
    faults.extend(docs::change_log(files));
    faults
}

/// All files of the checkout, in order of their paths.
fn read(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("failed to list `{}`", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes =
                    fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
                files.push(File { path: path.strip_prefix(root)?.to_path_buf(), bytes });
            }
        }
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

#[cfg(test)]
pub mod tests {
    use super::File;
    use std::path::PathBuf;

    pub fn file(path: &str, text: &str) -> File {
        File { path: PathBuf::from(path), bytes: text.as_bytes().to_vec() }
    }
}
