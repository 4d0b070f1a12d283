//! One process: its command, its interpreter, and the C library whose malloc it uses.
//!
//! It must not know probe points. Everything it reads belongs to somebody else and may change while it is read.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::files::{Facts, Files};
use super::layout::{InterpreterLayout, PublishedError, layout};
use super::memory::{Mapping, mappings};
use crate::plan::FileOffset;
use crate::plan::elf::{Elf, Machine};
use crate::plan::thread_self_distance;

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// There is none with this number.
    #[error("no process {pid}: it may have ended; `ps` shows those that run")]
    NoProcess {
        /// The number.
        pid: u32,
    },
    /// We may not look at it.
    #[error(
        "not allowed to read process {pid}: run as root, or with CAP_SYS_PTRACE; if that is so, a container or security module forbids it"
    )]
    NotAllowed {
        /// The process.
        pid: u32,
    },
    /// Reading failed otherwise.
    #[error("failed to read `{path}`")]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No CPython in it.
    #[error(
        "process {pid} (`{command}`) runs no CPython interpreter: only CPython 3.8 to 3.15 can be traced"
    )]
    NotPython {
        /// The process.
        pid: u32,
        /// Its command line.
        command: String,
    },
    /// A version that we have no layout for.
    #[error("process {pid} runs CPython {version}, which is not supported: only 3.8 to 3.15 are")]
    UnsupportedVersion {
        /// The process.
        pid: u32,
        /// Its version.
        version: Version,
    },
    /// An interpreter that does not say which version it is.
    #[error("cannot tell the version of the CPython in `{file}`: please report this file")]
    UnknownVersion {
        /// The file.
        file: PathBuf,
    },
    /// Before its release a version's structures change.
    #[error(
        "process {pid} runs CPython {version}, a pre-release, which is not supported: its structures are not final"
    )]
    PreRelease {
        /// The process.
        pid: u32,
        /// Its version as Python writes it, such as `3.15.0b4`.
        version: String,
    },
    /// What the interpreter says of its structures does not hold together.
    #[error("cannot use the table of offsets (`_Py_DebugOffsets`) of the CPython {version} in `{file}`")]
    Published {
        /// The file.
        file: PathBuf,
        /// Its version.
        version: Version,
        /// What is wrong with it.
        source: PublishedError,
    },
    /// A free-threaded build that was never tried.
    #[error(
        "process {pid} runs a free-threaded CPython {version}, which is not supported: of free-threaded builds only 3.13 and 3.14 are"
    )]
    FreeThreaded {
        /// The process.
        pid: u32,
        /// Its version.
        version: Version,
    },
}

/// Version of an interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// 3.
    pub major: u8,
    /// 8 to 15.
    pub minor: u8,
    /// Patch level; before 3.11 a file does not say it in a way that can be relied on.
    pub micro: Option<u8>,
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)?;
        self.micro.map_or(Ok(()), |micro| write!(formatter, ".{micro}"))
    }
}

/// A file that a process has mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedFile {
    /// A path that leads to the very file, also from another mount namespace and when it has been deleted.
    pub path: PathBuf,
    /// The name that the process knows it by.
    pub name: String,
    /// What to add to an address of the file to get one of the process.
    pub bias: u64,
}

/// A path below process `parent`'s folder, below that of its copy `child`.
pub(super) fn path_of_fork(path: &Path, parent: u32, child: u32) -> PathBuf {
    let folder = |pid: u32| Path::new("/proc").join(pid.to_string());
    path.strip_prefix(folder(parent)).map_or_else(|_| path.to_owned(), |rest| folder(child).join(rest))
}

impl MappedFile {
    /// The same file in a process `child` that is a copy of process `parent`.
    #[must_use]
    pub fn of_fork(&self, parent: u32, child: u32) -> Self {
        let path = path_of_fork(&self.path, parent, child);
        Self { path, ..self.clone() }
    }
}

/// A CPython interpreter in a process.
#[derive(Debug, Clone)]
pub struct Interpreter {
    /// The executable or libpython.
    pub file: MappedFile,
    /// Its version.
    pub version: Version,
    /// Where it keeps things.
    pub layout: InterpreterLayout,
    /// Address of `_PyRuntime` in the process.
    pub runtime: u64,
}

impl std::fmt::Display for Interpreter {
    /// The version, with the `t` that free-threaded builds carry.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.layout.free_threading.is_some() { "t" } else { "" };
        write!(formatter, "{}{mark}", self.version)
    }
}

/// A process that can be traced.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its number.
    pub pid: u32,
    /// Its command line.
    pub command: String,
    /// Its interpreter.
    pub interpreter: Interpreter,
    /// The C library that it has mapped.
    pub c_library: Option<MappedFile>,
    /// How far below the thread pointer `pthread_self` is there; 0 where it is not known, which is right on x86-64.
    pub thread_self_distance: u32,
}

