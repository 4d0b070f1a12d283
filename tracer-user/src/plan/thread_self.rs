//! How far what `pthread_self` returns lies from the thread pointer, by what the C library's own code does.
//!
//! Why: a thread state of Python holds `pthread_self`, the kernel knows the thread pointer. On x86-64 they are equal in glibc and musl. On
//! arm64 the library subtracts the size of its `struct pthread`, which differs between versions.
//! It must not know Python or processes.

use super::aarch64::{self, Decoded};
use super::elf::{Elf, ElfError, Machine};
use super::finder::machine::Machine as Symbolic;
use super::finder::value::Value;
use super::finder::{Code as _, Flow, Instruction as _};

/// `bti c; mrs; sub; ret` is all there is in glibc 2.36 to 2.43 and musl 1.2.
const MOST_STEPS: usize = 8;
/// `mrs x0, tpidr_el0`; the register is in the low five bits.
const READS_THREAD_POINTER: u32 = 0xd53b_d040;

/// Why the distance is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThreadSelfError {
    /// The file cannot be read as ELF.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// There is no such function.
    #[error("the file exports no `pthread_self`; is it a C library?")]
    NoSymbol,
    /// Its code is not what libraries have.
    #[error(
        "`pthread_self` at address {address:#x} does more than subtract from the thread pointer; please report this C library"
    )]
    UnknownCode {
        /// The function.
        address: u64,
    },
    /// No such code is known.
    #[error("unsupported architecture: {machine:?}")]
    UnsupportedArchitecture {
        /// What the file is for.
        machine: Machine,
    },
}

/// What the C library subtracts from the thread pointer, in bytes.
pub fn thread_self_distance(c_library: &[u8]) -> Result<u32, ThreadSelfError> {
    let elf = Elf::parse(c_library)?;
    match elf.machine() {
        // `mov %fs:0x10, %rax`, and that word holds the thread pointer itself (glibc: tcbhead_t.self; musl: struct pthread.self at 0).
        Machine::X86_64 => Ok(0),
        Machine::Aarch64 => {
            let address = elf.symbol("pthread_self").ok_or(ThreadSelfError::NoSymbol)?.address;
            subtracted(&elf, address).ok_or(ThreadSelfError::UnknownCode { address })
        }
        machine @ Machine::Other(_) => Err(ThreadSelfError::UnsupportedArchitecture { machine }),
    }
}

/// Follows the function to its return: what it returns must be the thread pointer less a constant.
fn subtracted(elf: &Elf<'_>, function: u64) -> Option<u32> {
    let range = elf.code().into_iter().find(|range| range.contains(function))?;
    let mut code = aarch64::Code::new(range)?;
    let mut machine = Symbolic::default();
    let mut thread_pointer: Option<Value> = None;
    let mut address = function;
    for _ in 0..MOST_STEPS {
        let instruction: Decoded = code.at(address)?;
        if instruction.flow() != Flow::Next {
            let (pointer, returned) = (thread_pointer?, machine.register(0));
            let is_return = instruction.word == 0xd65f_03c0 && returned.origin == pointer.origin;
            let distance = pointer.offset.checked_sub(returned.offset)?;
            return u32::try_from(distance).ok().filter(|_| is_return);
        }
        code.execute(&instruction, &mut machine);
        if instruction.word & !0x1f == READS_THREAD_POINTER {
            thread_pointer = Some(machine.register((instruction.word & 0x1f) as u8));
        }
        address = instruction.next_address();
    }
    None
}
