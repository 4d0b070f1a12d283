//! What is elsewhere on arm64: fields behind the locks of the GIL.
//!
//! Both architectures are LP64, and of all numbers in the table a cross compiler gives others for two only. It must not read memory.

use super::{ArenaSource, InterpreterLayout, Offset};

/// `mutex` and `switch_mutex` of `struct _gil_runtime_state` (Include/internal/pycore_gil.h) are `pthread_mutex_t`, which has 48 bytes in glibc on arm64 and 40
/// on x86-64 (sysdeps/aarch64/nptl/bits/pthreadtypes-arch.h). `pthread_cond_t` has 48 on both.
const GIL_LOCKS_ARE_LARGER_BY: Offset = 2 * (48 - 40);

impl InterpreterLayout {
    /// This row as it is on arm64 with glibc.
    #[must_use]
    pub fn on_arm64(mut self) -> Self {
        // From 3.12 on the GIL is in the interpreter state, and its first members are all that is needed of it.
        if self.runtime.gil_last_holder.is_none() {
            self.runtime.thread_state_pointer_offset += GIL_LOCKS_ARE_LARGER_BY;
        }
        match &mut self.pools.arenas {
            ArenaSource::Static => {}
            ArenaSource::Interpreter { obmalloc, .. } | ArenaSource::Pointer { obmalloc, .. } => {
                *obmalloc += GIL_LOCKS_ARE_LARGER_BY;
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    /// What `aarch64-linux-gnu-gcc` says over the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1, 3.13.0, 3.14.10 and 3.15.2.
    #[test]
    fn the_numbers_are_those_of_a_cross_compiler() {
        let number = |row: &InterpreterLayout| match row.on_arm64().pools.arenas {
            ArenaSource::Static => row.on_arm64().runtime.thread_state_pointer_offset,
            ArenaSource::Interpreter { obmalloc, .. } | ArenaSource::Pointer { obmalloc, .. } => obmalloc,
        };
        let numbers: Vec<Offset> = rows().iter().map(number).collect();
        assert_eq!(numbers, [1384, 584, 584, 592, 3976, 10816, 10920, 10896]);
    }
}
