//! The text of the table: from names and numbers to Rust.
//!
//! What a version has and not has decides which of two forms a field takes; what the headers do not show (pymalloc to 3.11 is private to Objects/obmalloc.c)
//! stands here, and the census tests prove it.

use super::Offsets;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const HEAD: &str = "\
//! The rows of the layout table: numbers only. Written by `cargo xtask gen-offsets`; do not edit.

use super::{
    ArenaSource, BytesLayout, CodeLayout, FrameLayout, FrameSource, InstructionKind, InstructionStore,
    InterpreterLayout, PoolLayout, PublishedPlaces, RuntimeLayout, StateBits, StringLayout, ThreadStateLayout,
};
";

/// The whole file, from rows of (minor, micro) and what the compiler printed.
pub fn text(table: &[((u8, u8), Offsets)]) -> Result<String> {
    let mut text = HEAD.to_owned();
    let names: Vec<String> = table.iter().map(|((minor, _), _)| format!("LAYOUT_3_{minor}")).collect();
    let _ = write!(
        text,
        "\n/// Every supported version, oldest first.\npub(super) const ROWS: &[InterpreterLayout] = &[{}];\n",
        names.join(", ")
    );
    for (((minor, micro), offsets), name) in table.iter().zip(names) {
        let row = row(*minor, offsets).with_context(|| format!("3.{minor}.{micro}"))?;
        let _ = write!(
            text,
            "\n/// From the headers of 3.{minor}.{micro}.\nconst {name}: InterpreterLayout = {row};\n"
        );
    }
    Ok(text)
}

fn row(minor: u8, offsets: &Offsets) -> Result<String> {
    let mut numbers = Numbers { offsets, used: BTreeSet::new() };
    let fields = [
        ("runtime", runtime(&mut numbers)?),
        ("thread_state", thread_state(&mut numbers)?),
        ("frame", frame(minor, &mut numbers)?),
        ("code", code(&mut numbers)?),
        ("string", string(&mut numbers)?),
        ("bytes", numbers.literal("BytesLayout", "bytes", &["size", "data"])?),
        ("pools", pools(minor, &mut numbers)?),
        ("published", published(&mut numbers)?),
        // A row is that of a build with a lock; what other builds have follows from what they publish.
        ("free_threading", "None".to_owned()),
    ];
    let unused: Vec<&String> = offsets.keys().filter(|name| !numbers.used.contains(*name)).collect();
    ensure!(unused.is_empty(), "the table has no place for {unused:?}");
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value},\n")).collect();
    Ok(format!("InterpreterLayout {{ major: 3, minor: {minor},\n{fields}}}"))
}

/// Numbers by name, and which of them have found a place.
struct Numbers<'a> {
    offsets: &'a Offsets,
    used: BTreeSet<String>,
}

impl Numbers<'_> {
    fn maybe(&mut self, name: &str) -> Option<u64> {
        let number = self.offsets.get(name).copied()?;
        self.used.insert(name.to_owned());
        Some(number)
    }

    fn get(&mut self, name: &str) -> Result<u64> {
        self.maybe(name).with_context(|| format!("`{name}` is not printed"))
    }

    /// `Some(number)` or `None`, as Rust.
    fn option(&mut self, name: &str) -> String {
        self.maybe(name).map_or("None".to_owned(), |number| format!("Some({number})"))
    }

    /// `field: number, ...` of one group.
    fn fields(&mut self, group: &str, fields: &[&str]) -> Result<String> {
        let one = |field: &&str| Ok(format!("{field}: {},", self.get(&format!("{group}.{field}"))?));
        fields.iter().map(one).collect()
    }

    fn literal(&mut self, name: &str, group: &str, fields: &[&str]) -> Result<String> {
        Ok(format!("{name} {{ {} }}", self.fields(group, fields)?))
    }

    /// Number of the lowest bit of a mask.
    fn shift(&mut self, name: &str) -> Result<u32> {
        Ok(self.get(name)?.trailing_zeros())
    }
}

fn runtime(numbers: &mut Numbers<'_>) -> Result<String> {
    let pointer = numbers.get("runtime.thread_state_pointer")?;
    let holder = numbers.option("runtime.gil_last_holder");
    let fields = ["interpreters_head", "interpreters_main", "interpreter_next", "threads_head"];
    let fields = numbers.fields("runtime", &fields)?;
    Ok(format!(
        "RuntimeLayout {{ thread_state_pointer_offset: {pointer}, gil_last_holder: {holder}, {fields} }}"
    ))
}

