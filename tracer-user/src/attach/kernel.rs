//! The kernel half, loaded: its maps, its programs, and the points that are armed.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::maps::{Array, Map, MapData, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{RawTracePoint, UProbe};
use aya::{Ebpf, EbpfLoader};
use rustc_hash::FxHashMap;
use tracer_ebpf::abi::{Cookie, Layout, PROCESSES};
use zerocopy::IntoBytes as _;

use super::kernel_types::{KernelTypes, thread_pointer_offset};
use super::mechanism::Mechanism;
use super::{AttachError, Readiness, object, syscall};
use crate::plan::FileOffset;

/// `tracer_ebpf::tables::Settings` as words.
type Settings = [u64; size_of::<tracer_ebpf::tables::Settings>() / 8];
/// Index of `held_process` in it.
const HELD_PROCESS: usize = 8;

/// The programs that probe points start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is described at its definition in tracer-ebpf/src/kernel")]
pub enum Program {
    Pop,
    PagePop,
    Push,
    PoolReturn,
    MallocEnter,
    MallocReturn,
    Hold,
    Empty,
    EmptyReturn,
}

impl Program {
    const ALL: [Self; 9] = [
        Self::Pop,
        Self::PagePop,
        Self::Push,
        Self::PoolReturn,
        Self::MallocEnter,
        Self::MallocReturn,
        Self::Hold,
        Self::Empty,
        Self::EmptyReturn,
    ];

    /// The program that does nothing at the same place.
    pub(super) const fn bare(self) -> Self {
        if self.is_return() { Self::EmptyReturn } else { Self::Empty }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Pop => "pop",
            Self::PagePop => "page_pop",
            Self::Push => "push",
            Self::PoolReturn => "pool_return",
            Self::MallocEnter => "malloc_enter",
            Self::MallocReturn => "malloc_return",
            Self::Hold => "hold",
            Self::Empty => "empty",
            Self::EmptyReturn => "empty_return",
        }
    }

    const fn is_return(self) -> bool {
        matches!(self, Self::PoolReturn | Self::MallocReturn | Self::EmptyReturn)
    }
}

/// The programs that others continue in, in the order of their slots; see `tracer-ebpf/src/kernel/define.rs`.
const CONTINUED: [&str; 4] = ["define", "send_stack", "book_block", "find_thread"];

/// Programs on whole processes, and the kernel's tracepoints that start them.
const WATCHED: [(&str, &CStr); 2] =
    [("process_exec", c"sched_process_exec"), ("process_exit", c"sched_process_exit")];

// enum bpf_map_type, include/uapi/linux/bpf.h.
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;

/// Sizes of the kernel's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSizes {
    /// Seven live blocks each.
    pub live_buckets: u32,
    /// Seven stacks each.
    pub index_buckets: u32,
    /// Seven code objects each.
    pub code_buckets: u32,
    /// Distinct (process, thread, domain, stack).
    pub accounts: u32,
    /// Bytes of the ring buffer: a power of two, at least a page.
    pub ring_bytes: u32,
}

impl Default for TableSizes {
    /// 62.5 MiB in all: 36 MiB for 2 million live blocks, 12 MiB for 131,072 accounts, 4 MiB to find them, 8 MiB of ring
    /// (4,000 stacks, which a tracer that has to wait for a processor needs), 1 MiB for 57,000 code objects.
    fn default() -> Self {
        Self {
            live_buckets: 294_912,
            index_buckets: 32_768,
            code_buckets: 8_192,
            accounts: 131_072,
            ring_bytes: 8 << 20,
        }
    }
}

/// One instruction to arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbePoint {
    /// Where.
    pub offset: FileOffset,
    /// What the program is told about it.
    pub cookie: Cookie,
}

/// Points that are armed; dropping it disarms them.
#[derive(Debug)]
pub struct Armed {
    _links: Links,
}

#[derive(Debug)]
enum Links {
    Multi { _link: OwnedFd },
    Perf { _links: Vec<UProbeLink> },
}

/// The kernel half.
#[derive(Debug)]
pub struct Kernel {
    maps: FxHashMap<String, Map>,
    sizes: TableSizes,
    /// Links are for all processes: only the programs, which all look at the process first, tell them apart.
    filter_here: bool,
    loaded: Loaded,
}

/// The programs.
#[derive(Debug)]
enum Loaded {
    None,
    /// Loaded by ourselves: aya's loader reads and parses the types of the whole kernel first, 45 ms and 20 MB for nothing.
    Multi {
        programs: FxHashMap<Program, OwnedFd>,
        watchers: Vec<(OwnedFd, &'static CStr)>,
        watching: Vec<OwnedFd>,
    },
    Perf(Box<Ebpf>),
}

fn table_error<E: std::error::Error + Send + Sync + 'static>(
    table: &'static str,
) -> impl FnOnce(E) -> AttachError {
    move |source| AttachError::Table { table, source: Box::new(source) }
}

