//! Blocks that the kernel half has told of one by one while a window was open.
//!
//! It must not know what becomes of them.

/// A block that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSeen {
    /// Slot of its process.
    pub process: u16,
    /// Account of the stack that took it.
    pub account: u32,
    /// Where it begins.
    pub address: u64,
    /// What the allocator spends on it: the size class for pymalloc's blocks, the requested size for malloc's.
    pub bytes: u64,
    /// Whether it is malloc's, not pymalloc's.
    pub is_malloc: bool,
    /// Its point was drawn once in `1 << level` windows.
    pub level: u8,
}
