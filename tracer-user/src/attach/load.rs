//! The object file into the kernel: its maps made, its programs relocated, verified and loaded.
//!
//! Without aya's loader, which parses the types of the whole kernel first: 45 ms and 20 MB for nothing. It must not know what
//! the programs do, nor points and processes.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use aya::maps::{Map, MapData};
use aya_obj::btf::BtfFeatures;
use rustc_hash::FxHashMap;

use super::kernel::{TableSizes, missing, object_error};
use super::{AttachError, syscall};

// enum bpf_map_type, include/uapi/linux/bpf.h.
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;

/// The object's maps with the sizes that were asked for.
pub fn create_maps(
    object: &mut aya_obj::Object,
    sizes: TableSizes,
) -> Result<FxHashMap<String, Map>, AttachError> {
    let mut maps = FxHashMap::default();
    for (name, map) in &object.maps {
        let mut map = map.clone();
        let entries = match name.as_str() {
            "LIVE" => sizes.live_buckets,
            "INDEX" => sizes.index_buckets,
            "CODES" => sizes.code_buckets,
            "ACCOUNTS" => sizes.accounts,
            "EVENTS" => sizes.ring_bytes,
            _ => map.max_entries(),
        };
        map.set_max_entries(entries);
        let kind = map.map_type();
        let data = MapData::create(map, name, None).map_err(refused_or_broken)?;
        let map = match kind {
            BPF_MAP_TYPE_HASH => Map::HashMap(data),
            BPF_MAP_TYPE_ARRAY => Map::Array(data),
            BPF_MAP_TYPE_RINGBUF => Map::RingBuf(data),
            BPF_MAP_TYPE_PROG_ARRAY => Map::ProgramArray(data),
            _ => return Err(missing("a table of an unknown kind")),
        };
        maps.insert(name.clone(), map);
    }
    Ok(maps)
}

/// An object whose programs are ready for the verifier.
#[derive(Debug)]
pub struct Relocated {
    object: aya_obj::Object,
    /// The kernel's handle for the types of its functions.
    types: OwnedFd,
}

/// Writes the maps' descriptors into the programs. All must be there: aya asserts it.
pub fn relocate<'map>(
    mut object: aya_obj::Object,
    descriptor: impl Fn(&str) -> Option<BorrowedFd<'map>>,
) -> Result<Relocated, AttachError> {
    let types = load_types(&mut object)?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps = std::mem::take(&mut object.maps);
    let mut descriptors = Vec::with_capacity(maps.len());
    for (name, map) in &maps {
        let descriptor = descriptor(name).ok_or_else(|| missing("a table"))?;
        descriptors.push((name.as_str(), descriptor.as_raw_fd(), map));
    }
    object.relocate_maps(descriptors.into_iter(), &text).map_err(object_error("maps"))?;
    object.relocate_calls(&text).map_err(object_error("calls"))?;
    Ok(Relocated { object, types })
}

/// The types of our functions: the kernel takes no program that hands a function to a helper without them
/// (kernel/bpf/verifier.c, `check_ld_imm`).
fn load_types(object: &mut aya_obj::Object) -> Result<OwnedFd, AttachError> {
    // Everything that a kernel with `uprobe_multi` (Linux 6.6) knows.
    let features = BtfFeatures::new(true, true, true, true, true, true, true, true);
    let types = object.fixup_and_sanitize_btf(&features).map_err(object_error("types"))?;
    let bytes = types.ok_or_else(|| missing("types"))?.to_bytes();
    syscall::load_types(&bytes).map_err(|source| AttachError::Refused {
        call: "BPF_BTF_LOAD",
        extra: "",
        source,
    })
}

/// Loads programs side by side, on all processors: what takes the time is the verifier. On two processors a busy target then waits
/// up to 4.5 ms for its turn, and is armed after 255 ms; with one loader it was 2 ms and 330 ms (medians of 5).
pub fn load_all(object: &Relocated, names: &[&'static str]) -> Vec<Result<OwnedFd, AttachError>> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let loaders = processors.min(names.len());
    let next = AtomicUsize::new(0);
    let load_some = || {
        let mut loaded = Vec::new();
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(name) = names.get(index)
        {
            loaded.push((index, load_one(object, name, syscall::Kind::UprobeMulti)));
        }
        loaded
    };
    let mut loaded: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..loaders).map(|_| scope.spawn(load_some)).collect();
        let own = load_some();
        let others = threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default());
        own.into_iter().chain(others).collect()
    });
    loaded.sort_by_key(|(index, _)| *index);
    loaded.into_iter().map(|(_, program)| program).collect()
}

pub fn load_one(
    relocated: &Relocated,
    name: &'static str,
    kind: syscall::Kind,
) -> Result<OwnedFd, AttachError> {
    let Relocated { object, types } = relocated;
    let program = object.programs.get(name).ok_or_else(|| missing(name))?;
    let function = object.functions.get(&program.function_key()).ok_or_else(|| missing(name))?;
    let instructions: Vec<[u8; 8]> = function.instructions.iter().map(encode).collect();
    let mut log = Vec::new();
    let code = syscall::Code {
        name,
        instructions: &instructions,
        license: &program.license,
        types: Some(types.as_fd()),
        functions: &function.func_info.func_info_bytes(),
    };
    syscall::load_program(kind, &code, &mut log).map_err(|source| {
        if source.raw_os_error() == Some(libc::EPERM) {
            return AttachError::Refused { call: "BPF_PROG_LOAD", extra: "", source };
        }
        AttachError::Verifier { program: name, log: last_lines(&log), source }
    })
}

/// `struct bpf_insn` as bytes: code, registers, offset, immediate.
fn encode(instruction: &aya_obj::generated::bpf_insn) -> [u8; 8] {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    let [offset_low, offset_high] = instruction.off.to_le_bytes();
    let [a, b, c, d] = instruction.imm.to_le_bytes();
    [instruction.code, registers, offset_low, offset_high, a, b, c, d]
}

fn last_lines(log: &[u8]) -> String {
    // Behind the end there are remains of what the verifier has taken back.
    let written = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(written);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(12);
    lines[from..].join(" | ")
}

pub fn refused_or_broken<E: std::error::Error + Send + Sync + 'static>(error: E) -> AttachError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>()
            && io.raw_os_error() == Some(libc::EPERM)
        {
            let source = io::Error::from_raw_os_error(libc::EPERM);
            return AttachError::Refused { call: "BPF_MAP_CREATE", extra: "", source };
        }
        cause = current.source();
    }
    AttachError::Object { what: "maps".to_owned(), source: Box::new(error) }
}
