//! The kernel half, loaded: its maps, its programs, and the points that are armed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::maps::{Array, Map, MapData, RingBuf};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfLoader};
use rustc_hash::FxHashMap;
use tracer_ebpf::abi::{Cookie, Layout, PROCESSES};
use zerocopy::IntoBytes as _;

use super::armed::{Armed, Links};
use super::kernel_types::{KernelTypes, Offsets, anonymous_pages, offsets};
use super::load::{Relocated, create_maps, load_all, load_one, refused_or_broken, relocate};
use super::mechanism::Mechanism;
use super::programs::{CONTINUED, FIND_THREAD, ON_FAULTS, ON_FAULTS_CONTINUED, Program, WATCHED};
use super::{AttachError, Readiness, RingPositions, object, perf, ring, syscall};
use crate::plan::FileOffset;

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
            live_buckets: 294_400,
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

/// The kernel half.
#[derive(Debug)]
pub struct Kernel {
    pub(super) maps: FxHashMap<String, Map>,
    /// The ring buffer's, once it has been taken from the maps.
    ring: Option<OwnedFd>,
    sizes: TableSizes,
    /// By process slot.
    earlier_owners: Vec<u32>,
    /// Links are for all processes: only the programs, which all look at the process first, tell them apart.
    filter_here: bool,
    /// Inode number of our PID namespace; 0: the initial one.
    pub(super) own_namespace: u64,
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

pub(super) fn table_error<E: std::error::Error + Send + Sync + 'static>(
    table: &'static str,
) -> impl FnOnce(E) -> AttachError {
    move |source| AttachError::Table { table, source: Box::new(source) }
}

pub(super) fn object_error<E: std::error::Error + Send + Sync + 'static>(
    what: &str,
) -> impl FnOnce(E) -> AttachError + use<'_, E> {
    move |source| AttachError::Object { what: what.to_owned(), source: Box::new(source) }
}

impl Kernel {
    /// Creates the tables and loads every program, `mechanism` deciding for what kind of probe; nothing is armed yet.
    pub fn load(sizes: TableSizes, mechanism: Mechanism) -> Result<Self, AttachError> {
        let filter_here = mechanism == Mechanism::MultiEverywhere;
        let own_namespace = own_namespace();
        if own_namespace != 0 && mechanism != Mechanism::Multi {
            return Err(AttachError::Namespace);
        }
        let empty = |maps| Self {
            maps,
            ring: None,
            sizes,
            earlier_owners: vec![0; PROCESSES as usize],
            filter_here,
            own_namespace,
            loaded: Loaded::None,
        };
        match mechanism {
            Mechanism::Multi | Mechanism::MultiEverywhere => {
                let mut object = aya_obj::Object::parse(object::bytes()).map_err(object_error("parse"))?;
                // Each takes 20 to 30 ms, and somebody waits to see his process armed.
                let (offset, maps) = std::thread::scope(|scope| {
                    let offset = scope.spawn(read_offsets);
                    let maps = create_maps(&mut object, sizes);
                    (offset.join().unwrap_or_else(|_| Err(missing("a reader"))), maps)
                });
                let mut kernel = empty(maps?);
                kernel.write_settings(offset?)?;
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
                let mut kernel = empty(maps.collect());
                kernel.write_settings(read_offsets()?)?;
                perf::load(&kernel, &mut ebpf)?;
                kernel.loaded = Loaded::Perf(Box::new(ebpf));
                Ok(kernel)
            }
        }
    }

    /// The sizes it was loaded with.
    #[must_use]
    pub fn sizes(&self) -> TableSizes {
        self.sizes
    }

    /// Whether what is armed in one process is hit by that process alone.
    #[must_use]
    pub fn filters_by_process(&self) -> bool {
        !self.filter_here
    }

    /// Whether we are in a PID namespace of our own.
    #[must_use]
    pub fn is_namespaced(&self) -> bool {
        self.own_namespace != 0
    }

    /// How far the ring buffer has been written and read; it must have been taken.
    pub fn ring_positions(&self) -> Result<RingPositions, AttachError> {
        let ring = self.ring.as_ref().ok_or_else(|| missing("EVENTS"))?;
        ring::positions(ring.as_fd()).map_err(table_error("EVENTS"))
    }

