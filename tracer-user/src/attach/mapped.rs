//! The kernel half's tables as userspace sees them: mapped, a stretch at a time, while programs change them.
//!
//! All of a table would count as the tracer's memory. It must not know what the tables hold.

use std::cell::OnceCell;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tracer_ebpf::bucket::{Bucket, Buckets, ENTRIES};
use tracer_ebpf::cell::Cell;

/// A stretch of an array map's elements, as the kernel half sees them.
pub struct Mapped<T> {
    start: NonNull<T>,
    /// The number of the first one.
    first: usize,
    elements: usize,
}

impl<T> Mapped<T> {
    /// `T` must consist of atomic cells: the kernel half writes at the same time. The stretch must begin with a page.
    pub fn new(table: BorrowedFd<'_>, range: Range<usize>) -> rustix::io::Result<Self> {
        let (access, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let (bytes, offset) = (range.len() * size_of::<T>(), (range.start * size_of::<T>()) as u64);
        // SAFETY: a new mapping at a place that the kernel chooses; nothing else is there.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, access, shared, table, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { start, first: range.start, elements: range.len() })
    }

    /// An element; `None` outside of the stretch.
    pub fn get(&self, number: usize) -> Option<&T> {
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
pub struct Window<'kernel> {
    table: BorrowedFd<'kernel>,
    buckets: usize,
    chunk: Mapped<Bucket>,
    elsewhere: [OnceCell<Mapped<Bucket>>; 2],
}

impl<'kernel> Window<'kernel> {
    pub fn new(table: BorrowedFd<'kernel>, buckets: usize, chunk: Range<usize>) -> rustix::io::Result<Self> {
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

impl Window<'_> {
    /// The keys of a bucket of the chunk. A copy: each that is taken out may need other pages.
    pub fn keys(&self, number: usize) -> [u64; ENTRIES] {
        self.chunk.get(number).map_or([0; ENTRIES], |bucket| bucket.keys().each_ref().map(Cell::load))
    }

    /// Forgets the pages of the key before.
    pub fn next_key(&mut self) {
        self.elsewhere = Default::default();
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