impl Target {
    /// Looks at process `pid` below `proc_root` (`/proc`).
    pub fn inspect(proc_root: &Path, pid: u32) -> Result<Self, DiscoverError> {
        Self::inspect_with(&mut Files::default(), proc_root, pid)
    }

    /// The same, for one who looks at many: `files` keeps what is known of those that were read.
    pub fn inspect_with(files: &mut Files, proc_root: &Path, pid: u32) -> Result<Self, DiscoverError> {
        let known = files;
        let mapped = mappings(proc_root, pid).map_err(|source| read_error(proc_root, pid, "maps", source))?;
        let command = command_line(proc_root, pid);
        let files = mapped_files(proc_root, pid, &mapped);
        let mut interpreter = None;
        for (file, mapping) in candidates(&files) {
            if let Some(found) = look_into(known, pid, file, mapping)? {
                interpreter = Some(found);
                break;
            }
        }
        let interpreter =
            interpreter.ok_or_else(|| DiscoverError::NotPython { pid, command: command.clone() })?;
        let c_library = files.iter().find_map(|(file, mapping)| {
            let name = file.name.rsplit('/').next()?;
            let is_c_library =
                name.starts_with("libc.so") || name.starts_with("libc-") || name.starts_with("ld-musl");
            is_c_library.then(|| with_bias(file, mapping)).flatten()
        });
        let thread_self_distance = match c_library.as_ref().map(|file| std::fs::read(&file.path)) {
            None => 0,
            // The file is named by what maps it: the process has ended, or become another program.
            Some(Err(source)) if !mappings(proc_root, pid).is_ok_and(|now| now == mapped) => {
                let path = proc_root.join(pid.to_string()).join("map_files");
                return Err(DiscoverError::Read { path, source });
            }
            Some(read) => known_distance(&c_library, &read.unwrap_or_default()),
        };
        Ok(Self { pid, command, interpreter, c_library, thread_self_distance })
    }
}

impl Target {
    /// What a copy of this process is: `pid` is its fork, and has not run another program since.
    #[must_use]
    pub fn of_fork(&self, pid: u32) -> Self {
        let mut child = self.clone();
        child.interpreter.file = self.interpreter.file.of_fork(self.pid, pid);
        child.c_library = self.c_library.as_ref().map(|file| file.of_fork(self.pid, pid));
        child.pid = pid;
        child
    }
}

/// Without the distance threads cannot prove themselves, so stacks of malloc blocks are missing (`end::FOREIGN_THREAD`): said once.
fn known_distance(c_library: &Option<MappedFile>, bytes: &[u8]) -> u32 {
    thread_self_distance(bytes).unwrap_or_else(|error| {
        let file = c_library.as_ref().map_or("", |file| &file.name);
        tracing::warn!(file, %error, "memory from malloc will have no Python stacks");
        0
    })
}

fn read_error(proc_root: &Path, pid: u32, what: &str, source: io::Error) -> DiscoverError {
    match source.kind() {
        io::ErrorKind::NotFound => DiscoverError::NoProcess { pid },
        io::ErrorKind::PermissionDenied => DiscoverError::NotAllowed { pid },
        // ESRCH: it ended while it was being read.
        _ if source.raw_os_error() == Some(3) => DiscoverError::NoProcess { pid },
        _ => DiscoverError::Read { path: proc_root.join(pid.to_string()).join(what), source },
    }
}

/// Arguments joined by spaces; the name in brackets for a process without any.
fn command_line(proc_root: &Path, pid: u32) -> String {
    let folder = proc_root.join(pid.to_string());
    let bytes = std::fs::read(folder.join("cmdline")).unwrap_or_default();
    let arguments: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let line = arguments.join(" ").trim_end().to_owned();
    if line.is_empty() {
        let name = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
        return format!("[{}]", name.trim_end());
    }
    line
}

/// Files mapped with their first mapping, each once.
fn mapped_files(proc_root: &Path, pid: u32, mapped: &[Mapping]) -> Vec<(MappedFile, Mapping)> {
    let mut files: Vec<(MappedFile, Mapping)> = Vec::new();
    for mapping in mapped.iter().filter(|mapping| mapping.inode != 0 && mapping.name.starts_with('/')) {
        if files.iter().any(|(_, first)| first.inode == mapping.inode && first.name == mapping.name) {
            continue;
        }
        let path = path_of(&proc_root.join(pid.to_string()), mapping);
        files.push((MappedFile { path, name: mapping.name.clone(), bias: 0 }, mapping.clone()));
    }
    files
}

