//! From a plan's [`ThreadSlot`] to the place of a process's `_Py_tss_tstate`, counted from what `pthread_self` returns.
//!
//! Why: blocks of libraries that are loaded at the start lie at one distance from every thread's pointer (ELF TLS, static blocks), so
//! that one number is enough for the kernel half. It is read off one thread that is known, and refused unless it holds together.

use crate::discover::Target;
use crate::discover::memory::ReadMemory;
use crate::plan::ThreadSlot;

/// Static blocks lie right beside the thread pointer; farther away is a block of a library that was loaded later, which each thread has
/// elsewhere.
const FARTHEST: u64 = 64 << 10;
/// More modules with thread-local variables than any process has.
const MOST_MODULES: u64 = 4096;
/// Of the pointer to the table of blocks (`tcbhead_t.dtv`, glibc, x86-64), and bytes of an entry (`dtv_t`).
const TABLE: u64 = 8;
const ENTRY: u64 = 16;

/// The distance; `None` if it is not known yet, or cannot be.
pub fn distance(memory: &impl ReadMemory, target: &Target, slot: ThreadSlot) -> Option<i64> {
    match slot {
        ThreadSlot::Fixed(offset) => offset.checked_add(i64::from(target.thread_self_distance)),
        ThreadSlot::Module { pair } => in_module(memory, target, pair),
    }
}

fn in_module(memory: &impl ReadMemory, target: &Target, pair: u64) -> Option<i64> {
    let read = |address: u64| memory.read_u64(address).ok();
    let is_glibc = target.c_library.as_ref().is_some_and(|file| !file.name.contains("musl"));
    let pair = target.interpreter.file.bias.wrapping_add(pair);
    let (module, offset) = (read(pair)?, read(pair.wrapping_add(8))?);
    if !is_glibc || !(1..MOST_MODULES).contains(&module) {
        return None;
    }
    let own = known_thread(memory, target)?;
    let block = read(read(own.wrapping_add(TABLE))?.wrapping_add(ENTRY * module))?;
    let place = block.wrapping_add(offset);
    // It holds nothing just now, or a state of this very thread.
    let state = read(place)?;
    let ident = target.interpreter.layout.thread_state.thread_id;
    let is_its_own = state == 0 || read(state.wrapping_add(ident.into())) == Some(own);
    (is_its_own && place.abs_diff(own) <= FARTHEST).then(|| place.wrapping_sub(own).cast_signed())
}

/// What `pthread_self` returns in a thread of the main interpreter, which on x86-64 is the thread pointer.
fn known_thread(memory: &impl ReadMemory, target: &Target) -> Option<u64> {
    let layout = &target.interpreter.layout;
    let at = |base: u64, offset: u32| memory.read_u64(base.wrapping_add(offset.into())).ok();
    let interpreter = at(target.interpreter.runtime, layout.runtime.interpreters_main)?;
    let state = at(interpreter, layout.runtime.threads_head).filter(|state| *state != 0)?;
    at(state, layout.thread_state.thread_id).filter(|own| *own != 0)
}
