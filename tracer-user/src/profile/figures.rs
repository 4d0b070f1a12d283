//! What a process's memory is made of at a moment: requested by the program, held free by its allocators, resident.
//!
//! Why three: a leak grows the first, fragmentation the second, and only the third is what the host sees. Each part says
//! why where it is not known. It must not know how memory is read, nor how figures are shown.

use serde::{Deserialize, Serialize};

/// A part, or why it is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Known<T> {
    /// What was found.
    Known(T),
    /// Not known; the text says why.
    Unknown {
        /// The reason, one line.
        unknown: String,
    },
}

impl<T> Known<T> {
    /// The part, if it is known.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Known(part) => Some(part),
            Self::Unknown { .. } => None,
        }
    }

    /// Why it is not known, if so.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown { unknown } => Some(unknown),
        }
    }
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Known<T> {
    fn from(result: Result<T, E>) -> Self {
        result.map_or_else(|error| Self::Unknown { unknown: error.to_string() }, Self::Known)
    }
}

/// CPython's own allocator: pymalloc, or mimalloc where objects come from that. Headers, and what is left over at the end
/// of pools, are in none of the parts but the total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolBytes {
    /// Blocks in use, by the size of their class.
    pub in_use_bytes: u64,
    /// Free blocks of pools (mimalloc: pages) that have blocks in use.
    pub free_in_pools_bytes: u64,
    /// What arenas (mimalloc: segments) hold besides pools in use.
    pub free_pools_bytes: u64,
    /// All arenas.
    pub arenas_bytes: u64,
    /// How much of the above may be in the wrong part: pools that changed while they were read.
    pub uncertain_bytes: u64,
}

/// The C library's malloc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocBytes {
    /// Chunks in use by their usable sizes: what was asked for, rounded up to the allocator's steps of 16 bytes.
    pub in_use_bytes: u64,
    /// How many; each has a header of 8 bytes, which is in no part.
    pub in_use_chunks: u64,
    /// Free chunks, those of caches and the end of each heap included.
    pub free_bytes: u64,
    /// Of these: in the caches of threads (tcache) and in fast bins.
    pub cached_bytes: u64,
    /// Large chunks with mappings of their own, by whole pages; they are in use.
    pub mapped_bytes: u64,
    /// How many.
    pub mapped_chunks: u64,
    /// How much was read more than once, because it changed meanwhile: how far this is from a single moment.
    pub reread_bytes: u64,
}

/// The kernel's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidentBytes {
    /// `RssAnon`.
    pub anonymous_bytes: u64,
    /// `RssFile`.
    pub file_bytes: u64,
    /// `RssShmem`.
    pub shared_bytes: u64,
    /// `VmSwap`.
    pub swapped_bytes: u64,
}

/// All parts at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Of CPython's own allocator.
    pub pools: Known<PoolBytes>,
    /// Of the C library's.
    pub malloc: Known<MallocBytes>,
    /// Of the kernel.
    pub resident: Known<ResidentBytes>,
}

impl Figures {
    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(reason: &str) -> Self {
        fn of<T>(unknown: &str) -> Known<T> {
            Known::Unknown { unknown: unknown.to_owned() }
        }
        Self { pools: of(reason), malloc: of(reason), resident: of(reason) }
    }

    /// What the program asked for and has not given back; `None` unless both allocators are known.
    #[must_use]
    pub fn requested_bytes(&self) -> Option<u64> {
        let (pools, malloc) = (self.pools.get()?, self.malloc.get()?);
        Some(pools.in_use_bytes.saturating_add(malloc.in_use_bytes).saturating_add(malloc.mapped_bytes))
    }

    /// What the allocators hold free; `None` unless both are known.
    #[must_use]
    pub fn held_bytes(&self) -> Option<u64> {
        let (pools, malloc) = (self.pools.get()?, self.malloc.get()?);
        let of_pools = pools.free_in_pools_bytes.saturating_add(pools.free_pools_bytes);
        Some(of_pools.saturating_add(malloc.free_bytes))
    }

    /// Resident anonymous memory.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        Some(self.resident.get()?.anonymous_bytes)
    }

    /// Resident memory that is neither: stacks, mappings of the program, the interpreter's own data, headers. Below zero
    /// where parts of the others are not resident: pages never touched, or swapped out.
    #[must_use]
    pub fn rest_bytes(&self) -> Option<i128> {
        let sum = i128::from(self.requested_bytes()?) + i128::from(self.held_bytes()?);
        Some(i128::from(self.resident_bytes()?) - sum)
    }

    /// Why something is not known, of what is not.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        [self.pools.reason(), self.malloc.reason(), self.resident.reason()].into_iter().flatten()
    }

    /// Whether every part is known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.reasons().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_known_where_all_parts_are() {
        let pools = PoolBytes {
            in_use_bytes: 100,
            free_in_pools_bytes: 7,
            free_pools_bytes: 20,
            ..PoolBytes::default()
        };
        let malloc =
            MallocBytes { in_use_bytes: 50, free_bytes: 3, mapped_bytes: 1000, ..MallocBytes::default() };
        let resident = ResidentBytes { anonymous_bytes: 900, ..ResidentBytes::default() };
        let mut figures = Figures {
            pools: Known::Known(pools),
            malloc: Known::Known(malloc),
            resident: Known::Known(resident),
        };
        assert_eq!((figures.requested_bytes(), figures.held_bytes()), (Some(1150), Some(30)));
        assert_eq!(figures.rest_bytes(), Some(-280));
        assert!(figures.is_complete());
        figures.malloc = Known::Unknown { unknown: "no".to_owned() };
        assert_eq!(
            (figures.requested_bytes(), figures.held_bytes(), figures.rest_bytes()),
            (None, None, None)
        );
        assert_eq!(
            (figures.resident_bytes(), figures.reasons().collect::<Vec<_>>()),
            (Some(900), vec!["no"])
        );
    }

    #[test]
    fn an_unknown_part_is_read_back_as_one() {
        let figures = Figures::unknown("the process had ended");
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(serde_json::from_str::<Figures>(&text).unwrap(), figures);
    }
}