fn object_error<E: std::error::Error + Send + Sync + 'static>(
    what: &str,
) -> impl FnOnce(E) -> AttachError + use<'_, E> {
    move |source| AttachError::Object { what: what.to_owned(), source: Box::new(source) }
}

impl Kernel {
    /// Creates the tables and loads every program, `mechanism` deciding for what kind of probe; nothing is armed yet.
    pub fn load(sizes: TableSizes, mechanism: Mechanism) -> Result<Self, AttachError> {
        let offset = read_thread_pointer_offset()?;
        let filter_here = mechanism == Mechanism::MultiEverywhere;
        match mechanism {
            Mechanism::Multi | Mechanism::MultiEverywhere => {
                let mut object = aya_obj::Object::parse(object::bytes()).map_err(object_error("parse"))?;
                let maps = create_maps(&mut object, sizes)?;
                let mut kernel = Self { maps, sizes, filter_here, loaded: Loaded::None };
                kernel.write_settings(offset)?;
                kernel.loaded = kernel.load_programs(object)?;
                Ok(kernel)
            }
            Mechanism::Perf => {
                let mut ebpf = EbpfLoader::new()
                    .btf(None)
                    .map_max_entries("LIVE", sizes.live_buckets)
                    .map_max_entries("INDEX", sizes.index_buckets)
                    .map_max_entries("CODES", sizes.code_buckets)
                    .map_max_entries("ACCOUNTS", sizes.accounts)
                    .map_max_entries("EVENTS", sizes.ring_bytes)
                    .load(object::bytes())
                    .map_err(refused_or_broken)?;
                let names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
                let maps = names.into_iter().filter_map(|name| Some((name.clone(), ebpf.take_map(&name)?)));
                let mut kernel = Self { maps: maps.collect(), sizes, filter_here, loaded: Loaded::None };
                kernel.write_settings(offset)?;
                kernel.load_for_perf(&mut ebpf)?;
                kernel.loaded = Loaded::Perf(Box::new(ebpf));
                Ok(kernel)
            }
        }
    }

