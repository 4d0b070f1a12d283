//! Files that mean harm: planning must end, must not panic, and must say what is wrong.

#[path = "plan_x86/program.rs"]
#[expect(dead_code, reason = "the assembler is for plan_x86")]
mod program;

use alloctrace::plan::{PlanError, plan_interpreter, plan_malloc};
use program::{elf, elf_for};
use proptest::prelude::*;

/// Instruction bytes that the finder cares about, so that random programs get deep into it.
const PIECES: [&[u8]; 14] = [
    b"\x48\x8b\x41\x08",         // mov 8(%rcx),%rax
    b"\x48\x8b\x10",             // mov (%rax),%rdx
    b"\x48\x89\x51\x08",         // mov %rdx,8(%rcx)
    b"\x48\x89\x10",             // mov %rdx,(%rax)
    b"\x83\x01\x01",             // addl $1,(%rcx)
    b"\x83\x29\x01",             // subl $1,(%rcx)
    b"\xc7\x01\x01\x00\x00\x00", // movl $1,(%rcx)
    b"\x89\x71\x24",             // mov %esi,0x24(%rcx)
    b"\x48\x89\xc8",             // mov %rcx,%rax
    b"\x48\x83\xe1\x80",         // and $-128,%rcx
    b"\x74\xf0",                 // je back
    b"\x75\x05",                 // jne on
    b"\xeb\xfa",                 // jmp back
    b"\xe8\x00\x00\x00\x00",     // call on
];

fn plan(file: &[u8]) {
    // Either answer is fine; what counts is that there is one.
    drop(plan_interpreter(file));
    drop(plan_malloc(file));
}

proptest! {
    #[test]
    fn ends_on_random_code(code in proptest::collection::vec(any::<u8>(), 0..4096)) {
        plan(&elf(&code));
    }

    #[test]
    fn ends_on_random_programs(pieces in proptest::collection::vec(0..PIECES.len(), 0..400)) {
        plan(&elf(&pieces.into_iter().flat_map(|piece| PIECES[piece]).copied().collect::<Vec<_>>()));
    }

    #[test]
    fn ends_on_random_files(file in proptest::collection::vec(any::<u8>(), 0..4096)) {
        plan(&file);
    }

    #[test]
    fn ends_on_damaged_files(position in 0usize..180, byte in any::<u8>(), length in 0usize..4200) {
        let mut file = elf(b"\x48\x8b\x41\x08\x48\x8b\x10\x48\x89\x51\x08\x74\x00");
        file[position] = byte;
        file.truncate(length);
        plan(&file);
    }
}

/// This test's own file has everything: sections, symbols, frames. Damage anywhere in its tables must be survived.
#[test]
fn ends_on_a_damaged_real_file() {
    let own = std::fs::read("/proc/self/exe").expect("a process can read its own file");
    // Only headers, tables and a little code: the whole file would take minutes unoptimised.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..40 {
        let mut file = own[..own.len().min(1 << 16)].to_vec();
        for _ in 0..64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let position = (state >> 33) as usize % file.len().min(4096);
            file[position] = (state >> 25) as u8;
        }
        plan(&file);
    }
}

#[test]
fn says_which_architecture_it_cannot_plan() {
    // EM_ARM
    let error = plan_interpreter(&elf_for(40, b"")).expect_err("32-bit Arm has no finder");
    assert!(matches!(error, PlanError::UnsupportedArchitecture { .. }));
    assert_eq!(
        error.to_string(),
        "unsupported architecture: Other(40); only x86-64 and arm64 files can be planned"
    );
}

#[test]
fn says_what_is_no_elf_file() {
    let error = plan_malloc(b"#!/bin/sh\n").expect_err("a script is no ELF file");
    assert_eq!(
        error.to_string(),
        "not a usable elf64 little-endian file of 10 bytes; check that it is a program or library"
    );
}
