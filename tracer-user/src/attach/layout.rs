//! From an interpreter's layout to the one that the kernel half reads: offsets become words of one wide read.

use tracer_ebpf::abi::Layout;
use tracer_ebpf::memory::WIDE_BYTES;

use crate::discover::Target;
use crate::discover::layout::{FrameSource, InstructionKind, InstructionStore, InterpreterLayout};

/// The layout of a process. `thread_state_pointer` is the address of the pointer to the running thread's state, `thread_slot` the distance
/// from `pthread_self` to each thread's own, 0 where that is not known.
#[must_use]
pub fn kernel_layout(target: &Target, thread_state_pointer: u64, thread_slot: i64) -> Layout {
    let row = &target.interpreter.layout;
    let (thread_frame, has_cframe, cframe_frame) = match row.thread_state.frame {
        FrameSource::Direct(offset) => (offset, 0, 0),
        FrameSource::Cframe { cframe, current_frame } => (cframe, 1, current_frame),
    };
    let mut layout = Layout {
        active: 1,
        pid: target.pid,
        thread_state_pointer,
        thread_slot,
        thread_frame,
        has_cframe,
        cframe_frame,
        thread_ident: row.thread_state.thread_id,
        thread_self_distance: target.thread_self_distance,
        main_interpreter: target.interpreter.runtime.wrapping_add(row.runtime.interpreters_main.into()),
        threads_head: row.runtime.threads_head,
        thread_list_next: row.thread_state.next,
        ..Layout::default()
    };
    set_frame(&mut layout, row);
    set_code(&mut layout, row);
    set_free_threading(&mut layout, row);
    layout
}

fn set_free_threading(layout: &mut Layout, row: &InterpreterLayout) {
    let Some(free_threading) = row.free_threading else { return };
    layout.thread_next = row.thread_state.next;
    if let (Some(copies), InstructionStore::Inline { start, .. }) =
        (free_threading.copies, row.code.instructions)
    {
        layout.code_copies = copies.array;
        layout.code_start = start;
        layout.copy_mask = u32::MAX;
        layout.copy_word = (copies.index.cast_signed() - layout.frame_start).cast_unsigned() / 8;
    }
}

fn set_frame(layout: &mut Layout, row: &InterpreterLayout) {
    let frame = &row.frame;
    let owner = frame.owner.map(|owner| owner & !7);
    let fields = [Some(frame.code), Some(frame.previous), Some(frame.instruction), owner];
    let end = (fields.iter().flatten().copied().max().unwrap_or(0) & !7) + 8;
    let start = end.cast_signed() - WIDE_BYTES.cast_signed();
    let word = |offset: u32| (offset.cast_signed() - start).cast_unsigned() / 8;
    layout.frame_start = start;
    layout.code_word = word(frame.code);
    layout.previous_word = word(frame.previous);
    layout.instruction_word = word(frame.instruction);
    layout.instruction_base = if frame.instruction_kind == InstructionKind::Pointer { u64::MAX } else { 0 };
    layout.owner_word = owner.map_or(0, word);
    layout.owner_shift = frame.owner.map_or(0, |owner| owner % 8 * 8);
    layout.owner_skip_from = frame.skipped_owner.map_or(256, u32::from);
}

fn set_code(layout: &mut Layout, row: &InterpreterLayout) {
    layout.code_first_line = row.code.first_line;
    layout.code_first_traceable = row.code.first_traceable.unwrap_or(0);
    layout.code_name = row.code.name;
    layout.code_qualified_name = row.code.qualified_name.unwrap_or(0);
    layout.code_file = row.code.file;
    layout.code_line_table = row.code.line_table;
    layout.ascii_text = row.string.ascii_data;
    layout.compact_text = row.string.compact_data;
    layout.text_length = row.string.length;
    layout.text_state = row.string.state;
    layout.text_kind_shift = u32::from(row.string.state_bits.kind_shift);
    layout.text_ascii_shift = u32::from(row.string.state_bits.ascii);
    layout.bytes_size = row.bytes.size;
    layout.bytes_data = row.bytes.data;
    layout.pool_mask = row.pools.pool_size - 1;
    // `co_filename`, `co_name`, then `co_qualname` where there is one, and the line table: neighbours in every version.
    let line_table_is_last = row.code.line_table == row.code.file + 24;
    layout.code_last_constant = if line_table_is_last { u64::MAX } else { 0 };
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::discover::layout::layout;
    use crate::discover::target::Version;
    use crate::discover::{Interpreter, MappedFile};

    #[test]
    fn threads_prove_themselves_by_the_distance_that_the_c_library_subtracts() {
        let file = MappedFile { path: PathBuf::new(), name: String::new(), bias: 0 };
        let version = Version { major: 3, minor: 11, micro: None };
        let interpreter = Interpreter { file, version, layout: *layout(3, 11).unwrap(), runtime: 0 };
        // struct pthread of glibc 2.43 on arm64.
        let target = Target {
            pid: 7,
            command: String::new(),
            interpreter,
            c_library: None,
            thread_self_distance: 1824,
        };
        let layout = kernel_layout(&target, 0x1000, -8);
        assert_eq!((layout.pid, layout.thread_self_distance), (7, 1824));
        assert_eq!((layout.thread_state_pointer, layout.thread_slot), (0x1000, -8));
    }
}
