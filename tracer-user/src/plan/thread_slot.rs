//! Where an interpreter keeps the running thread's state: the thread-local `_Py_tss_tstate` (3.12 and later, Python/pystate.c).
//!
//! Why: interpreters with a lock of their own run side by side, so the holder of one lock is not the thread that runs; each thread
//! itself knows its state. The variable has no symbol in stripped files, but `PyThreadState_GetUnchecked` (3.12:
//! `_PyThreadState_UncheckedGet`) is exported and does nothing but read it.
//! It must not know processes. Only x86-64 code is read.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use serde::{Deserialize, Serialize};

use super::elf::{Elf, Machine};

/// Functions that only read it, newest name first.
const READERS: [&str; 2] = ["PyThreadState_GetUnchecked", "_PyThreadState_UncheckedGet"];
/// `endbr64; mov %fs:offset, %rax` or `sub; lea; call` is all there is; frames of unoptimised builds take two more.
const MOST_STEPS: usize = 8;

/// How to find the variable of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadSlot {
    /// So many bytes from the thread pointer: in programs, which are linked with that number.
    Fixed(i64),
    /// By the two words at this address of the file, which the loader fills in: the module's number, and the offset in its block (general
    /// dynamic model, in libraries).
    Module {
        /// Address of the first word.
        pair: u64,
    },
}

/// The slot of an interpreter; `None` before 3.12, and where the code is not understood.
pub fn find_slot(elf: &Elf<'_>) -> Option<ThreadSlot> {
    if elf.machine() != Machine::X86_64 {
        return None;
    }
    let entry = READERS.into_iter().find_map(|name| elf.symbol(name))?.address;
    let range = elf.code().into_iter().find(|range| range.contains(entry))?;
    let decoder = Decoder::try_with_ip(64, range.bytes_from(entry)?, entry, DecoderOptions::NONE).ok()?;
    slot_read_by(decoder)
}

fn slot_read_by(decoder: Decoder<'_>) -> Option<ThreadSlot> {
    let mut pair = None;
    for instruction in decoder.into_iter().take(MOST_STEPS) {
        if let Some(offset) = thread_local_read(&instruction) {
            return Some(ThreadSlot::Fixed(offset));
        }
        if instruction.mnemonic() == Mnemonic::Lea
            && instruction.op0_register() == Register::RDI
            && instruction.is_ip_rel_memory_operand()
        {
            pair = Some(instruction.ip_rel_memory_address());
        }
        match instruction.flow_control() {
            FlowControl::Next => {}
            // `__tls_get_addr`, direct or through the table.
            FlowControl::Call | FlowControl::IndirectCall => {
                return pair.map(|pair| ThreadSlot::Module { pair });
            }
            _ => return None,
        }
    }
    None
}

/// `mov %fs:offset, %register`
fn thread_local_read(instruction: &Instruction) -> Option<i64> {
    let reads = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op1_kind() == OpKind::Memory
        && instruction.segment_prefix() == Register::FS
        && instruction.op0_register().size() == 8
        && instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None;
    reads.then(|| instruction.memory_displacement64().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(code: &[u8]) -> Option<ThreadSlot> {
        slot_read_by(Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE))
    }

    /// Debian's 3.13.5: `endbr64; mov %fs:-24, %rax; ret`.
    #[test]
    fn in_a_program() {
        let code = b"\xf3\x0f\x1e\xfa\x64\x48\x8b\x04\x25\xe8\xff\xff\xff\xc3";
        assert_eq!(slot(code), Some(ThreadSlot::Fixed(-24)));
    }

    /// pyenv's 3.13.0: `sub $8, %rsp; data16 lea 0x100(%rip), %rdi; data16 data16 rex.W call; mov (%rax), %rax`.
    #[test]
    fn in_a_library() {
        let code =
            b"\x48\x83\xec\x08\x66\x48\x8d\x3d\x00\x01\x00\x00\x66\x66\x48\xe8\x00\x00\x00\x00\x48\x8b\x00";
        assert_eq!(slot(code), Some(ThreadSlot::Module { pair: 0x110c }));
    }

    /// 3.11: `mov 0x100(%rip), %rax; ret`, and code that ends.
    #[test]
    fn nothing_else() {
        assert_eq!(slot(b"\x48\x8b\x05\x00\x01\x00\x00\xc3"), None);
        assert_eq!(slot(b"\xe8\x00\x00\x00\x00"), None);
        assert_eq!(slot(b""), None);
    }
}