/// A path that leads to the mapped file from here. Names in `maps` count from the target's root where that is the root of a mount
/// namespace, as in a container, and from ours where it is not (`d_path` and `prepend_path` in fs/d_path.c): after a plain `chroot`. The
/// link in `map_files` leads to the very file in any case, but reading it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
pub(crate) fn path_of(folder: &Path, mapping: &Mapping) -> PathBuf {
    let link = folder.join("map_files").join(format!("{:x}-{:x}", mapping.start, mapping.end));
    if mapping.name.ends_with(" (deleted)") {
        return link;
    }
    let inside = folder.join("root").join(mapping.name.trim_start_matches('/'));
    let is_it = |path: &Path| path.metadata().is_ok_and(|file| file.ino() == mapping.inode);
    if is_it(&inside) || !link.exists() { inside } else { link }
}

/// The files that may hold an interpreter, the likeliest first: libpython, then the executable (the first mapping in most
/// processes), then everything else that is not a well-known other library.
fn candidates(files: &[(MappedFile, Mapping)]) -> impl Iterator<Item = &(MappedFile, Mapping)> {
    let named = |part: &'static str| {
        move |entry: &&(MappedFile, Mapping)| {
            entry.0.name.rsplit('/').next().is_some_and(|name| name.contains(part))
        }
    };
    files
        .iter()
        .filter(named("libpython"))
        .chain(files.iter().take(1).filter(move |entry| !named("libpython")(entry)))
}

fn with_bias(file: &MappedFile, mapping: &Mapping) -> Option<MappedFile> {
    let bytes = std::fs::read(&file.path).ok()?;
    let elf = Elf::parse(&bytes).ok()?;
    let bias = mapping.start.wrapping_sub(elf.address_of(FileOffset(mapping.offset))?);
    Some(MappedFile { bias, ..file.clone() })
}

/// The interpreter in a file, if there is one.
fn look_into(
    files: &mut Files,
    pid: u32,
    file: &MappedFile,
    mapping: &Mapping,
) -> Result<Option<Interpreter>, DiscoverError> {
    let facts = files.facts(&file.path, mapping.offset, || {
        let bytes = std::fs::read(&file.path).map_err(|source| file_error(pid, &file.path, source))?;
        facts(pid, &file.name, mapping.offset, &bytes)
    })?;
    let Some(Facts { version, layout, runtime, first }) = facts else { return Ok(None) };
    let bias = mapping.start.wrapping_sub(first);
    let file = MappedFile { bias, ..file.clone() };
    Ok(Some(Interpreter { file, version, layout, runtime: runtime.wrapping_add(bias) }))
}

fn file_error(pid: u32, path: &Path, source: io::Error) -> DiscoverError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => DiscoverError::NotAllowed { pid },
        // What its memory maps cannot be gone unless the process is.
        io::ErrorKind::NotFound if !Path::new("/proc").join(pid.to_string()).join("maps").exists() => {
            DiscoverError::NoProcess { pid }
        }
        _ => DiscoverError::Read { path: path.to_owned(), source },
    }
}

/// What a file says of the interpreter in it; `offset`: where in it a process's mapping begins.
fn facts(pid: u32, name: &str, offset: u64, bytes: &[u8]) -> Result<Option<Facts>, DiscoverError> {
    let Ok(elf) = Elf::parse(bytes) else { return Ok(None) };
    let Some(runtime) = elf.symbol("_PyRuntime") else {
        // Before 3.7 there is none.
        let version = elf.symbol("Py_GetVersion").and_then(|_| old_version(bytes));
        return version.map_or(Ok(None), |version| Err(DiscoverError::UnsupportedVersion { pid, version }));
    };
    let Some(first) = elf.address_of(FileOffset(offset)) else { return Ok(None) };
    let unknown = || DiscoverError::UnknownVersion { file: name.into() };
    let version = match version_word(&elf, bytes) {
        Some(word) if !is_released(word) => {
            return Err(DiscoverError::PreRelease { pid, version: full_version(word) });
        }
        Some([_, micro, minor, major]) => Version { major, minor, micro: Some(micro) },
        None => version_of_folder(&elf).ok_or_else(unknown)?,
    };
    let row =
        layout(version.major, version.minor).ok_or(DiscoverError::UnsupportedVersion { pid, version })?;
    let row = match elf.machine() {
        Machine::Aarch64 => row.on_arm64(),
        _ => *row,
    };
    let table =
        elf.offset_of(runtime.address).and_then(|offset| bytes.get(usize::try_from(offset.0).ok()?..));
    let layout = row.with_published(table.unwrap_or_default()).map_err(|source| match source {
        PublishedError::FreeThreaded => DiscoverError::FreeThreaded { pid, version },
        source => DiscoverError::Published { file: name.into(), version, source },
    })?;
    Ok(Some(Facts { version, layout, runtime: runtime.address, first }))
}

