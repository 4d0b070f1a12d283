//! Clears the table of live blocks of processes that have ended.
//!
//! The kernel half cannot: a program may not loop over so large a table. So its maps are mapped here, and the very code that the
//! kernel half runs takes the blocks out, while others go in and out. It must not know what a block counts for.

use std::cell::OnceCell;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tracer_ebpf::abi::PROCESSES;
use tracer_ebpf::bucket::{Bucket, Buckets, ENTRIES};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::live::{Key, Live};
use tracer_ebpf::tables::{Globals, Settings};

use super::kernel::table_error;
use super::{AttachError, Kernel};

/// What is mapped at once. All of the table would count as the tracer's memory: 26 MB by default, of the 60 that it may have.
const CHUNK_BYTES: usize = 1 << 20;

/// A stretch of an array map's elements, as the kernel half sees them.
struct Mapped<T> {
    start: NonNull<T>,
    /// The number of the first one.
    first: usize,
    elements: usize,
}

impl<T> Mapped<T> {
    /// `T` must consist of atomic cells: the kernel half writes at the same time. The stretch must begin with a page.
    fn new(table: BorrowedFd<'_>, range: Range<usize>) -> rustix::io::Result<Self> {
        let (access, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let (bytes, offset) = (range.len() * size_of::<T>(), (range.start * size_of::<T>()) as u64);
        // SAFETY: a new mapping at a place that the kernel chooses; nothing else is there.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, access, shared, table, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { start, first: range.start, elements: range.len() })
    }

    fn get(&self, number: usize) -> Option<&T> {
        let index = number.checked_sub(self.first).filter(|index| *index < self.elements)?;
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

/// One chunk of the table, and the few pages elsewhere that a key of the chunk needs: its other candidate.
struct Window<'kernel> {
    table: BorrowedFd<'kernel>,
    buckets: usize,
    chunk: Mapped<Bucket>,
    elsewhere: [OnceCell<Mapped<Bucket>>; 2],
}

impl<'kernel> Window<'kernel> {
    fn new(table: BorrowedFd<'kernel>, buckets: usize, chunk: Range<usize>) -> rustix::io::Result<Self> {
        let chunk = Mapped::new(table, chunk)?;
        Ok(Self { table, buckets, chunk, elsewhere: Default::default() })
    }

    /// The page that holds a bucket.
    fn page(&self, number: usize) -> Option<Mapped<Bucket>> {
        let in_page = (rustix::param::page_size() / size_of::<Bucket>()).max(1);
        let start = number / in_page * in_page;
        let range = start..(start + in_page).min(self.buckets);
        if range.contains(&number) { Mapped::new(self.table, range).ok() } else { None }
    }
}

impl Buckets for Window<'_> {
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        let number = number as usize;
        let known = self.chunk.get(number);
        known.or_else(|| {
            self.elsewhere.iter().find_map(|place| match place.get() {
                Some(page) => page.get(number),
                None => self.page(number).and_then(|page| place.get_or_init(|| page).get(number)),
            })
        })
    }
}

/// Takes every block of the processes in `slots` out of the table, and says how many there were. Their accounts stay.
///
/// # Errors
/// When the tables cannot be mapped.
pub fn forget_blocks(kernel: &Kernel, slots: &[u16]) -> Result<u64, AttachError> {
    let open = |name| kernel.table(name);
    let settings = Mapped::<Settings>::new(open("SETTINGS")?, 0..1).map_err(table_error("SETTINGS"))?;
    let globals = Mapped::<Globals>::new(open("GLOBALS")?, 0..1).map_err(table_error("GLOBALS"))?;
    let (Some(settings), Some(globals)) = (settings.get(0), globals.get(0)) else { return Ok(0) };
    let (table, buckets) = (open("LIVE")?, kernel.sizes().live_buckets as usize);
    let in_chunk = CHUNK_BYTES / size_of::<Bucket>();
    let mut taken = 0;
    for start in (0..buckets).step_by(in_chunk) {
        let chunk = start..(start + in_chunk).min(buckets);
        let mut window = Window::new(table, buckets, chunk.clone()).map_err(table_error("LIVE"))?;
        for number in chunk {
            for key in keys_of(&window, number).into_iter().filter(|key| slots.contains(&slot_of(*key))) {
                let live = Live { buckets: &window, settings, globals };
                taken += u64::from(live.take(Key(key)).is_some());
                window.elsewhere = Default::default();
            }
        }
    }
    Ok(taken)
}

fn slot_of(key: u64) -> u16 {
    (key & u64::from(PROCESSES - 1)) as u16
}

/// A copy: each key that is taken may bring other pages. Slot 0 is no process, so free entries (0) are nobody's.
fn keys_of(window: &Window<'_>, number: usize) -> [u64; ENTRIES] {
    window.chunk.get(number).map_or([0; ENTRIES], |bucket| bucket.keys().each_ref().map(Cell::load))
}