fn thread_state(numbers: &mut Numbers<'_>) -> Result<String> {
    let frame = match numbers.maybe("thread_state.frame") {
        Some(offset) => format!("FrameSource::Direct({offset})"),
        None => {
            let (cframe, frame) = (numbers.get("thread_state.cframe")?, numbers.get("cframe.current_frame")?);
            format!("FrameSource::Cframe {{ cframe: {cframe}, current_frame: {frame} }}")
        }
    };
    let native = numbers.option("thread_state.native_thread_id");
    let fields = numbers.fields("thread_state", &["next", "interpreter", "thread_id"])?;
    Ok(format!("ThreadStateLayout {{ frame: {frame}, {fields} native_thread_id: {native} }}"))
}

fn frame(minor: u8, numbers: &mut Numbers<'_>) -> Result<String> {
    let kind = match minor {
        ..=9 => "LastByteOffset",
        10 => "LastUnit",
        _ => "Pointer",
    };
    let (owner, skipped) = (numbers.option("frame.owner"), numbers.option("frame.skipped_owner"));
    let fields = numbers.fields("frame", &["code", "previous", "globals", "instruction"])?;
    Ok(format!(
        "FrameLayout {{ {fields} instruction_kind: InstructionKind::{kind}, owner: {owner}, skipped_owner: {skipped} }}"
    ))
}

fn code(numbers: &mut Numbers<'_>) -> Result<String> {
    let instructions = match numbers.maybe("code.bytes") {
        Some(offset) => format!("InstructionStore::Bytes({offset})"),
        None => numbers.literal("InstructionStore::Inline", "code", &["start", "units"])?,
    };
    let name = numbers.option("code.qualified_name");
    let traceable = numbers.option("code.first_traceable");
    let fields = numbers.fields("code", &["name", "file", "line_table", "first_line"])?;
    Ok(format!(
        "CodeLayout {{ {fields} qualified_name: {name}, first_traceable: {traceable}, instructions: {instructions} }}"
    ))
}

fn string(numbers: &mut Numbers<'_>) -> Result<String> {
    let [kind, compact, ascii] =
        ["state.kind", "state.compact", "state.ascii"].map(|name| numbers.shift(name));
    let bits = format!("StateBits {{ kind_shift: {}, compact: {}, ascii: {} }}", kind?, compact?, ascii?);
    let fields = numbers.fields("string", &["length", "state", "ascii_data", "compact_data"])?;
    Ok(format!("StringLayout {{ {fields} state_bits: {bits} }}"))
}

/// `ARENA_BITS` and `POOL_BITS` changed with the radix tree in 3.10 (Objects/obmalloc.c).
fn pools(minor: u8, numbers: &mut Numbers<'_>) -> Result<String> {
    if minor <= 11 {
        let (arena, pool) = if minor <= 9 { ("256 << 10", "4 << 10") } else { ("1 << 20", "16 << 10") };
        return Ok(format!(
            "PoolLayout {{ arena_size: {arena}, pool_size: {pool}, arenas: ArenaSource::Static }}"
        ));
    }
    let source = if minor == 12 { "ArenaSource::Interpreter" } else { "ArenaSource::Pointer" };
    let source = numbers.literal(source, "pools", &["obmalloc", "arenas"])?;
    let fields = numbers.fields("pools", &["arena_size", "pool_size"])?;
    Ok(format!("PoolLayout {{ {fields} arenas: {source} }}"))
}

fn published(numbers: &mut Numbers<'_>) -> Result<String> {
    let names: Vec<String> = numbers
        .offsets
        .keys()
        .filter_map(|name| name.strip_prefix("published."))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Ok("None".to_owned());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok(format!("Some({})", numbers.literal("PublishedPlaces", "published", &names)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_place_is_an_error() {
        let mut offsets = Offsets::new();
        assert!(format!("{:#}", text(&[((8, 1), offsets.clone())]).unwrap_err()).contains("is not printed"));
        for name in [
            "runtime.thread_state_pointer",
            "runtime.interpreters_head",
            "runtime.interpreters_main",
            "runtime.interpreter_next",
            "runtime.threads_head",
            "thread_state.frame",
            "thread_state.next",
            "thread_state.interpreter",
            "thread_state.thread_id",
            "frame.code",
            "frame.previous",
            "frame.globals",
            "frame.instruction",
            "code.bytes",
            "code.name",
            "code.file",
            "code.line_table",
            "code.first_line",
            "state.kind",
            "state.compact",
            "state.ascii",
            "string.length",
            "string.state",
            "string.ascii_data",
            "string.compact_data",
            "bytes.size",
            "bytes.data",
        ] {
            offsets.insert(name.to_owned(), 8);
        }
        let row = text(&[((8, 1), offsets.clone())]).unwrap();
        assert!(row.contains("/// From the headers of 3.8.1.\nconst LAYOUT_3_8: "), "{row}");
        offsets.insert("frame.novelty".to_owned(), 8);
        let error = format!("{:#}", text(&[((8, 1), offsets)]).unwrap_err());
        assert_eq!(error, "3.8.1: the table has no place for [\"frame.novelty\"]");
    }
}
