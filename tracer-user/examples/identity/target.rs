//! The process that is looked at: its blocks and its types, read from outside as the tracer would.

use std::io;
use std::path::Path;

use alloctrace::discover::layout::InterpreterLayout;
use alloctrace::discover::memory::{ProcessMemory, ReadMemory as _};
use alloctrace::identity::{self, COMPARED_BYTES, Depth, Identity, PythonType, TYPE_BYTES};
use rustc_hash::FxHashMap;

/// Blocks above this are malloc's; below, pymalloc rounds up to 16 bytes.
const PYMALLOC_BYTES: u64 = 512;
const NAME_BYTES: usize = 48;

/// One process.
pub struct Target {
    memory: ProcessMemory,
    layout: &'static InterpreterLayout,
    types: FxHashMap<u64, Option<PythonType>>,
}

impl Target {
    pub fn open(pid: u32, layout: &'static InterpreterLayout) -> io::Result<Self> {
        let memory = ProcessMemory::open(Path::new("/proc"), pid)?;
        Ok(Self { memory, layout, types: FxHashMap::default() })
    }

    /// What a block looks like now, at each depth. An error where its memory is gone.
    pub fn look(&mut self, address: u64, size: u64) -> io::Result<[Identity; 3]> {
        let length = if size > PYMALLOC_BYTES { COMPARED_BYTES } else { size.next_multiple_of(16) as usize };
        let mut block = vec![0; length];
        self.memory.read(address, &mut block)?;
        let (memory, types) = (&self.memory, &mut self.types);
        let mut find = |address| *types.entry(address).or_insert_with(|| type_at(memory, address));
        Ok([Depth::Type, Depth::Fixed, Depth::All]
            .map(|depth| Identity::of(&block, depth, self.layout, &mut find)))
    }

    /// The name of a type, or nothing.
    pub fn type_name(&self, address: u64) -> String {
        let name = parse(&self.memory, address).map(|found| found.name);
        let mut bytes = [0; NAME_BYTES];
        if name.is_none_or(|name| self.memory.read(name, &mut bytes).is_err()) {
            return String::new();
        }
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

fn parse(memory: &ProcessMemory, address: u64) -> Option<PythonType> {
    let mut bytes = [0; TYPE_BYTES];
    memory.read(address, &mut bytes).ok()?;
    PythonType::parse(&bytes)
}

fn type_at(memory: &ProcessMemory, address: u64) -> Option<PythonType> {
    identity::is_type(address, &mut |address| parse(memory, address))
        .then(|| parse(memory, address))
        .flatten()
}
