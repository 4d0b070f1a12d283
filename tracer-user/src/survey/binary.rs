//! What the head of an ELF file says, for files of any class and machine.
//!
//! Why: the rest of the project reads 64-bit files of two machines; here the question is why a file is none of these.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// `e_machine` of what we run on; 0 where nothing can be traced at all.
const OWN_MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else {
    0
};

/// A file's class and machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// 64 bits, and for the machine that we run on.
    Native,
    /// 32 bits.
    ThirtyTwoBit,
    /// For another machine (`e_machine`, elf.h).
    Foreign(u16),
    /// No ELF file, or none that we may read.
    Unknown,
}

impl Binary {
    /// Reads the head of a file.
    pub fn of(path: &Path) -> Self {
        let mut head = [0; 20];
        match File::open(path).and_then(|mut file| file.read_exact(&mut head)) {
            Ok(()) => Self::of_head(head),
            Err(_) => Self::Unknown,
        }
    }

    fn of_head(head: [u8; 20]) -> Self {
        let machine = u16::from_le_bytes([head[18], head[19]]);
        // EI_CLASS is 1 or 2.
        match (&head[..4], head[4]) {
            (b"\x7fELF", 1) => Self::ThirtyTwoBit,
            (b"\x7fELF", 2) if machine == OWN_MACHINE => Self::Native,
            (b"\x7fELF", 2) => Self::Foreign(machine),
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(class: u8, machine: u16) -> [u8; 20] {
        let mut head = [0; 20];
        head[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
        head[18..].copy_from_slice(&machine.to_le_bytes());
        head
    }

    #[test]
    fn classes_and_machines() {
        assert_eq!(Binary::of_head(head(1, 3)), Binary::ThirtyTwoBit);
        assert_eq!(Binary::of_head(head(2, OWN_MACHINE)), Binary::Native);
        assert_eq!(Binary::of_head(head(2, 21)), Binary::Foreign(21));
        assert_eq!(Binary::of_head([0; 20]), Binary::Unknown);
        assert_eq!(Binary::of(Path::new("/proc/self/exe")), Binary::Native);
        assert_eq!(Binary::of(Path::new("/does/not/exist")), Binary::Unknown);
    }
}
