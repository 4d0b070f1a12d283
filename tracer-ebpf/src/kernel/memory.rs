//! Reads of the traced process through `bpf_probe_read_user`.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use tracer_ebpf::memory::{CONSTANT_WORDS, Memory, WIDE_BYTES, Wide};

/// The memory of the process that runs now.
pub struct UserMemory;

/// Reads `length` bytes; `false` on any fault.
#[inline(always)]
pub fn read_into(address: u64, length: u32, into: *mut u8) -> bool {
    // SAFETY: the helper checks the source; every caller passes a destination of at least `length` bytes, which the verifier
    // proves again when the object is loaded.
    unsafe { bpf_probe_read_user(into.cast(), length, address as *const _) == 0 }
}

impl Memory for UserMemory {
    #[inline(always)]
    fn read_wide(&self, address: u64, into: &mut Wide) -> bool {
        const { assert!(WIDE_BYTES as usize <= size_of::<Wide>()) };
        read_into(address, WIDE_BYTES, into.as_mut_ptr().cast())
    }

    #[inline(always)]
    fn read_constants(&self, address: u64) -> [u64; CONSTANT_WORDS] {
        let mut words = [0; CONSTANT_WORDS];
        read_into(address, CONSTANT_WORDS as u32 * 8, words.as_mut_ptr().cast());
        words
    }

    #[inline(always)]
    fn read_word(&self, address: u64) -> Option<u64> {
        let mut word = 0u64;
        read_into(address, 8, (&raw mut word).cast()).then_some(word)
    }

    #[inline(always)]
    fn word_or_zero(&self, address: u64) -> u64 {
        let mut word = 0u64;
        // The helper clears the destination when it fails.
        read_into(address, 8, (&raw mut word).cast());
        word
    }

    #[inline(always)]
    fn half_or_zero(&self, address: u64) -> u32 {
        let mut half = 0u32;
        read_into(address, 4, (&raw mut half).cast());
        half
    }
}

/// The running thread's `pthread_self()`, 0 when it cannot be read: on both architectures the C library finds it by the thread pointer. `distance` is
/// what it subtracts from that: nothing on x86-64, the size of its `struct pthread` on arm64. There the word is from the last time that the thread was
/// switched out (arch/arm64/kernel/process.c, tls_preserve_current_state), 0 before; a thread's pointer never changes once it is set.
#[inline(always)]
pub fn thread_self(offset_in_task: u64, distance: u64) -> u64 {
    let mut pointer = 0u64;
    // SAFETY: the helper returns the address of the current task and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper checks the source address; the destination is eight bytes long.
    unsafe {
        bpf_probe_read_kernel((&raw mut pointer).cast(), 8, task.wrapping_add(offset_in_task) as *const _)
    };
    if pointer == 0 { 0 } else { pointer.wrapping_sub(distance) }
}
