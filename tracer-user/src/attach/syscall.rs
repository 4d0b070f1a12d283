//! The bpf(2) calls for `uprobe_multi`, which aya 0.14 cannot make, and those for what is loaded beside it.
//!
//! One link arms hundreds of points in milliseconds, and needs no CAP_SYS_ADMIN (docs/decisions/0001-uprobe-multi.md). aya
//! 0.15 can do both but needs a newer compiler; this file goes away when the project can be raised to it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_BTF_LOAD: i64 = 18;
const BPF_LINK_CREATE: i64 = 28;
const BPF_ENABLE_STATS: i64 = 32;
const BPF_RAW_TRACEPOINT_OPEN: i64 = 17;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    padding: u32,
}

/// The head of `union bpf_attr` for `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Default)]
struct TypesLoad {
    types: u64,
    log_buffer: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`, the `uprobe_multi` arm.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    program: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    object: u32,
    bytes: u32,
    info: u64,
}

fn bpf<Attributes>(command: i64, attributes: &mut Attributes) -> io::Result<i64> {
    // SAFETY: `attributes` is a `repr(C)` prefix of `union bpf_attr` and its true size is passed; the pointers in it were
    // made from references that outlive this call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<Attributes>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(number: i64) -> OwnedFd {
    // SAFETY: the kernel has just returned this number as a new descriptor, which nothing else owns.
    unsafe { OwnedFd::from_raw_fd(number as i32) }
}

fn raw(descriptor: BorrowedFd<'_>) -> u32 {
    u32::try_from(descriptor.as_raw_fd()).unwrap_or(u32::MAX)
}

/// What starts a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The points of `uprobe_multi` links.
    UprobeMulti,
    /// A tracepoint of the kernel.
    RawTracepoint,
}

/// A relocated program.
#[derive(Debug, Clone, Copy)]
pub struct Code<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its instructions, those of the functions that it calls at the end.
    pub instructions: &'a [[u8; 8]],
    /// Its licence.
    pub license: &'a CStr,
    /// What [`load_types`] gave for its object.
    pub types: Option<BorrowedFd<'a>>,
    /// A `struct bpf_func_info` for each of its functions.
    pub functions: &'a [u8],
}

/// `sizeof(struct bpf_func_info)`.
const FUNCTION_BYTES: usize = 8;

/// Loads the types of an object, as BTF.
pub fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = TypesLoad {
        types: bytes.as_ptr() as u64,
        size: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        ..TypesLoad::default()
    };
    bpf(BPF_BTF_LOAD, &mut attributes).map(descriptor)
}

/// Loads a program. On failure the verifier's words go to `log`.
pub fn load_program(kind: Kind, code: &Code<'_>, log: &mut Vec<u8>) -> io::Result<OwnedFd> {
    let Code { name, instructions, license, types, functions } = *code;
    let mut attributes = ProgramLoad {
        program_type: match kind {
            Kind::UprobeMulti => BPF_PROG_TYPE_KPROBE,
            Kind::RawTracepoint => BPF_PROG_TYPE_RAW_TRACEPOINT,
        },
        instruction_count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: match kind {
            Kind::UprobeMulti => BPF_TRACE_UPROBE_MULTI,
            Kind::RawTracepoint => 0,
        },
        types: types.map_or(0, |types| types.as_raw_fd().cast_unsigned()),
        function_size: FUNCTION_BYTES as u32,
        functions: functions.as_ptr() as u64,
        function_count: (functions.len() / FUNCTION_BYTES) as u32,
        ..ProgramLoad::default()
    };
    for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    match bpf(BPF_PROG_LOAD, &mut attributes) {
        Ok(number) => Ok(descriptor(number)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM)) => Err(error),
        Err(_) => {
            // Again with a log: asking for one up front costs time even when all is well.
            log.resize(16 << 20, 0);
            attributes.log_level = 1;
            attributes.log_size = 16 << 20;
            attributes.log_buffer = log.as_mut_ptr() as u64;
            bpf(BPF_PROG_LOAD, &mut attributes).map(descriptor)
        }
    }
}

/// Arms `offsets` of the file at `path`, each with its cookie, in process `pid` (0: in all). Needs Linux 6.6.
pub fn link_uprobes(
    program: BorrowedFd<'_>,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    pid: u32,
    on_return: bool,
) -> io::Result<OwnedFd> {
    if offsets.len() != cookies.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attributes = LinkCreate {
        program: raw(program),
        attach_type: BPF_TRACE_UPROBE_MULTI,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        count: u32::try_from(offsets.len()).unwrap_or(u32::MAX),
        multi_flags: if on_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
        pid,
        ..LinkCreate::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(descriptor)
}

/// Starts `program` at a tracepoint of the kernel, until the descriptor is dropped.
pub fn open_raw_tracepoint(program: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let mut attributes = RawTracepointOpen {
        name: name.as_ptr() as u64,
        program: raw(program),
        ..RawTracepointOpen::default()
    };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attributes).map(descriptor)
}

/// Whether a `uprobe_multi` link can be made here, and whether its process filter can be trusted. An error where no program
/// may be loaded at all.
///
/// Asked as libbpf does (`probe_uprobe_multi_link`, tools/lib/bpf/features.c): `/` is no file to put probes in, which a kernel
/// that knows such links says by EBADF. One with the corrected filter (6.10, 46ba0e49b642) refuses process -1 before it looks
/// at the path.
pub fn multi_support() -> io::Result<MultiSupport> {
    /// `r0 = 0; exit`.
    const NOTHING: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let (name, license) = ("alloctrace", c"Dual MIT/GPL");
    let code = Code { name, instructions: &NOTHING, license, types: None, functions: &[] };
    let loaded = load_program(Kind::UprobeMulti, &code, &mut Vec::new());
    let program = match loaded {
        Ok(program) => program,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(error),
        Err(_) => return Ok(MultiSupport::None),
    };
    let answer = |pid| {
        let link = link_uprobes(program.as_fd(), c"/", &[0], &[0], pid, false);
        link.err().and_then(|error| error.raw_os_error())
    };
    Ok(match (answer(0), answer(u32::MAX)) {
        (Some(libc::EBADF), Some(libc::EINVAL)) => MultiSupport::ByProcess,
        (Some(libc::EBADF), _) => MultiSupport::ByThread,
        _ => MultiSupport::None,
    })
}

/// What a kernel makes of `uprobe_multi` links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiSupport {
    /// It does not know them (before 6.6).
    None,
    /// It does, but its process filter drops the events of all threads but one (before 6.10).
    ByThread,
    /// It does, and filters by process.
    ByProcess,
}

/// Puts a program into a program array.
pub fn set_program(array: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = raw(program);
    let mut attributes = MapUpdate {
        map: raw(array),
        key: std::ptr::from_ref(&index) as u64,
        value: std::ptr::from_ref(&value) as u64,
        ..MapUpdate::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Has the kernel count runs of programs and their time, until what is given is closed (kernel/bpf/syscall.c, `bpf_enable_runtime_stats`).
pub fn enable_statistics() -> io::Result<OwnedFd> {
    // The only attribute is the kind: `BPF_STATS_RUN_TIME`.
    let mut kind = 0_u32;
    bpf(BPF_ENABLE_STATS, &mut kind).map(descriptor)
}

/// Runs of a program, and the nanoseconds that they took.
pub fn run_statistics(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    // SAFETY: it consists of numbers, of which all may be zero.
    let mut info: aya_obj::generated::bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = GetInfo {
        object: raw(program),
        bytes: u32::try_from(size_of_val(&info)).unwrap_or(u32::MAX),
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok((info.run_cnt, info.run_time_ns))
}
