//! Memory of a process, read from outside, and the mappings that say what is there.
//!
//! Readers take a /proc root, so tests can fake one. It must not know what the bytes mean.

use std::{fs, io, os::unix::fs::FileExt as _, path::Path};

/// Bytes at addresses.
pub trait ReadMemory {
    /// Reads all of `buffer` from `address` on.
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Reads an aligned word of the target.
    fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The memory of one process: `/proc/PID/mem`.
#[derive(Debug)]
pub struct ProcessMemory {
    file: fs::File,
}

impl ProcessMemory {
    /// Opens the memory of `pid` below `proc_root` (`/proc`); needs the right to trace the process.
    pub fn open(proc_root: &Path, pid: u32) -> io::Result<Self> {
        Ok(Self { file: fs::File::open(proc_root.join(pid.to_string()).join("mem"))? })
    }
}

impl ReadMemory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, address)
    }
}

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `r`.
    pub readable: bool,
    /// `w`.
    pub writable: bool,
    /// `x`.
    pub executable: bool,
    /// Position of `start` in the file.
    pub offset: u64,
    /// The file's inode; 0 for anonymous memory.
    pub inode: u64,
    /// Path, or a name in brackets such as `[heap]`; empty for unnamed memory.
    pub name: String,
}

impl Mapping {
    /// Whether no file is behind it (unnamed memory, the heap, memory that was given a name by `prctl`).
    pub fn is_anonymous(&self) -> bool {
        self.inode == 0 && !self.name.starts_with("[v") && !self.name.starts_with("[stack")
    }
}

/// The mappings of `pid` below `proc_root`, by address.
pub fn mappings(proc_root: &Path, pid: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read(proc_root.join(pid.to_string()).join("maps"))?;
    Ok(parse_mappings(&String::from_utf8_lossy(&text)))
}

/// Reads the text of `/proc/PID/maps`; lines that are none are left out.
pub fn parse_mappings(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_mapping).collect()
}

fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let _device = fields.next()?;
    let inode = fields.next()?.parse().ok()?;
    let name = fields.next().unwrap_or("").trim_start();
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        readable: permissions.starts_with('r'),
        writable: permissions.get(1..2) == Some("w"),
        executable: permissions.get(2..3) == Some("x"),
        offset: u64::from_str_radix(offset, 16).ok()?,
        inode,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps() {
        let parsed = parse_mappings(
            "00400000-0041f000 r--p 00001000 08:01 42                         /opt/a b/python\n\
             7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \n\
             nonsense\n\
             7ffd0000-7ffe0000 rw-p 00000000 00:00 0                          [stack]\n",
        );
        assert_eq!(parsed.len(), 3);
        assert_eq!((parsed[0].name.as_str(), parsed[0].offset), ("/opt/a b/python", 0x1000));
        assert!(!parsed[0].is_anonymous() && !parsed[0].writable);
        assert!(parsed[1].is_anonymous() && parsed[1].writable);
        assert!(!parsed[2].is_anonymous());
    }
}
