//! The view of ELF files, on this test's own program (which has everything) and on a file that has next to nothing.

#![expect(clippy::expect_used, reason = "a helper of tests fails as tests do")]

#[path = "plan_x86/program.rs"]
#[expect(dead_code, reason = "the assembler is for plan_x86")]
mod program;

use alloctrace::plan::FileOffset;
use alloctrace::plan::elf::{Elf, extent_of};
use program::{BUILD_ID, elf};

fn own_bytes() -> Vec<u8> {
    std::fs::read("/proc/self/exe").expect("a process can read its own file")
}

#[test]
fn maps_addresses_to_offsets_and_back() {
    let bytes = own_bytes();
    let file = Elf::parse(&bytes).expect("a sound file");
    let text = file.section(".text").expect("a program has code");
    assert_eq!(file.offset_of(text.address), Some(text.offset));
    assert_eq!(file.address_of(text.offset), Some(text.address));
    assert_eq!(file.offset_of(text.end() - 1), Some(FileOffset(text.offset.0 + text.bytes.len() as u64 - 1)));
    assert_eq!(file.offset_of(u64::MAX), None);
    assert_eq!(file.address_of(FileOffset(u64::MAX)), None);
}

#[test]
fn finds_code_symbols_and_extents() {
    let bytes = own_bytes();
    let file = Elf::parse(&bytes).expect("a sound file");
    let main = file.symbol("main").expect("this program is not stripped");
    assert!(file.code().iter().any(|range| range.contains(main.address)));
    let functions = file.functions();
    assert!(functions.is_sorted());
    let extent = extent_of(&functions, main.address).expect("main has a frame");
    assert_eq!(extent.start, main.address);
    assert_eq!(extent_of(&functions, 0), None);
    assert_eq!(file.symbol("no such function"), None);
    assert!(file.section(".bss").is_none(), "a section without bytes in the file");
}

#[test]
fn reads_a_file_without_sections() {
    let bytes = elf(b"\x90\xc3");
    let file = Elf::parse(&bytes).expect("a sound file");
    assert_eq!(file.build_id(), Some(&BUILD_ID[..]));
    let [code] = file.code()[..] else { panic!("one segment of code") };
    assert_eq!((code.address, code.offset, code.bytes), (0x1000, FileOffset(0x1000), &b"\x90\xc3"[..]));
    assert_eq!(code.bytes_from(0x1001), Some(&b"\xc3"[..]));
    assert_eq!(code.bytes_from(0x0fff), None);
    assert_eq!(file.functions(), []);
    assert_eq!(file.symbol("main"), None);
}