    fn write_settings(&mut self, thread_pointer: u64) -> Result<(), AttachError> {
        let sizes = self.sizes;
        let entries = u64::from(sizes.live_buckets) * tracer_ebpf::bucket::ENTRIES as u64;
        // Thinning begins at 50 % and has 15 steps to 80 %: tests/account/capacity.rs of tracer-ebpf measures what fits.
        let mut seed = [0; 8];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut seed))
            .map_err(table_error("SETTINGS"))?;
        let words: Settings = [
            entries / 2,
            entries / 50,
            u64::from(sizes.live_buckets),
            u64::from(sizes.index_buckets),
            u64::from(sizes.code_buckets),
            u64::from(sizes.accounts),
            u64::from_ne_bytes(seed),
            thread_pointer,
            0,
            (1 << 32) / u64::from(sizes.live_buckets.max(1)),
        ];
        self.array::<Settings>("SETTINGS")?.set(0, words, 0).map_err(table_error("SETTINGS"))?;
        let globals = [0, u64::from(PROCESSES), 0, 0];
        self.array::<[u64; 4]>("GLOBALS")?.set(0, globals, 0).map_err(table_error("GLOBALS"))
    }

    /// The sizes it was loaded with.
    #[must_use]
    pub fn sizes(&self) -> TableSizes {
        self.sizes
    }

    /// How often the held process has been held: after an exec, at a point.
    pub fn holds(&self) -> Result<(u64, u64), AttachError> {
        let [_, _, after_exec, at_point]: [u64; 4] = self.words("GLOBALS", 0)?;
        Ok((after_exec, at_point))
    }

    /// Which process may be held; 0: none.
    pub fn set_held(&mut self, pid: u32) -> Result<(), AttachError> {
        let mut settings = self.array::<Settings>("SETTINGS")?;
        let mut words = settings.get(&0, 0).map_err(table_error("SETTINGS"))?;
        words[HELD_PROCESS] = u64::from(pid);
        settings.set(0, words, 0).map_err(table_error("SETTINGS"))
    }

    /// Tells the kernel half how to read process slot `slot`.
    pub fn set_layout(&mut self, slot: u32, layout: &Layout) -> Result<(), AttachError> {
        let mut bytes = [0; size_of::<Layout>()];
        bytes.copy_from_slice(layout.as_bytes());
        self.array::<[u8; size_of::<Layout>()]>("LAYOUTS")?
            .set(slot, bytes, 0)
            .map_err(table_error("LAYOUTS"))
    }

    /// Words of element `index` of a table: what [`crate::drain`] makes its values from.
    pub fn words<const WORDS: usize>(
        &self,
        table: &'static str,
        index: u32,
    ) -> Result<[u64; WORDS], AttachError> {
        let map = self.maps.get(table).ok_or_else(|| missing(table))?;
        let array = Array::<_, [u64; WORDS]>::try_from(map).map_err(table_error(table))?;
        array.get(&index, 0).map_err(table_error(table))
    }

    /// The ring buffer, and what becomes readable when it holds something; it can be taken once. Needs a running runtime.
    pub fn take_ring(&mut self) -> Result<(RingBuf<MapData>, Readiness), AttachError> {
        let map = self.maps.remove("EVENTS").ok_or_else(|| missing("EVENTS"))?;
        let descriptor = map_descriptor(&map).ok_or_else(|| missing("EVENTS"))?;
        let descriptor = descriptor.try_clone_to_owned().map_err(table_error("EVENTS"))?;
        let readiness = Readiness::new(descriptor).map_err(table_error("EVENTS"))?;
        Ok((RingBuf::try_from(map).map_err(table_error("EVENTS"))?, readiness))
    }

    /// Starts to watch every exec and thread exit of the host.
    pub fn watch_processes(&mut self) -> Result<(), AttachError> {
        match &mut self.loaded {
            Loaded::None => Err(missing("process programs")),
            Loaded::Multi { watchers, watching, .. } => {
                for (program, point) in watchers {
                    let opened = syscall::open_raw_tracepoint(program.as_fd(), point);
                    watching.push(opened.map_err(object_error("process programs"))?);
                }
                Ok(())
            }
            Loaded::Perf(ebpf) => {
                for (name, point) in WATCHED {
                    let program = ebpf.program_mut(name).ok_or_else(|| missing("process programs"))?;
                    let program: &mut RawTracePoint = program.try_into().map_err(object_error(name))?;
                    program.load().map_err(object_error(name))?;
                    program.attach(&point.to_string_lossy()).map_err(object_error(name))?;
                }
                Ok(())
            }
        }
    }

    /// Arms `points` of the file at `path` in process `pid`.
    pub fn arm(
        &mut self,
        program: Program,
        path: &Path,
        pid: u32,
        points: &[ProbePoint],
    ) -> Result<Armed, AttachError> {
        let failed = |source: io::Error| {
            if source.raw_os_error() == Some(libc::ESRCH) {
                return AttachError::Gone { pid };
            }
            AttachError::Arm { points: points.len(), file: path.to_owned(), source }
        };
        let filter = if self.filter_here { 0 } else { pid };
        match &mut self.loaded {
            Loaded::None => Err(missing("programs")),
            Loaded::Multi { programs, .. } => {
                let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
                let offsets: Vec<u64> = points.iter().map(|point| point.offset.0).collect();
                let cookies: Vec<u64> = points.iter().map(|point| point.cookie.0).collect();
                let code = programs.get(&program).ok_or_else(|| missing(program.name()))?;
                let on_return = program.is_return();
                let link = syscall::link_uprobes(code.as_fd(), &path, &offsets, &cookies, filter, on_return)
                    .map_err(failed)?;
                Ok(Armed { _links: Links::Multi { _link: link } })
            }
            Loaded::Perf(ebpf) => arm_by_perf(ebpf, program, path, pid, points),
        }
    }

    fn array<T: aya::Pod>(&mut self, name: &'static str) -> Result<Array<&mut MapData, T>, AttachError> {
        let map = self.maps.get_mut(name).ok_or_else(|| missing(name))?;
        Array::try_from(map).map_err(table_error(name))
    }

    fn load_for_perf(&self, ebpf: &mut Ebpf) -> Result<(), AttachError> {
        for name in Program::ALL.map(Program::name).into_iter().chain(CONTINUED) {
            let program = ebpf.program_mut(name).ok_or_else(|| missing("programs"))?;
            let program: &mut UProbe = program.try_into().map_err(object_error(name))?;
            program.load().map_err(object_error(name))?;
        }
        for (slot, name) in CONTINUED.into_iter().enumerate() {
            let program = ebpf.program(name).ok_or_else(|| missing(name))?;
            let program: &UProbe = program.try_into().map_err(object_error(name))?;
            self.set_continued(slot, program.fd().map_err(object_error(name))?.as_fd())?;
        }
        Ok(())
    }

    fn load_programs(&self, mut object: aya_obj::Object) -> Result<Loaded, AttachError> {
        relocate(&mut object, &self.maps)?;
        // What takes the time is the verifier, and it works on as many programs at once as are asked for.
        let object = &object;
        let names = Program::ALL.map(Program::name).into_iter().chain(CONTINUED);
        let loaded: Vec<_> = std::thread::scope(|scope| {
            let load = |name| scope.spawn(move || load_one(object, name, syscall::Kind::UprobeMulti));
            let loads: Vec<_> = names.map(load).collect();
            loads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut loaded =
            loaded.into_iter().map(|load| load.unwrap_or_else(|_| Err(missing("a program's loader"))));
        let mut programs = FxHashMap::default();
        for program in Program::ALL {
            let code = loaded.next().unwrap_or_else(|| Err(missing(program.name())))?;
            programs.insert(program, code);
        }
        for (slot, name) in CONTINUED.into_iter().enumerate() {
            let code = loaded.next().unwrap_or_else(|| Err(missing(name)))?;
            self.set_continued(slot, code.as_fd())?;
        }
        let watchers = WATCHED
            .into_iter()
            .map(|(name, point)| Ok((load_one(object, name, syscall::Kind::RawTracepoint)?, point)));
        Ok(Loaded::Multi { programs, watchers: watchers.collect::<Result<_, _>>()?, watching: Vec::new() })
    }

    fn set_continued(&self, slot: usize, program: BorrowedFd<'_>) -> Result<(), AttachError> {
        let array = self.maps.get("PROGRAMS").and_then(map_descriptor).ok_or_else(|| missing("PROGRAMS"))?;
        syscall::set_program(array, slot as u32, program).map_err(table_error("PROGRAMS"))
    }
}

/// The object's maps with the sizes that were asked for.
fn create_maps(
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
            BPF_MAP_TYPE_ARRAY => Map::Array(data),
            BPF_MAP_TYPE_RINGBUF => Map::RingBuf(data),
            BPF_MAP_TYPE_PROG_ARRAY => Map::ProgramArray(data),
            _ => return Err(missing("a table of an unknown kind")),
        };
        maps.insert(name.clone(), map);
    }
    Ok(maps)
}

