//! Keeps the tracer itself small. It must not know what memory is used for.

/// Large blocks go back to the kernel when they are freed.
///
/// glibc stops to do so once a large one has been freed, such as an interpreter's file that was read (`M_MMAP_THRESHOLD` in mallopt(3)):
/// with 103,000 stacks the tracer then took 74 MB in place of 48.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE_BYTES: libc::c_int = 128 << 10;
        // SAFETY: sets a number of the allocator's, which it may be told at any time.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
    }
}
