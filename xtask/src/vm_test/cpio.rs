//! The "newc" cpio archive, which the kernel unpacks as its first root (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written here because it is a page of code and then needs neither the cpio program nor root for device nodes. Archives may
//! follow one another: a later entry replaces an earlier one. Everything belongs to root.

use anyhow::{Context as _, Result};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes entries one after the other.
pub struct Archive<W: Write> {
    to: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(to: W) -> Self {
        Self { to, number: 0 }
    }

    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name.as_bytes(), DIRECTORY | 0o755, (0, 0), &[])
    }

    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name.as_bytes(), FILE | permissions & 0o7777, (0, 0), content)
    }

    pub fn link(&mut self, name: &str, to: &str) -> io::Result<()> {
        self.entry(name.as_bytes(), LINK | 0o777, (0, 0), to.as_bytes())
    }

    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name.as_bytes(), CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Everything below `folder`, in the order of names, but what `is_wanted` refuses by its path inside.
    pub fn tree(&mut self, folder: &Path, is_wanted: &impl Fn(&Path) -> bool) -> Result<()> {
        self.branch(folder, Path::new(""), is_wanted)
    }

    fn branch(&mut self, root: &Path, inside: &Path, is_wanted: &impl Fn(&Path) -> bool) -> Result<()> {
        let folder = root.join(inside);
        let at = || format!("failed to read `{}`", folder.display());
        let mut names: Vec<_> = fs::read_dir(&folder)
            .with_context(at)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()
            .with_context(at)?;
        names.sort();
        for name in names {
            let inside = inside.join(name);
            if !is_wanted(&inside) {
                continue;
            }
            let path = root.join(&inside);
            let about = path.symlink_metadata().with_context(at)?;
            let name = inside.as_os_str().as_bytes();
            if about.is_symlink() {
                let target = fs::read_link(&path).with_context(at)?;
                self.entry(name, LINK | 0o777, (0, 0), target.as_os_str().as_bytes())?;
            } else if about.is_dir() {
                self.entry(name, DIRECTORY | about.permissions().mode() & 0o7777, (0, 0), &[])?;
                self.branch(root, &inside, is_wanted)?;
            } else if about.is_file() {
                let content =
                    fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
                self.entry(name, FILE | about.permissions().mode() & 0o7777, (0, 0), &content)?;
            }
        }
        Ok(())
    }

    /// Writes the end mark.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(b"TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.to)
    }

    fn entry(&mut self, name: &[u8], mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.number += 1;
        // Inode, mode, owner, group, links, time, size, device of the file, device that it is, length of the name, check sum.
        let fields = [self.number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.to.write_all(b"070701")?;
        for field in fields {
            write!(self.to, "{field:08X}")?;
        }
        self.to.write_all(name)?;
        self.to.write_all(&[0])?;
        // The header has 110 bytes; name and content end at multiples of four.
        self.pad(110 + name.len() + 1)?;
        self.to.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_fields_where_the_kernel_looks_for_them() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/bc", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ED");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000005");
        assert_eq!(&bytes[110..115], b"a/bc\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }

    #[test]
    fn devices_and_links_are_what_they_are_said_to_be() {
        let mut archive = Archive::new(Vec::new());
        archive.device("dev/console", 5, 1).unwrap();
        archive.link("lib", "usr/lib").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[14..22], b"00002180");
        assert_eq!(&bytes[78..94], b"0000000500000001");
        let link = 110 + 12 + 2;
        assert_eq!(&bytes[link + 14..link + 22], b"0000A1FF");
        assert_eq!(&bytes[link + 116..link + 123], b"usr/lib");
    }

    #[test]
    fn a_tree_is_taken_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/file"), "x").unwrap();
        fs::write(folder.path().join("unwanted"), "x").unwrap();
        std::os::unix::fs::symlink("file", folder.path().join("d/link")).unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.tree(folder.path(), &|path| path != Path::new("unwanted")).unwrap();
        let bytes = archive.finish().unwrap();
        let names: Vec<_> = ["d\0", "d/file\0", "d/link\0"]
            .iter()
            .map(|name| bytes.windows(name.len()).position(|part| part == name.as_bytes()).unwrap())
            .collect();
        assert!(names.is_sorted());
        assert!(!bytes.windows(8).any(|part| part == b"unwanted"));
    }
}
