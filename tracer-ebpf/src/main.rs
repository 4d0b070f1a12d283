//! The eBPF object: program entries and licence, nothing else.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod kernel;

/// The helpers that the programs call are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_information: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses an object in which it could be.
    loop {}
}