/// `Py_Version` (Python/getversion.c), 3.11 and later: level and serial, micro, minor, major.
fn version_word(elf: &Elf<'_>, bytes: &[u8]) -> Option<[u8; 4]> {
    let symbol = elf.symbol("Py_Version")?;
    let at = usize::try_from(elf.offset_of(symbol.address)?.0).ok()?;
    bytes.get(at..)?.first_chunk::<4>().copied()
}

/// `PY_RELEASE_LEVEL_FINAL` is 15 (Include/patchlevel.h).
fn is_released([level, ..]: [u8; 4]) -> bool {
    level >> 4 == 15
}

/// With level and serial, as `PY_VERSION` has it.
fn full_version([level, micro, minor, major]: [u8; 4]) -> String {
    let name = match level >> 4 {
        10 => "a",
        11 => "b",
        12 => "rc",
        _ => "?",
    };
    format!("{major}.{minor}.{micro}{name}{}", level & 15)
}

/// Before 3.11 the name of the folder of the standard library has it (`VERSION` in Modules/getpath.c); the full version is
/// spelled out in instructions there.
fn version_of_folder(elf: &Elf<'_>) -> Option<Version> {
    let text = elf.section(".rodata")?;
    text.bytes.split(|byte| *byte == 0).find_map(|string| {
        let version = folder_version(string.strip_prefix(b"lib/").unwrap_or(string))?;
        matches!((version.major, version.minor), (3, 7..=10)).then_some(version)
    })
}

/// The version in the name of the standard library's folder, `python3.8`.
fn folder_version(name: &[u8]) -> Option<Version> {
    let (major, minor) = std::str::from_utf8(name.strip_prefix(b"python")?).ok()?.split_once('.')?;
    Some(Version { major: major.parse().ok()?, minor: minor.parse().ok()?, micro: None })
}

/// The version of an interpreter from before 3.7, which keeps that name in memory that can be written.
fn old_version(bytes: &[u8]) -> Option<Version> {
    const FOLDER: &[u8] = b"lib/python";
    let starts = bytes.windows(FOLDER.len()).enumerate().filter(|(_, window)| *window == FOLDER);
    starts
        .filter_map(|(at, _)| bytes[at + 4..].split(|byte| *byte == 0).next().and_then(folder_version))
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_not_python() {
        let pid = std::process::id();
        let error = Target::inspect(Path::new("/proc"), pid).unwrap_err();
        assert!(matches!(error, DiscoverError::NotPython { .. }), "{error}");
    }

    #[test]
    fn versions_from_before_3_7() {
        let found = old_version(b"\0lib/pythonic\0lib/python2.7\0").map(|version| version.to_string());
        assert_eq!(found.as_deref(), Some("2.7"));
        assert_eq!(old_version(b"python3.6 lib/pytho"), None);
    }

    /// `PY_VERSION_HEX` as it lies in memory: level and serial first.
    #[test]
    fn releases_are_told_from_pre_releases() {
        let versions = [0x030f_00b4_u32, 0x030e_00a7, 0x030d_00c2, 0x030f_01f0].map(u32::to_le_bytes);
        assert_eq!(versions.map(is_released), [false, false, false, true]);
        assert_eq!(versions.map(full_version)[..3], ["3.15.0b4", "3.14.0a7", "3.13.0rc2"]);
    }

    /// Names in `maps` may be those of another root; the inode tells.
    #[test]
    fn a_file_is_where_its_inode_is() {
        let folder = tempfile::tempdir().unwrap();
        for part in ["root/usr", "map_files"] {
            std::fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        let (named, link) =
            (folder.path().join("root/usr/python"), folder.path().join("map_files/1000-2000"));
        std::fs::write(&named, "another").unwrap();
        std::fs::write(&link, "the very file").unwrap();
        let mut mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            readable: true,
            writable: false,
            executable: true,
            offset: 0,
            inode: named.metadata().unwrap().ino(),
            name: "/usr/python".to_owned(),
        };
        assert_eq!(path_of(folder.path(), &mapping), named);
        mapping.inode = link.metadata().unwrap().ino();
        assert_eq!(path_of(folder.path(), &mapping), link);
        std::fs::remove_file(&link).unwrap();
        assert_eq!(path_of(folder.path(), &mapping), named, "without the right to read links");
    }

    #[test]
    fn a_process_that_is_not_there() {
        // Above the largest number that Linux gives.
        let error = Target::inspect(Path::new("/proc"), 1 << 30).unwrap_err();
        assert!(error.to_string().contains("no process 1073741824"), "{error}");
    }
}
