//! The kernel half, loaded: its maps, its programs, and the points that are armed.

use std::collections::HashSet;
use std::ffi::CString;
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
    Push,
    PoolReturn,
    MallocEnter,
    MallocReturn,
    Hold,
    Empty,
    EmptyReturn,
}

impl Program {
    const ALL: [Self; 8] = [
        Self::Pop,
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
const CONTINUED: [&str; 2] = ["define", "send_stack"];

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
    ebpf: Ebpf,
    mechanism: Mechanism,
    programs: FxHashMap<Program, OwnedFd>,
    sizes: TableSizes,
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
        let ebpf = EbpfLoader::new()
            // The object needs none, and reading the kernel's takes tens of megabytes.
            .btf(None)
            .map_max_entries("LIVE", sizes.live_buckets)
            .map_max_entries("INDEX", sizes.index_buckets)
            .map_max_entries("CODES", sizes.code_buckets)
            .map_max_entries("ACCOUNTS", sizes.accounts)
            .map_max_entries("EVENTS", sizes.ring_bytes)
            .load(object::bytes())
            .map_err(refused_or_broken)?;
        let mut kernel = Self { ebpf, mechanism, programs: FxHashMap::default(), sizes };
        kernel.write_settings(offset)?;
        match mechanism {
            Mechanism::Multi | Mechanism::MultiEverywhere => kernel.load_for_multi()?,
            Mechanism::Perf => kernel.load_for_perf()?,
        }
        Ok(kernel)
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
        let map = self.ebpf.map(table).ok_or_else(|| missing(table))?;
        let array = Array::<_, [u64; WORDS]>::try_from(map).map_err(table_error(table))?;
        array.get(&index, 0).map_err(table_error(table))
    }

    /// The ring buffer, and what becomes readable when it holds something; it can be taken once. Needs a running runtime.
    pub fn take_ring(&mut self) -> Result<(RingBuf<MapData>, Readiness), AttachError> {
        let map = self.ebpf.take_map("EVENTS").ok_or_else(|| missing("EVENTS"))?;
        let descriptor = map_descriptor(&map).ok_or_else(|| missing("EVENTS"))?;
        let descriptor = descriptor.try_clone_to_owned().map_err(table_error("EVENTS"))?;
        let readiness = Readiness::new(descriptor).map_err(table_error("EVENTS"))?;
        Ok((RingBuf::try_from(map).map_err(table_error("EVENTS"))?, readiness))
    }

    /// Starts to watch every exec and thread exit of the host.
    pub fn watch_processes(&mut self) -> Result<(), AttachError> {
        for name in ["process_exec", "process_exit"] {
            let program = self.ebpf.program_mut(name).ok_or_else(|| missing("process programs"))?;
            let program: &mut RawTracePoint = program.try_into().map_err(object_error(name))?;
            program.load().map_err(object_error(name))?;
            program.attach(&format!("sched_{name}")).map_err(object_error(name))?;
        }
        Ok(())
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
        match self.mechanism {
            Mechanism::Multi | Mechanism::MultiEverywhere => {
                // Every program of ours looks at the process itself before it counts anything.
                let filter = if self.mechanism == Mechanism::MultiEverywhere { 0 } else { pid };
                let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
                let offsets: Vec<u64> = points.iter().map(|point| point.offset.0).collect();
                let cookies: Vec<u64> = points.iter().map(|point| point.cookie.0).collect();
                let code = self.programs.get(&program).ok_or_else(|| missing(program.name()))?;
                let link = syscall::link_uprobes(
                    code.as_fd(),
                    &path,
                    &offsets,
                    &cookies,
                    filter,
                    program.is_return(),
                )
                .map_err(failed)?;
                Ok(Armed { _links: Links::Multi { _link: link } })
            }
            Mechanism::Perf => self.arm_by_perf(program, path, pid, points),
        }
    }

    fn arm_by_perf(
        &mut self,
        program: Program,
        path: &Path,
        pid: u32,
        points: &[ProbePoint],
    ) -> Result<Armed, AttachError> {
        let code = self.ebpf.program_mut(program.name()).ok_or_else(|| missing(program.name()))?;
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

    fn array<T: aya::Pod>(&mut self, name: &'static str) -> Result<Array<&mut MapData, T>, AttachError> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| missing(name))?;
        Array::try_from(map).map_err(table_error(name))
    }

    fn load_for_perf(&mut self) -> Result<(), AttachError> {
        for name in Program::ALL.map(Program::name).into_iter().chain(CONTINUED) {
            let program = self.ebpf.program_mut(name).ok_or_else(|| missing("programs"))?;
            let program: &mut UProbe = program.try_into().map_err(object_error(name))?;
            program.load().map_err(object_error(name))?;
        }
        for (slot, name) in CONTINUED.into_iter().enumerate() {
            let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
            let program: &UProbe = program.try_into().map_err(object_error(name))?;
            self.set_continued(slot, program.fd().map_err(object_error(name))?.as_fd())?;
        }
        Ok(())
    }

    fn load_for_multi(&mut self) -> Result<(), AttachError> {
        let mut parsed = aya_obj::Object::parse(object::bytes()).map_err(object_error("parse"))?;
        let text: HashSet<usize> = parsed.functions.keys().map(|(section, _)| *section).collect();
        let maps = std::mem::take(&mut parsed.maps);
        let descriptors: Vec<_> = maps
            .keys()
            .filter_map(|name| Some((name.as_str(), map_descriptor(self.ebpf.map(name)?)?.as_raw_fd())))
            .collect();
        let relocations = descriptors.iter().filter_map(|(name, fd)| Some((*name, *fd, maps.get(*name)?)));
        parsed.relocate_maps(relocations, &text).map_err(object_error("maps"))?;
        parsed.relocate_calls(&text).map_err(object_error("calls"))?;
        // What takes the time is the verifier, and it works on as many programs at once as are asked for.
        let parsed = &parsed;
        let names = Program::ALL.map(Program::name).into_iter().chain(CONTINUED);
        let loaded: Vec<_> = std::thread::scope(|scope| {
            let loads: Vec<_> = names.map(|name| scope.spawn(move || load_one(parsed, name))).collect();
            loads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut loaded =
            loaded.into_iter().map(|load| load.unwrap_or_else(|_| Err(missing("a program's loader"))));
        for program in Program::ALL {
            let code = loaded.next().unwrap_or_else(|| Err(missing(program.name())))?;
            self.programs.insert(program, code);
        }
        for (slot, name) in CONTINUED.into_iter().enumerate() {
            let code = loaded.next().unwrap_or_else(|| Err(missing(name)))?;
            self.set_continued(slot, code.as_fd())?;
        }
        Ok(())
    }

    fn set_continued(&self, slot: usize, program: BorrowedFd<'_>) -> Result<(), AttachError> {
        let array = self.ebpf.map("PROGRAMS").and_then(map_descriptor).ok_or_else(|| missing("PROGRAMS"))?;
        syscall::set_program(array, slot as u32, program).map_err(table_error("PROGRAMS"))
    }
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

fn load_one(parsed: &aya_obj::Object, name: &'static str) -> Result<OwnedFd, AttachError> {
    let program = parsed.programs.get(name).ok_or_else(|| missing(name))?;
    let function = parsed.functions.get(&program.function_key()).ok_or_else(|| missing(name))?;
    let instructions: Vec<[u8; 8]> = function.instructions.iter().map(encode).collect();
    let mut log = Vec::new();
    syscall::load_program(name, &instructions, &program.license, &mut log).map_err(|source| {
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

fn refused_or_broken(error: aya::EbpfError) -> AttachError {
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
