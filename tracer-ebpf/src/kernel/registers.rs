//! A register by its number.
//!
//! The verifier allows the context to be read at fixed offsets only, and a compiler turns a `match` over field reads into
//! one read at a computed offset. Inline assembly keeps the reads apart; the choice is a short tree of comparisons.

use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::growth::{Call, Calls};

macro_rules! read {
    ($context:expr, $offset:literal) => {{
        let value: u64;
        // SAFETY: reads eight bytes at a fixed offset inside the saved registers, which the verifier checks.
        unsafe {
            core::arch::asm!(concat!("{0} = *(u64 *)({1} + ", $offset, ")"), out(reg) value, in(reg) $context.regs, options(readonly, nostack, preserves_flags));
        }
        value
    }};
}

/// The register with this hardware number (`plan::Register`); 0 for a number that there is not.
/// Offsets: `struct pt_regs`, arch/x86/include/uapi/asm/ptrace.h.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn register(context: &ProbeContext, number: u8) -> u64 {
    match number {
        0 => read!(context, 80),
        1 => read!(context, 88),
        2 => read!(context, 96),
        3 => read!(context, 40),
        4 => read!(context, 152),
        5 => read!(context, 32),
        6 => read!(context, 104),
        7 => read!(context, 112),
        8 => read!(context, 72),
        9 => read!(context, 64),
        10 => read!(context, 56),
        11 => read!(context, 48),
        12 => read!(context, 24),
        13 => read!(context, 16),
        14 => read!(context, 8),
        15 => read!(context, 0),
        _ => 0,
    }
}

/// The stack pointer.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn stack_pointer(context: &ProbeContext) -> u64 {
    read!(context, 152)
}

/// The n-th argument of a C function, for n below 3.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn argument<const N: u8>(context: &ProbeContext) -> u64 {
    match N {
        0 => read!(context, 112),
        1 => read!(context, 104),
        _ => read!(context, 96),
    }
}

/// What a C function returned.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn result(context: &ProbeContext) -> u64 {
    read!(context, 80)
}

/// The register with this number, `x0` to `x30`, and `sp` as 31. Offsets: `struct user_pt_regs`, arch/arm64/include/uapi/asm/ptrace.h.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn register(context: &ProbeContext, number: u8) -> u64 {
    match number {
        0 => read!(context, 0),
        1 => read!(context, 8),
        2 => read!(context, 16),
        3 => read!(context, 24),
        4 => read!(context, 32),
        5 => read!(context, 40),
        6 => read!(context, 48),
        7 => read!(context, 56),
        8 => read!(context, 64),
        9 => read!(context, 72),
        10 => read!(context, 80),
        11 => read!(context, 88),
        12 => read!(context, 96),
        13 => read!(context, 104),
        14 => read!(context, 112),
        15 => read!(context, 120),
        16 => read!(context, 128),
        17 => read!(context, 136),
        18 => read!(context, 144),
        19 => read!(context, 152),
        20 => read!(context, 160),
        21 => read!(context, 168),
        22 => read!(context, 176),
        23 => read!(context, 184),
        24 => read!(context, 192),
        25 => read!(context, 200),
        26 => read!(context, 208),
        27 => read!(context, 216),
        28 => read!(context, 224),
        29 => read!(context, 232),
        30 => read!(context, 240),
        31 => read!(context, 248),
        _ => 0,
    }
}

/// The stack pointer.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn stack_pointer(context: &ProbeContext) -> u64 {
    read!(context, 248)
}

/// The n-th argument of a C function, for n below 3.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn argument<const N: u8>(context: &ProbeContext) -> u64 {
    match N {
        0 => read!(context, 0),
        1 => read!(context, 8),
        _ => read!(context, 16),
    }
}

/// What a C function returned.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn result(context: &ProbeContext) -> u64 {
    read!(context, 0)
}

/// Numbers of system calls.
#[cfg(bpf_target_arch = "x86_64")]
pub const CALLS: Calls = tracer_ebpf::growth::X86_64;
/// Numbers of system calls.
#[cfg(bpf_target_arch = "aarch64")]
pub const CALLS: Calls = tracer_ebpf::growth::AARCH64;

/// The system call that saved registers tell of, `read` giving the word at an offset in them. `orig_ax` is -1 where a fault or an interrupt has saved them
/// (arch/x86/entry/entry_64.S, `idtentry_body`). Offsets: `struct pt_regs`.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn system_call(read: impl Fn(u64) -> u64) -> Call {
    Call { number: read(120).cast_signed(), arguments: [read(112), read(104), read(96), read(56)] }
}

/// The same: `syscallno` is -1 there (arch/arm64/kernel/entry.S, `kernel_entry`), and the first argument is in `orig_x0`.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn system_call(read: impl Fn(u64) -> u64) -> Call {
    let number = i64::from((read(280) as u32).cast_signed());
    Call { number, arguments: [read(272), read(8), read(16), read(24)] }
}
