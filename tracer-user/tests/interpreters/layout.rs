//! The layout table against `offsetof` over the interpreters' own headers.

use std::{collections::BTreeMap, path::Path, process::Command};

use alloctrace::discover::layout::{
    ArenaSource, FrameSource, InstructionStore, InterpreterLayout, PublishedPlaces, StringLayout,
};
use anyhow::{Context as _, Result, ensure};

use crate::support::Interpreter;

type Offsets = BTreeMap<String, u32>;

pub fn check(interpreter: &Interpreter) -> Result<()> {
    let compiled = compiled(interpreter)?;
    let expected = expected(&interpreter.layout);
    ensure!(compiled == expected, "compiled {compiled:#?}\ntable {expected:#?}");
    Ok(())
}

fn compiled(interpreter: &Interpreter) -> Result<Offsets> {
    let headers = interpreter.headers.as_deref().context("no headers")?;
    let folder = tempfile::tempdir()?;
    let binary = folder.path().join("layout");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interpreters/layout.c");
    let status = Command::new("gcc")
        .arg("-w")
        .args(headers.iter().map(|folder| format!("-I{}", folder.display())))
        .arg(source)
        .arg("-o")
        .arg(&binary)
        .status()
        .context("gcc could not be started")?;
    ensure!(status.success(), "gcc failed");
    let output = String::from_utf8(Command::new(binary).output()?.stdout)?;
    let parse =
        |line: &str| Some((line.split_once(' ')?.0.to_owned(), line.split_once(' ')?.1.parse().ok()?));
    output.lines().map(|line| parse(line).with_context(|| line.to_owned())).collect()
}

fn expected(layout: &InterpreterLayout) -> Offsets {
    let InterpreterLayout { runtime, thread_state, frame, code, string, bytes, .. } = *layout;
    let fixed = [
        ("thread_state.next", thread_state.next),
        ("thread_state.interpreter", thread_state.interpreter),
        ("thread_state.thread_id", thread_state.thread_id),
        ("frame.code", frame.code),
        ("frame.previous", frame.previous),
        ("frame.globals", frame.globals),
        ("frame.instruction", frame.instruction),
        ("code.name", code.name),
        ("code.file", code.file),
        ("code.first_line", code.first_line),
        ("code.line_table", code.line_table),
        ("bytes.size", bytes.size),
        ("bytes.data", bytes.data),
        ("runtime.interpreters_head", runtime.interpreters_head),
        ("runtime.interpreters_main", runtime.interpreters_main),
        ("runtime.interpreter_next", runtime.interpreter_next),
        ("runtime.threads_head", runtime.threads_head),
        ("runtime.thread_state_pointer", runtime.thread_state_pointer_offset),
    ];
    let optional = [
        ("thread_state.native_thread_id", thread_state.native_thread_id),
        ("frame.owner", frame.owner),
        ("frame.skipped_owner", frame.skipped_owner.map(u32::from)),
        ("code.qualified_name", code.qualified_name),
        ("code.first_traceable", code.first_traceable),
        ("runtime.gil_last_holder", runtime.gil_last_holder),
    ];
    let optional = optional.into_iter().filter_map(|(name, offset)| Some((name, offset?)));
    let all = fixed.into_iter().chain(optional).chain(string_offsets(string)).chain(variants(layout));
    let all = all.chain(layout.published.map(published_places).into_iter().flatten());
    all.map(|(name, offset)| (name.to_owned(), offset)).collect()
}

fn string_offsets(string: StringLayout) -> [(&'static str, u32); 7] {
    let StringLayout { length, state, state_bits, ascii_data, compact_data } = string;
    [
        ("string.length", length),
        ("string.state", state),
        ("string.ascii_data", ascii_data),
        ("string.compact_data", compact_data),
        ("state.kind", 0b111 << state_bits.kind_shift),
        ("state.compact", 1 << state_bits.compact),
        ("state.ascii", 1 << state_bits.ascii),
    ]
}

fn published_places(places: PublishedPlaces) -> [(&'static str, u32); 31] {
    [
        ("published.runtime_size", places.runtime_size),
        ("published.runtime_interpreters_head", places.runtime_interpreters_head),
        ("published.interpreter_size", places.interpreter_size),
        ("published.interpreter_next", places.interpreter_next),
        ("published.interpreter_threads_head", places.interpreter_threads_head),
        ("published.interpreter_gil_last_holder", places.interpreter_gil_last_holder),
        ("published.thread_state_size", places.thread_state_size),
        ("published.thread_state_next", places.thread_state_next),
        ("published.thread_state_interpreter", places.thread_state_interpreter),
        ("published.thread_state_frame", places.thread_state_frame),
        ("published.thread_state_thread_id", places.thread_state_thread_id),
        ("published.thread_state_native_thread_id", places.thread_state_native_thread_id),
        ("published.frame_size", places.frame_size),
        ("published.frame_previous", places.frame_previous),
        ("published.frame_code", places.frame_code),
        ("published.frame_instruction", places.frame_instruction),
        ("published.frame_owner", places.frame_owner),
        ("published.code_size", places.code_size),
        ("published.code_file", places.code_file),
        ("published.code_name", places.code_name),
        ("published.code_qualified_name", places.code_qualified_name),
        ("published.code_line_table", places.code_line_table),
        ("published.code_first_line", places.code_first_line),
        ("published.code_start", places.code_start),
        ("published.bytes_object_size", places.bytes_object_size),
        ("published.bytes_size", places.bytes_size),
        ("published.bytes_data", places.bytes_data),
        ("published.string_state", places.string_state),
        ("published.string_length", places.string_length),
        ("published.string_ascii_data", places.string_ascii_data),
        ("published.size", places.size),
    ]
}

fn variants(layout: &InterpreterLayout) -> Vec<(&'static str, u32)> {
    let mut offsets = match layout.thread_state.frame {
        FrameSource::Direct(offset) => vec![("thread_state.frame", offset)],
        FrameSource::Cframe { cframe, current_frame } => {
            vec![("thread_state.cframe", cframe), ("cframe.current_frame", current_frame)]
        }
    };
    match layout.code.instructions {
        InstructionStore::Bytes(offset) => offsets.push(("code.bytes", offset)),
        InstructionStore::Inline { start, units } => {
            offsets.extend([("code.start", start), ("code.units", units)]);
        }
    }
    // To 3.11 the arenas and their sizes are private to Objects/obmalloc.c: the census tests prove those.
    match layout.pools.arenas {
        ArenaSource::Static => return offsets,
        ArenaSource::Interpreter { obmalloc, arenas } | ArenaSource::Pointer { obmalloc, arenas } => {
            offsets.extend([("pools.obmalloc", obmalloc), ("pools.arenas", arenas)]);
        }
    }
    offsets
        .extend([("pools.arena_size", layout.pools.arena_size), ("pools.pool_size", layout.pools.pool_size)]);
    offsets
}
