//! How far the ring buffer has been written and read: to know when everything that a process has sent has come.
//!
//! It must not know what the records say.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tracer_ebpf::cell::Cell;

/// Positions in the stream of records, in bytes since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPositions {
    /// What has been read.
    pub read: u64,
    /// What has been reserved by programs, whether or not they have finished writing it.
    pub written: u64,
}

/// Reads both. The first two pages of a ring buffer's mapping are the positions of its reader and of its writers (`struct bpf_ringbuf`,
/// kernel/bpf/ringbuf.c).
pub fn positions(ring: BorrowedFd<'_>) -> rustix::io::Result<RingPositions> {
    let page = rustix::param::page_size();
    // SAFETY: a new mapping at a place that the kernel chooses; nothing else is there.
    let start = unsafe { mmap(std::ptr::null_mut(), 2 * page, ProtFlags::READ, MapFlags::SHARED, ring, 0) }?;
    let first = NonNull::new(start.cast::<Cell>()).ok_or(rustix::io::Errno::FAULT)?;
    // SAFETY: the mapping has two pages, and this is the first word of the second.
    let second = unsafe { first.byte_add(page) };
    // SAFETY: both words are mapped and aligned, and whoever writes them writes them as a whole.
    let written = unsafe { second.as_ref() }.load();
    // SAFETY: as above.
    let read = unsafe { first.as_ref() }.load();
    // SAFETY: this is the mapping that was made above, and no reference into it is left.
    unsafe { munmap(start, 2 * page) }?;
    Ok(RingPositions { read, written })
}
