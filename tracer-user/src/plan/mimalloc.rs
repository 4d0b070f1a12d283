//! The versions of mimalloc that CPython has had, and where each keeps what is read of its pages and segments.
//!
//! Why: 3.13.5 and 3.14.4 have 2.1.2, 3.14.10 and 3.15.2 have 2.5.2, and the two keep most things elsewhere. The finder, the kernel half and the census take the
//! places from this one table. All were measured with CPython's own headers (`offsetof`, x86-64; docs/decisions/0014).
//! It must not know how they are found or read.

use serde::{Deserialize, Serialize};

/// A version, as far as the layout goes (`MI_MALLOC_VERSION` in Include/internal/mimalloc/mimalloc.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MimallocVersion {
    /// 2.1.2.
    V2_1,
    /// 2.5.2.
    V2_5,
}

/// A number in a struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the struct's start.
    pub offset: u8,
    /// How long it is, in bytes.
    pub bytes: u8,
}

/// Offsets of one version, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MimallocLayout {
    /// `mi_page_t.free`: blocks to give out.
    pub free: u8,
    /// `local_free`: blocks that came back.
    pub local_free: u8,
    /// `used`: how many are out.
    pub used: Field,
    /// `xblock_size` (32 bits, and no size from 2 GiB on) or `block_size`.
    pub block_size: Field,
    /// `xthread_free`: blocks that other threads have freed.
    pub thread_free: u8,
    /// `xheap`.
    pub heap: u8,
    /// `sizeof(mi_page_t)` in builds with a lock. Free-threaded ones have [`Self::FREE_THREADED_EXTRA`] more.
    pub page: u8,
    /// `mi_segment_t.cookie`.
    pub cookie: u16,
    /// `segment_info_slices`.
    pub info_slices: u16,
    /// `kind`.
    pub kind: u16,
    /// `slice_entries`.
    pub slice_entries: u16,
    /// `slices`: where the pages begin.
    pub slices: u16,
    /// `mi_heap_t.thread_delayed_free`.
    pub delayed_free: u16,
}

impl MimallocLayout {
    /// `qsbr_node` and `qsbr_goal`, less the padding that stands there otherwise: CPython's own fields behind mimalloc's.
    pub const FREE_THREADED_EXTRA: u8 = 16;
}

const LAYOUT_2_1: MimallocLayout = MimallocLayout {
    free: 16,
    local_free: 32,
    used: Field { offset: 24, bytes: 4 },
    block_size: Field { offset: 28, bytes: 4 },
    thread_free: 40,
    heap: 48,
    page: 80,
    cookie: 216,
    info_slices: 232,
    kind: 240,
    slice_entries: 248,
    slices: 264,
    delayed_free: 2840,
};

const LAYOUT_2_5: MimallocLayout = MimallocLayout {
    free: 16,
    local_free: 24,
    used: Field { offset: 32, bytes: 2 },
    block_size: Field { offset: 40, bytes: 8 },
    thread_free: 56,
    heap: 64,
    page: 96,
    cookie: 224,
    info_slices: 256,
    kind: 264,
    slice_entries: 272,
    slices: 288,
    delayed_free: 8,
};

impl MimallocVersion {
    /// All that are known.
    pub const ALL: [Self; 2] = [Self::V2_1, Self::V2_5];

    /// Where it keeps things.
    pub const fn layout(self) -> &'static MimallocLayout {
        match self {
            Self::V2_1 => &LAYOUT_2_1,
            Self::V2_5 => &LAYOUT_2_5,
        }
    }
}
