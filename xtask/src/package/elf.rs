//! Whether a file is a program that needs nothing but a kernel: no loader, no library, and of the right architecture.

use super::Architecture;
use anyhow::{Context as _, Result, ensure};

/// Program headers that ask for a loader (elf(5)).
const INTERPRETER: u32 = 3;
const HEADER_BYTES: usize = 64;

/// An error says what it asks for.
pub fn check_static(bytes: &[u8], architecture: Architecture) -> Result<()> {
    ensure!(bytes.get(..5) == Some(b"\x7fELF\x02"), "it is no 64-bit ELF file");
    let machine = number(bytes, 18, 2)?;
    let expected = match architecture {
        Architecture::X86 => 62,
        Architecture::Arm => 183,
    };
    ensure!(machine == expected, "it is for machine {machine}, and {} is {expected}", architecture.name());
    let (start, size, count) = (number(bytes, 32, 8)?, number(bytes, 54, 2)?, number(bytes, 56, 2)?);
    ensure!(bytes.len() > HEADER_BYTES && count > 0, "it has no program headers");
    for index in 0..count {
        let kind = number(bytes, start.saturating_add(index.saturating_mul(size)) as usize, 4)?;
        ensure!(kind as u32 != INTERPRETER, "it asks for a loader: it is linked dynamically");
    }
    Ok(())
}

/// A number of that many bytes at a place.
fn number(bytes: &[u8], at: usize, length: usize) -> Result<u64> {
    let part = at.checked_add(length).and_then(|end| bytes.get(at..end)).context("it is cut short")?;
    Ok(part.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a file with one program header of this kind.
    fn file(machine: u8, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        (bytes[18], bytes[32], bytes[54], bytes[56], bytes[64]) = (machine, 64, 56, 1, kind);
        bytes
    }

    #[test]
    fn a_loader_or_another_machine_is_noticed() {
        let check = |bytes: &[u8]| check_static(bytes, Architecture::X86).map_err(|error| error.to_string());
        assert_eq!(check(&file(62, 1)), Ok(()));
        assert!(check(&file(62, 3)).unwrap_err().contains("dynamically"));
        assert!(check(&file(183, 1)).unwrap_err().contains("machine 183"));
        assert!(check(&file(62, 1)[..70]).is_ok());
        assert!(check(&file(62, 1)[..66]).unwrap_err().contains("cut short"));
        assert!(check(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn the_test_itself_is_linked_dynamically() {
        // A program of this machine's own toolchain, which links to glibc.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let here = Architecture::ALL.into_iter().find(|architecture| architecture.runs_here()).unwrap();
        assert!(check_static(&own, here).unwrap_err().to_string().contains("dynamically"));
    }
}