    /// Makes a process slot as good as new. Nothing may be armed with it, and nothing of it be in the tables but its totals.
    pub fn free_slot(&mut self, slot: u16) -> Result<(), AttachError> {
        const TOTALS: usize = size_of::<tracer_ebpf::tables::Totals>();
        self.array::<[u8; TOTALS]>("TOTALS")?
            .set(u32::from(slot), [0; TOTALS], 0)
            .map_err(table_error("TOTALS"))?;
        self.set_layout(u32::from(slot), &Layout::default())?;
        if let Some(owners) = self.earlier_owners.get_mut(usize::from(slot)) {
            *owners = owners.wrapping_add(1);
        }
        Ok(())
    }

    /// The programs that probe points start; none where they are armed one by one.
    pub(super) fn point_programs(&self) -> impl Iterator<Item = &OwnedFd> {
        let programs = match &self.loaded {
            Loaded::Multi { programs, .. } => Some(programs.values()),
            Loaded::None | Loaded::Perf(_) => None,
        };
        programs.into_iter().flatten()
    }

    /// A table that userspace may map.
    pub(super) fn table(&self, name: &'static str) -> Result<BorrowedFd<'_>, AttachError> {
        self.maps.get(name).and_then(map_descriptor).ok_or_else(|| missing(name))
    }

    /// Whether events of process slot `slot` count.
    pub fn is_active(&self, slot: u32) -> Result<bool, AttachError> {
        let [first, ..]: [u64; size_of::<Layout>() / 8] = self.words("LAYOUTS", slot)?;
        // `active` is the first half of the first word.
        Ok(first as u32 != 0)
    }

    /// Tells the kernel half how to read process slot `slot`.
    pub fn set_layout(&mut self, slot: u32, layout: &Layout) -> Result<(), AttachError> {
        let mut layout = *layout;
        if layout.thread_next != 0 {
            self.load_for_pages()?;
        }
        if self.own_namespace != 0 {
            // The kernel half knows other numbers than we; that the process is the right one the links see to.
            layout.pid = 0;
        }
        let earlier = self.earlier_owners.get(slot as usize).copied().unwrap_or(0);
        layout.owner = slot | earlier.wrapping_mul(PROCESSES);
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
        self.ring = Some(descriptor.try_clone().map_err(table_error("EVENTS"))?);
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

    /// Starts to watch page faults: what followed processes with a slot make resident is counted.
    pub fn watch_faults(&mut self) -> Result<(), AttachError> {
        if rustix::param::page_size() as u64 != tracer_ebpf::growth::PAGE {
            return Err(AttachError::NoPageFaults { missing: "pages of 4,096 bytes" });
        }
        let offset = read_types(|types| {
            anonymous_pages(types).ok_or(AttachError::NoPageFaults { missing: "mm_struct.rss_stat" })
        })?;
        self.set_anonymous_pages(offset)?;
        let object = aya_obj::Object::parse(object::bytes()).map_err(object_error("parse"))?;
        let object = relocate(object, |name| self.descriptor(name))?;
        let array =
            self.maps.get("FAULT_PROGRAMS").and_then(map_descriptor).ok_or_else(|| missing("PROGRAMS"))?;
        for (slot, name) in ON_FAULTS_CONTINUED {
            let program = load_one(&object, name, syscall::Kind::RawTracepoint)?;
            syscall::set_program(array, slot, program.as_fd()).map_err(table_error("FAULT_PROGRAMS"))?;
        }
        let Loaded::Multi { watching, .. } = &mut self.loaded else {
            return Err(AttachError::NoPageFaults { missing: "uprobe_multi" });
        };
        for (name, point) in ON_FAULTS {
            let program = load_one(&object, name, syscall::Kind::RawTracepoint)?;
            let opened = syscall::open_raw_tracepoint(program.as_fd(), point);
            let missing = point.to_str().unwrap_or("tracepoint");
            watching.push(opened.map_err(|error| match error.raw_os_error() {
                // kernel/bpf/syscall.c, `bpf_raw_tp_link_attach`.
                Some(libc::ENOENT | libc::EINVAL) => AttachError::NoPageFaults { missing },
                _ => object_error(missing)(error),
            })?);
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
        if program == Program::PagePop {
            self.load_for_pages()?;
        }
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
            Loaded::Perf(ebpf) => perf::arm(ebpf, program, path, pid, points),
        }
    }

    pub(super) fn array<T: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<Array<&mut MapData, T>, AttachError> {
        let map = self.maps.get_mut(name).ok_or_else(|| missing(name))?;
        Array::try_from(map).map_err(table_error(name))
    }

    fn load_programs(&self, object: aya_obj::Object) -> Result<Loaded, AttachError> {
        let object = &relocate(object, |name| self.descriptor(name))?;
        let programs = self.load_set(object, &Program::ALWAYS, &CONTINUED)?;
        let watchers = WATCHED
            .into_iter()
            .map(|(name, point)| Ok((load_one(object, name, syscall::Kind::RawTracepoint)?, point)));
        Ok(Loaded::Multi { programs, watchers: watchers.collect::<Result<_, _>>()?, watching: Vec::new() })
    }

    fn descriptor(&self, name: &str) -> Option<BorrowedFd<'_>> {
        let of_ring = || self.ring.as_ref().filter(|_| name == "EVENTS").map(OwnedFd::as_fd);
        self.maps.get(name).and_then(map_descriptor).or_else(of_ring)
    }

    /// Programs, and those that they continue in.
    fn load_set(
        &self,
        object: &Relocated,
        programs: &[Program],
        continued: &[(u32, &'static str)],
    ) -> Result<FxHashMap<Program, OwnedFd>, AttachError> {
        let names = programs.iter().map(|program| program.name());
        let names: Vec<&'static str> = names.chain(continued.iter().map(|(_, name)| *name)).collect();
        let mut loaded = load_all(object, &names).into_iter();
        let mut found = FxHashMap::default();
        for program in programs {
            found.insert(*program, loaded.next().unwrap_or_else(|| Err(missing(program.name())))?);
        }
        for (slot, name) in continued {
            let code = loaded.next().unwrap_or_else(|| Err(missing(name)))?;
            self.set_continued(*slot, code.as_fd())?;
        }
        Ok(found)
    }

    /// Loads what only interpreters with mimalloc need, once. The verifier takes 50 ms for it, which others need not wait.
    fn load_for_pages(&mut self) -> Result<(), AttachError> {
        match &self.loaded {
            Loaded::Multi { programs, .. } if !programs.contains_key(&Program::PagePop) => {}
            _ => return Ok(()),
        }
        let object = aya_obj::Object::parse(object::bytes()).map_err(object_error("parse"))?;
        let object = relocate(object, |name| self.descriptor(name))?;
        let more = self.load_set(&object, &[Program::PagePop], &[FIND_THREAD])?;
        if let Loaded::Multi { programs, .. } = &mut self.loaded {
            programs.extend(more);
        }
        Ok(())
    }

    pub(super) fn set_continued(&self, slot: u32, program: BorrowedFd<'_>) -> Result<(), AttachError> {
        let array = self.maps.get("PROGRAMS").and_then(map_descriptor).ok_or_else(|| missing("PROGRAMS"))?;
        syscall::set_program(array, slot, program).map_err(table_error("PROGRAMS"))
    }
}

pub(super) fn missing(table: &'static str) -> AttachError {
    AttachError::Table { table, source: "it is not in the object".into() }
}

pub(super) fn map_descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::HashMap(data) | Map::Array(data) | Map::RingBuf(data) | Map::ProgramArray(data) => {
            Some(data.fd().as_fd())
        }
        _ => None,
    }
}

/// Inode number of our PID namespace; 0 for the initial one, and where it cannot be read.
fn own_namespace() -> u64 {
    /// `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
    const INITIAL: u64 = 0xEFFF_FFFC;
    let inode = std::fs::metadata("/proc/self/ns/pid").map_or(INITIAL, |file| file.ino());
    if inode == INITIAL { 0 } else { inode }
}

fn read_offsets() -> Result<Offsets, AttachError> {
    read_types(|types| offsets(types).map_err(|member| AttachError::UnknownKernelType { member }))
}

fn read_types<T>(read: impl FnOnce(&KernelTypes<'_>) -> Result<T, AttachError>) -> Result<T, AttachError> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    let bytes = std::fs::read(PATH).map_err(|source| AttachError::NoKernelTypes { path: PATH, source })?;
    let types = KernelTypes::new(&bytes).ok_or(AttachError::UnknownKernelType { member: "header" })?;
    read(&types)
}
