//! Tables made from a row, and what hostile ones do.

use proptest::prelude::*;

use super::*;
use crate::discover::layout::{CodeCopies, FreeThreading, StateBits, layout, rows};

fn row(minor: u8) -> InterpreterLayout {
    layout(3, minor).copied().unwrap()
}

fn set(table: &mut [u8], place: Offset, value: u64) {
    table[place as usize..place as usize + 8].copy_from_slice(&value.to_le_bytes());
}

/// What an interpreter of this row would publish, in structures of ample size.
fn table_of(row: &InterpreterLayout) -> Vec<u8> {
    let places = row.published.unwrap();
    let (FrameSource::Direct(frame), InstructionStore::Inline { start, .. }) =
        (row.thread_state.frame, row.code.instructions)
    else {
        panic!("3.{} publishes neither", row.minor)
    };
    let holder = row.runtime.gil_last_holder.unwrap();
    let interpreter = 200_000;
    let main = u64::from(row.runtime.thread_state_pointer_offset - holder);
    let mut table = vec![0; places.size as usize];
    table[..8].copy_from_slice(COOKIE);
    set(&mut table, VERSION, 0x0300_00f0 | u64::from(row.minor) << 16);
    for (place, value) in [
        (places.runtime_size, main + interpreter),
        (places.interpreter_size, interpreter),
        (places.thread_state_size, 400),
        (places.frame_size, 88),
        (places.code_size, 216),
        (places.bytes_object_size, 40),
    ] {
        set(&mut table, place, value);
    }
    for (place, value) in [
        (places.runtime_interpreters_head, row.runtime.interpreters_head),
        (places.interpreter_next, row.runtime.interpreter_next),
        (places.interpreter_threads_head, row.runtime.threads_head),
        (places.interpreter_gil_last_holder, holder),
        (places.thread_state_next, row.thread_state.next),
        (places.thread_state_interpreter, row.thread_state.interpreter),
        (places.thread_state_frame, frame),
        (places.thread_state_thread_id, row.thread_state.thread_id),
        (places.thread_state_native_thread_id, row.thread_state.native_thread_id.unwrap()),
        (places.frame_previous, row.frame.previous),
        (places.frame_code, row.frame.code),
        (places.frame_instruction, row.frame.instruction),
        (places.frame_owner, row.frame.owner.unwrap()),
        (places.code_file, row.code.file),
        (places.code_name, row.code.name),
        (places.code_qualified_name, row.code.qualified_name.unwrap()),
        (places.code_line_table, row.code.line_table),
        (places.code_first_line, row.code.first_line),
        (places.code_start, start),
        (places.bytes_size, row.bytes.size),
        (places.bytes_data, row.bytes.data),
        (places.string_state, row.string.state),
        (places.string_length, row.string.length),
        (places.string_ascii_data, row.string.ascii_data),
    ] {
        set(&mut table, place, value.into());
    }
    table
}

fn publishing() -> impl Iterator<Item = InterpreterLayout> {
    rows().iter().filter(|row| row.published.is_some()).copied()
}

#[test]
fn from_3_13_on_every_version_publishes() {
    let minors: Vec<u8> = publishing().map(|row| row.minor).collect();
    assert_eq!(minors, [13, 14, 15]);
    assert_eq!(row(12).with_published(b"anything"), Ok(row(12)));
}

#[test]
fn a_table_that_says_the_same_changes_nothing() {
    for row in publishing() {
        assert_eq!(row.with_published(&table_of(&row)), Ok(row), "3.{}", row.minor);
    }
}

/// 3.13.5 has 48 bytes more before its main interpreter than 3.13.0, whose row it has.
#[test]
fn another_patch_release_is_followed() {
    let row = row(13);
    let places = row.published.unwrap();
    let mut table = table_of(&row);
    set(&mut table, places.runtime_size, u64::from(row.runtime.thread_state_pointer_offset - 7760) + 200_048);
    set(&mut table, places.code_start, 208);
    set(&mut table, places.thread_state_frame, 80);
    let found = row.with_published(&table).unwrap();
    assert_eq!(found.runtime.thread_state_pointer_offset, row.runtime.thread_state_pointer_offset + 48);
    assert_eq!(found.thread_state.frame, FrameSource::Direct(80));
    assert_eq!(found.code.instructions, InstructionStore::Inline { start: 208, units: 16 });
    assert_eq!(found.code.first_traceable, row.code.first_traceable.map(|offset| offset + 8));
}

