//! Clears the table of live blocks of processes that have ended.
//!
//! The kernel half cannot: a program may not loop over so large a table. So its maps are mapped here, and the very code that the
//! kernel half runs takes the blocks out, while others go in and out. It must not know what a block counts for.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tracer_ebpf::abi::PROCESSES;
use tracer_ebpf::bucket::{Bucket, Buckets};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::live::{Key, Live};
use tracer_ebpf::tables::{Globals, Settings};

use super::kernel::table_error;
use super::{AttachError, Kernel};

/// Elements of an array map, as the kernel half sees them.
struct Mapped<T> {
    start: NonNull<T>,
    elements: usize,
}

impl<T> Mapped<T> {
    /// `T` must consist of atomic cells: the kernel half writes at the same time.
    fn new(table: BorrowedFd<'_>, elements: usize) -> rustix::io::Result<Self> {
        let (access, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at a place that the kernel chooses; nothing else is there.
        let start =
            unsafe { mmap(std::ptr::null_mut(), elements * size_of::<T>(), access, shared, table, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { start, elements })
    }

    fn get(&self, index: usize) -> Option<&T> {
        if index >= self.elements {
            return None;
        }
        // SAFETY: the mapping has `elements` elements.
        let element = unsafe { self.start.add(index) };
        // SAFETY: it lives as long as `self`, and is made of cells that may change.
        Some(unsafe { element.as_ref() })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` has made, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.elements * size_of::<T>()) };
    }
}

impl Buckets for Mapped<Bucket> {
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.get(number as usize)
    }
}

/// Takes every block of the processes in `slots` out of the table, and says how many there were. Their accounts stay.
///
/// # Errors
/// When the tables cannot be mapped.
pub fn forget_blocks(kernel: &Kernel, slots: &[u16]) -> Result<u64, AttachError> {
    let open = |name| kernel.table(name);
    let buckets = kernel.sizes().live_buckets as usize;
    let blocks = Mapped::<Bucket>::new(open("LIVE")?, buckets).map_err(table_error("LIVE"))?;
    let settings = Mapped::<Settings>::new(open("SETTINGS")?, 1).map_err(table_error("SETTINGS"))?;
    let globals = Mapped::<Globals>::new(open("GLOBALS")?, 1).map_err(table_error("GLOBALS"))?;
    let (Some(settings), Some(globals)) = (settings.get(0), globals.get(0)) else { return Ok(0) };
    let live = Live { buckets: &blocks, settings, globals };
    let mut taken = 0;
    for bucket in (0..buckets).filter_map(|number| blocks.get(number)) {
        for key in bucket.keys().iter().map(Cell::load) {
            let slot = (key & u64::from(PROCESSES - 1)) as u16;
            if key != 0 && slots.contains(&slot) {
                taken += u64::from(live.take(Key(key)).is_some());
            }
        }
    }
    Ok(taken)
}
