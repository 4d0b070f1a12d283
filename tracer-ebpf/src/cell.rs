//! A shared 64-bit cell with the atomic operations of eBPF.
//!
//! rustc's eBPF target offers loads and stores only, so the kernel half spells the read-modify-write instructions out
//! (Documentation/bpf/standardization/instruction-set.rst, "Atomic operations"); the host uses the standard library's.
//! No ordering is needed beyond that of one cell: what must be seen together is written by one thread.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::Relaxed;

/// A cell that several CPUs, and runs that preempt each other, may change at once.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// A cell with a value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// Reads.
    #[inline(always)]
    #[must_use]
    pub fn load(&self) -> u64 {
        #[cfg(not(target_arch = "bpf"))]
        return self.0.load(Relaxed);
        #[cfg(target_arch = "bpf")]
        // SAFETY: `self` is valid; eBPF loads of an aligned word are single accesses. LLVM's eBPF backend cannot select
        // an atomic load below -mcpu=v4, so this is a volatile one.
        unsafe {
            self.0.as_ptr().read_volatile()
        }
    }

    /// Writes.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        #[cfg(not(target_arch = "bpf"))]
        self.0.store(value, Relaxed);
        #[cfg(target_arch = "bpf")]
        // SAFETY: as in `load`.
        unsafe {
            self.0.as_ptr().write_volatile(value);
        }
    }

    /// Adds, wrapping; a count goes down by adding the two's complement.
    #[inline(always)]
    pub fn add(&self, amount: u64) {
        #[cfg(not(target_arch = "bpf"))]
        self.0.fetch_add(amount, Relaxed);
        #[cfg(target_arch = "bpf")]
        // SAFETY: one atomic add on a cell that `self` proves to be valid.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) self.0.as_ptr(), in(reg) amount, options(nostack));
        }
    }

    /// Adds, wrapping, and returns the value before.
    #[inline(always)]
    pub fn fetch_add(&self, amount: u64) -> u64 {
        #[cfg(not(target_arch = "bpf"))]
        return self.0.fetch_add(amount, Relaxed);
        #[cfg(target_arch = "bpf")]
        {
            let mut value = amount;
            // SAFETY: as in `add`.
            unsafe {
                core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) self.0.as_ptr(), inout(reg) value, options(nostack));
            }
            value
        }
    }

    /// Sets bits.
    #[inline(always)]
    pub fn set(&self, bits: u64) {
        #[cfg(not(target_arch = "bpf"))]
        self.0.fetch_or(bits, Relaxed);
        #[cfg(target_arch = "bpf")]
        // SAFETY: as in `add`.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) self.0.as_ptr(), in(reg) bits, options(nostack));
        }
    }

    /// Writes `new` if the cell holds `old`; whether it did.
    #[inline(always)]
    #[must_use]
    pub fn replace(&self, old: u64, new: u64) -> bool {
        #[cfg(not(target_arch = "bpf"))]
        return self.0.compare_exchange(old, new, Relaxed, Relaxed).is_ok();
        #[cfg(target_arch = "bpf")]
        {
            let mut found = old;
            // SAFETY: as in `add`; the instruction compares with and answers in r0.
            unsafe {
                core::arch::asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) self.0.as_ptr(), in(reg) new, inout("r0") found, options(nostack));
            }
            found == old
        }
    }
}

/// 1 if the words differ, else 0, without a branch: eBPF has no conditional move, so a plain comparison would be one, and
/// every branch in a loop multiplies the paths that the kernel's verifier walks when the programs are loaded.
#[inline(always)]
#[must_use]
pub fn differs(left: u64, right: u64) -> u64 {
    let difference = left ^ right;
    #[cfg(not(target_arch = "bpf"))]
    return (difference | difference.wrapping_neg()) >> 63;
    #[cfg(target_arch = "bpf")]
    {
        let negated: u64;
        // SAFETY: arithmetic on registers; spelled out because the compiler turns the expression above into a branch.
        unsafe {
            core::arch::asm!("{0} = {1}", "{0} = -{0}", "{0} |= {1}", "{0} >>= 63", out(reg) negated, in(reg) difference, options(pure, nomem, nostack));
        }
        negated
    }
}
