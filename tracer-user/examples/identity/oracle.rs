//! Reads the table that `xtask/bench/identity/reuse_oracle.c` writes: which allocation each address of a process has now.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

// As in the C file.
const SLOTS: u64 = 1 << 22;
const RECENT: u64 = 1 << 20;
const HEADER_BYTES: u64 = 32;
const SLOT_BYTES: usize = 32;
const SLOTS_START: u64 = HEADER_BYTES + RECENT * 8;
/// Slots that are read at once when an address is looked for; the next is seldom further.
const PROBED: usize = 8;

/// What has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// Where in the file this is.
    place: u64,
    pub address: u64,
    /// Never the same twice.
    pub number: u64,
    pub size: u64,
    pub is_live: bool,
    /// How often it was resized where it lies.
    pub resized: u32,
}

/// The table of one process.
pub struct Oracle(File);

impl Oracle {
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    fn word(&self, offset: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Number of the latest allocation.
    pub fn latest(&self) -> io::Result<u64> {
        self.word(0)
    }

    /// Allocations that had no room in the table.
    pub fn lost(&self) -> io::Result<u64> {
        self.word(16)
    }

    /// Where the allocations of these numbers were, as far as they are among the latest million.
    pub fn addresses(&self, numbers: Range<u64>) -> io::Result<Vec<u64>> {
        let first = numbers.start.max(numbers.end.saturating_sub(RECENT));
        let mut addresses = Vec::new();
        // The table of the latest is a ring.
        for part in [
            first..numbers.end.min(first.next_multiple_of(RECENT)),
            first.next_multiple_of(RECENT)..numbers.end,
        ] {
            let mut bytes = vec![0; part.end.saturating_sub(part.start) as usize * 8];
            self.0.read_exact_at(&mut bytes, HEADER_BYTES + part.start % RECENT * 8)?;
            let (words, _) = bytes.as_chunks::<8>();
            addresses.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        }
        Ok(addresses)
    }

    /// What has the address now, or had it last.
    pub fn at(&self, address: u64) -> io::Result<Option<Allocation>> {
        let mut index = (address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 42;
        loop {
            let mut bytes = [0; SLOT_BYTES * PROBED];
            let count = usize::try_from(SLOTS - index).map_or(PROBED, |left| left.min(PROBED));
            let place = SLOTS_START + index * SLOT_BYTES as u64;
            self.0.read_exact_at(&mut bytes[..count * SLOT_BYTES], place)?;
            for (step, slot) in bytes[..count * SLOT_BYTES].chunks_exact(SLOT_BYTES).enumerate() {
                let allocation = parse(slot, place + (step * SLOT_BYTES) as u64);
                match allocation.address {
                    found if found == address => return Ok(Some(allocation)),
                    0 => return Ok(None),
                    _ => {}
                }
            }
            index = (index + count as u64) % SLOTS;
        }
    }

    /// The same address again.
    pub fn again(&self, allocation: &Allocation) -> io::Result<Allocation> {
        let mut bytes = [0; SLOT_BYTES];
        self.0.read_exact_at(&mut bytes, allocation.place)?;
        Ok(parse(&bytes, allocation.place))
    }
}

fn parse(bytes: &[u8], place: u64) -> Allocation {
    let word = |offset: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[offset..offset + 8]);
        u64::from_le_bytes(word)
    };
    let last = word(24);
    Allocation {
        place,
        address: word(0),
        number: word(8),
        size: word(16),
        is_live: last & 0xffff_ffff != 0,
        resized: (last >> 32) as u32,
    }
}