/// What the headers of 3.13.5 say where `Py_GIL_DISABLED` is defined.
#[test]
fn a_free_threaded_build_is_followed() {
    let row = row(13);
    let places = row.published.unwrap();
    let mut table = table_of(&row);
    set(&mut table, FREE_THREADED, 1);
    set(&mut table, places.bytes_size, 32);
    set(&mut table, places.thread_state_next, 8);
    set(&mut table, places.code_start, 216);
    set(&mut table, places.code_size, 224);
    let found = row.with_published(&table).unwrap();
    assert_eq!(found.free_threading, Some(FreeThreading { copies: None }));
    assert_eq!(found.code.instructions, InstructionStore::Inline { start: 216, units: 32 });
    assert_eq!(found.code.first_traceable, Some(200));
    let main = row.runtime.thread_state_pointer_offset - row.runtime.gil_last_holder.unwrap();
    assert_eq!(found.runtime.thread_state_pointer_offset, main + row.runtime.threads_head);
    assert_eq!(found.runtime.gil_last_holder, Some(row.runtime.threads_head));
}

/// What the headers of 3.14.4 say, in part: threads run copies of their own, and where those are follows what is published of the frame's owner and the instructions.
#[test]
fn copies_of_instructions_are_found() {
    let row = row(14);
    let places = row.published.unwrap();
    let mut table = table_of(&row);
    set(&mut table, FREE_THREADED, 1);
    set(&mut table, places.bytes_size, 32);
    set(&mut table, places.thread_state_next, 8);
    set(&mut table, places.code_start, 232);
    set(&mut table, places.code_size, 240);
    set(&mut table, places.code_start + 8, 224);
    set(&mut table, places.frame_owner + 16, 72);
    let found = row.with_published(&table).unwrap();
    assert_eq!(
        found.free_threading,
        Some(FreeThreading { copies: Some(CodeCopies { array: 224, index: 72 }) })
    );
    assert_eq!(found.code.first_traceable, Some(208));
    assert_eq!(found.string.state_bits, StateBits { kind_shift: 8, compact: 11, ascii: 12 });
}

#[test]
fn a_free_threaded_build_that_was_never_tried_is_refused() {
    let row = row(15);
    let mut table = table_of(&row);
    set(&mut table, FREE_THREADED, 1);
    assert_eq!(row.with_published(&table), Err(PublishedError::FreeThreaded));
}

#[track_caller]
fn refused(place: Offset, value: u64, text: &str) {
    let row = row(14);
    let mut table = table_of(&row);
    set(&mut table, place, value);
    let error = row.with_published(&table).unwrap_err();
    assert_eq!(error.to_string(), text);
}

#[test]
fn what_does_not_hold_together_is_refused_by_name() {
    let places = row(14).published.unwrap();
    refused(0, 0, "it begins with [00, 00, 00, 00, 00, 00, 00, 00], not with `xdebugpy`");
    refused(VERSION, 0x030f_00f0, "it is of version 0x30f00f0, the interpreter of 3.14");
    refused(
        places.frame_previous,
        88,
        "it puts `interpreter_frame.previous` at 88, which lies outside of its structure",
    );
    refused(places.code_name, 3, "it puts `code_object.name` at 3, which lies outside of its structure");
    refused(
        places.thread_state_frame,
        u64::MAX,
        "it puts `thread_state.current_frame` at 18446744073709551615, which lies outside of its structure",
    );
    refused(
        places.runtime_size,
        8,
        "it puts `runtime_state.interpreters_head` at 808, which lies outside of its structure",
    );
    let short = row(14).with_published(&table_of(&row(14))[..500]).unwrap_err();
    assert_eq!(short.to_string(), "it has only 500 bytes");
}

proptest! {
    /// The kernel half reads what this says, so every offset must lie in its structure, whatever the file holds.
    #[test]
    fn hostile_tables_give_an_error_or_offsets_within_bounds(
        which in 0..3_usize,
        words in proptest::collection::vec((3..140_usize, prop_oneof![any::<u64>(), 0..400_u64]), 0..20),
    ) {
        let row = publishing().nth(which).unwrap();
        let mut table = table_of(&row);
        for (word, value) in words {
            if word * 8 + 8 <= table.len() {
                set(&mut table, word as Offset * 8, value);
            }
        }
        if let Ok(found) = row.with_published(&table) {
            let frame = found.frame;
            prop_assert!(frame.code.max(frame.previous).max(frame.instruction).max(frame.owner.unwrap()) < 96);
            prop_assert!(u64::from(found.string.compact_data) < LARGEST * 2);
            prop_assert!(u64::from(found.runtime.thread_state_pointer_offset) < LARGEST * 2);
        }
    }
}