/// Writes the maps' descriptors into the programs.
fn relocate(object: &mut aya_obj::Object, created: &FxHashMap<String, Map>) -> Result<(), AttachError> {
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps = std::mem::take(&mut object.maps);
    let descriptors = maps.iter().filter_map(|(name, map)| {
        Some((name.as_str(), map_descriptor(created.get(name)?)?.as_raw_fd(), map))
    });
    object.relocate_maps(descriptors, &text).map_err(object_error("maps"))?;
    object.relocate_calls(&text).map_err(object_error("calls"))
}

fn arm_by_perf(
    ebpf: &mut Ebpf,
    program: Program,
    path: &Path,
    pid: u32,
    points: &[ProbePoint],
) -> Result<Armed, AttachError> {
    let code = ebpf.program_mut(program.name()).ok_or_else(|| missing(program.name()))?;
    let code: &mut UProbe = code.try_into().map_err(object_error(program.name()))?;
    let scope = std::num::NonZeroU32::new(pid).map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
    let mut links = Vec::with_capacity(points.len());
    for point in points {
        let at = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(point.offset.0),
            cookie: Some(point.cookie.0),
        };
        let link = code.attach(at, path, scope).and_then(|link| code.take_link(link));
        links.push(link.map_err(|error| AttachError::Arm {
            points: points.len(),
            file: path.to_owned(),
            source: io::Error::other(error),
        })?);
    }
    Ok(Armed { _links: Links::Perf { _links: links } })
}

fn missing(table: &'static str) -> AttachError {
    AttachError::Table { table, source: "it is not in the object".into() }
}

fn map_descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data) | Map::RingBuf(data) | Map::ProgramArray(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

fn load_one(
    parsed: &aya_obj::Object,
    name: &'static str,
    kind: syscall::Kind,
) -> Result<OwnedFd, AttachError> {
    let program = parsed.programs.get(name).ok_or_else(|| missing(name))?;
    let function = parsed.functions.get(&program.function_key()).ok_or_else(|| missing(name))?;
    let instructions: Vec<[u8; 8]> = function.instructions.iter().map(encode).collect();
    let mut log = Vec::new();
    syscall::load_program(kind, name, &instructions, &program.license, &mut log).map_err(|source| {
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

fn refused_or_broken<E: std::error::Error + Send + Sync + 'static>(error: E) -> AttachError {
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

fn read_thread_pointer_offset() -> Result<u64, AttachError> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    const MEMBER: &str = "task_struct.thread";
    let bytes = std::fs::read(PATH).map_err(|source| AttachError::NoKernelTypes { path: PATH, source })?;
    let types = KernelTypes::new(&bytes).ok_or(AttachError::UnknownKernelType { member: MEMBER })?;
    thread_pointer_offset(&types).ok_or(AttachError::UnknownKernelType { member: MEMBER })
}
