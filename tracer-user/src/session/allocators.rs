//! Which allocator a process uses while it is recorded: looked at when it is armed, at each tick, and at the end.
//!
//! Why: probes on pymalloc see nothing of a process that does not use it, and a program may change its allocator at any time. It is
//! said, never guessed. A look costs six reads of eight bytes; only a change is interpreted.

use std::path::Path;

use crate::census::allocators::{Bottom, TableAddresses, TableWords, interpret, mapping_of, read_words};
use crate::discover::memory::{Mapping, ProcessMemory, ReadMemory as _, mappings};
use crate::discover::target::path_of;
use crate::discover::{Target, started_with};
use crate::plan::elf::Elf;
use crate::plan::{AllocatorTables, FileOffset, TablePlace};

const PROC: &str = "/proc";

/// Values of `PYTHONMALLOC` (`_PyMem_GetAllocatorName`, Objects/obmalloc.c).
const MIMALLOC_SETTINGS: [&str; 2] = ["mimalloc", "mimalloc_debug"];

/// Changes that are told; a program that switches to and fro has made its point by then.
const MOST_STATES: usize = 8;

/// Watches the tables of allocators of one process.
#[derive(Debug)]
pub struct AllocatorWatch {
    tables: AllocatorTables,
    memory: Option<ProcessMemory>,
    last: Option<TableWords>,
    states: Vec<String>,
}

impl AllocatorWatch {
    /// Nothing has been looked at yet.
    pub fn new(target: &Target, tables: AllocatorTables) -> Self {
        let memory = ProcessMemory::open(Path::new(PROC), target.pid).ok();
        Self { tables, memory, last: None, states: Vec::new() }
    }

    /// Looks; gives back a line for the user where there is something to say: another allocator than pymalloc, or a change.
    pub fn look(&mut self, target: &Target) -> Option<String> {
        let memory = self.memory.as_ref()?;
        let words = read_words(memory, addresses(memory, target, self.tables)?)?;
        if self.last == Some(words) || self.states.len() >= MOST_STATES {
            return None;
        }
        self.last = Some(words);
        let mapped = mappings(Path::new(PROC), target.pid).ok()?;
        let installed = interpret(memory, &mapped, &target.interpreter.file.name, words);
        let now = installed.describe(|function| name_of(target.pid, &mapped, function));
        let before = self.states.last().cloned();
        if before.as_ref() == Some(&now) {
            return None;
        }
        self.states.push(now.clone());
        let pid = target.pid;
        match before {
            None if now == "pymalloc" => None,
            None => Some(format!("process {pid} uses {now}")),
            Some(before) => Some(format!("process {pid} changed its allocator from {before} to {now}")),
        }
    }

    /// Everything that was seen, in order: `pymalloc, then tracemalloc over pymalloc`. Empty where nothing could be read.
    pub fn text(&self) -> String {
        self.states.join(", then ")
    }
}

/// What is below the hooks; `None` until the interpreter has chosen its allocators.
pub fn bottom(target: &Target, tables: AllocatorTables) -> Option<Bottom> {
    let memory = ProcessMemory::open(Path::new(PROC), target.pid).ok()?;
    let words = read_words(&memory, addresses(&memory, target, tables)?)?;
    let mapped = mappings(Path::new(PROC), target.pid).ok()?;
    Some(interpret(&memory, &mapped, &target.interpreter.file.name, words).bottom)
}

/// Whether a process that is about to be armed has its objects from mimalloc although it has a lock: by its tables, or, as long as it has not
/// chosen, by what `PYTHONMALLOC` will make it choose.
pub fn uses_mimalloc(target: &Target, tables: AllocatorTables) -> bool {
    let Ok(memory) = ProcessMemory::open(Path::new(PROC), target.pid) else { return false };
    let words = addresses(&memory, target, tables).and_then(|tables| read_words(&memory, tables));
    match (words, mappings(Path::new(PROC), target.pid)) {
        (Some(words), Ok(mapped)) => {
            let installed = interpret(&memory, &mapped, &target.interpreter.file.name, words);
            installed.bottom == Bottom::Mimalloc
        }
        _ => {
            let setting = started_with(Path::new(PROC), target.pid, "PYTHONMALLOC");
            setting.is_some_and(|setting| MIMALLOC_SETTINGS.contains(&&*setting))
        }
    }
}

/// Where the tables are, once the interpreter has chosen its allocators: it does so before it makes its first interpreter state.
fn addresses(memory: &ProcessMemory, target: &Target, tables: AllocatorTables) -> Option<TableAddresses> {
    let runtime = target.interpreter.runtime;
    let head = runtime.wrapping_add(target.interpreter.layout.runtime.interpreters_head.into());
    if memory.read_u64(head).ok()? == 0 {
        return None;
    }
    let bias = target.interpreter.file.bias;
    let address = |place| match place {
        TablePlace::Fixed(address) => Some(bias.wrapping_add(address)),
        TablePlace::Behind { pointer, offset } => {
            Some(memory.read_u64(bias.wrapping_add(pointer)).ok()?.wrapping_add_signed(offset))
        }
    };
    Some(TableAddresses {
        raw: address(tables.raw?)?,
        memory: address(tables.memory?)?,
        object: address(tables.object?)?,
    })
}

/// A name for a function in somebody else's file: the symbol that it is in, or the file and the place in it.
fn name_of(pid: u32, mapped: &[Mapping], function: u64) -> String {
    let Some(mapping) = mapping_of(mapped, function).filter(|mapping| !mapping.name.is_empty()) else {
        return format!("at {function:#x}, in no file");
    };
    let file = mapping.name.rsplit('/').next().unwrap_or_default();
    let offset = function - mapping.start + mapping.offset;
    let path = path_of(&Path::new(PROC).join(pid.to_string()), mapping);
    let symbol = std::fs::read(path).ok().and_then(|bytes| {
        let elf = Elf::parse(&bytes).ok()?;
        elf.function_at(elf.address_of(FileOffset(offset))?)
    });
    symbol.map_or_else(|| format!("{file}+{offset:#x}"), |symbol| format!("`{symbol}` of {file}"))
}
