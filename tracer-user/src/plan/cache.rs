//! Plans kept between runs, by build id and file size.
//!
//! Why: planning an interpreter costs tens of milliseconds of processor time, and a host has few different files. A cache file says
//! where breakpoints go, so it is trusted only if it is ours, of this format and sound; otherwise it is as if it were not there.
//! This is the one file of the stage that does I/O. It must not know how a plan is made.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::elf::Elf;
use super::{
    InterpreterPlan, Plan, PlanError, PointKind, Register, plan_free_threaded, plan_interpreter, plan_malloc,
    plan_with_mimalloc,
};

/// Raised with every change of the format *or of what the finders find*: an old plan must not outlive them.
const FORMAT: u32 = 13;
/// A plan of 254 points takes about 40 KB; anything longer is not ours.
const LONGEST_ENTRY: u64 = 4 << 20;
/// What an interpreter's entries are called by.
const INTERPRETER: &str = "interpreter";
/// Build ids are 20 bytes with GNU ld and 8 or 16 with others; a longer one would make a long file name.
const LONGEST_BUILD_ID: usize = 64;

/// A directory of plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanCache {
    directory: PathBuf,
}

impl PlanCache {
    /// A cache in `directory`, which is created when the first plan is stored.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The usual place: `/var/cache/alloctrace` for root, or else `$XDG_CACHE_HOME/alloctrace` or `~/.cache/alloctrace`.
    ///
    /// Root does not follow the environment: `sudo` may hand over a directory in which somebody else can write.
    pub fn usual() -> Option<Self> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        match own_user()? {
            0 => Some(Self::at("/var/cache/alloctrace")),
            _ => variable("XDG_CACHE_HOME")
                .or_else(|| Some(variable("HOME")?.join(".cache")))
                .map(|base| Self::at(base.join("alloctrace"))),
        }
    }

    /// Where the plans lie; the directory may not exist yet.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a plan could be stored; leaves an empty directory behind, and nothing else.
    ///
    /// # Errors
    /// What keeps it from being stored.
    pub fn check(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        tempfile::NamedTempFile::new_in(&self.directory).map(drop)
    }

    /// The plan of an interpreter if it is in the cache: what does not take long.
    pub fn known_interpreter(&self, file: &[u8]) -> Option<InterpreterPlan> {
        self.load(&Key::of(file, INTERPRETER).ok()??)
    }

    /// The plan of an interpreter: from the cache, or made and stored.
    pub fn interpreter(&self, file: &[u8]) -> Result<InterpreterPlan, PlanError> {
        self.find_or_make(file, INTERPRETER, plan_interpreter)
    }

    /// The plan of a free-threaded interpreter: from the cache, or made and stored.
    pub fn free_threaded(&self, file: &[u8]) -> Result<InterpreterPlan, PlanError> {
        self.find_or_make(file, "free-threaded", plan_free_threaded)
    }

    /// The plan of an interpreter with a lock and of its mimalloc: from the cache, or made and stored.
    pub fn with_mimalloc(&self, file: &[u8]) -> Result<InterpreterPlan, PlanError> {
        self.find_or_make(file, "interpreter-mimalloc", plan_with_mimalloc)
    }

    /// The plan of a file with an allocator: from the cache, or made and stored.
    pub fn malloc(&self, file: &[u8]) -> Result<Plan, PlanError> {
        self.find_or_make(file, "malloc", plan_malloc)
    }

    fn find_or_make<T: Cached>(
        &self,
        file: &[u8],
        purpose: &str,
        make: impl FnOnce(&[u8]) -> Result<T, PlanError>,
    ) -> Result<T, PlanError> {
        let Some(key) = Key::of(file, purpose)? else { return make(file) };
        if let Some(known) = self.load(&key) {
            return Ok(known);
        }
        let plan = make(file)?;
        if let Err(error) = self.store(&key, &plan) {
            tracing::debug!(directory = %self.directory.display(), %error, "failed to store a plan; it is made again next time");
        }
        Ok(plan)
    }

    /// The stored plan; none if there is none that can be trusted.
    fn load<T: Cached>(&self, key: &Key) -> Option<T> {
        let path = self.directory.join(key.file_name());
        let refused = |why| tracing::debug!(path = %path.display(), why, "ignored a cached plan");
        let bytes = read_own(&path).map_err(|error| refused(error.to_string())).ok()?;
        let entry: Entry<T> =
            serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string())).ok()?;
        let sound = entry.format == FORMAT && entry.key == *key && entry.plan.is_sound(key.file_size);
        if !sound {
            refused("it is of another format or file, or does not hold together".to_owned());
        }
        sound.then_some(entry.plan)
    }

    /// Writes beside and renames, so that a reader sees the whole entry or none.
    fn store<T: Serialize>(&self, key: &Key, plan: &T) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(&serde_json::to_vec(&Entry { format: FORMAT, key: key.clone(), plan })?)?;
        file.persist(self.directory.join(key.file_name())).map(drop).map_err(|failed| failed.error)
    }
}

/// What a plan is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    build_id: String,
    file_size: u64,
    purpose: String,
}

impl Key {
    /// The key of a file; none if it has no build id that could tell it from others.
    fn of(file: &[u8], purpose: &str) -> Result<Option<Self>, PlanError> {
        let build_id = Elf::parse(file)?.build_id();
        Ok(build_id.filter(|id| (1..=LONGEST_BUILD_ID).contains(&id.len())).map(|id| Self {
            build_id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            file_size: file.len() as u64,
            purpose: purpose.to_owned(),
        }))
    }

    fn file_name(&self) -> String {
        format!("{}-{}-{}.json", self.build_id, self.file_size, self.purpose)
    }
}

/// The contents of one cache file.
#[derive(Serialize, Deserialize)]
struct Entry<T> {
    format: u32,
    key: Key,
    plan: T,
}

/// What can be cached.
trait Cached: Serialize + DeserializeOwned {
    /// Whether it could be the plan of a file of that size.
    fn is_sound(&self, file_size: u64) -> bool;
}

impl Cached for Plan {
    fn is_sound(&self, file_size: u64) -> bool {
        let sorted = self.points.is_sorted_by(|first, second| first.offset < second.offset);
        sorted && self.points.iter().all(|point| point.offset.0 < file_size && names_registers(point.kind))
    }
}

impl Cached for InterpreterPlan {
    fn is_sound(&self, file_size: u64) -> bool {
        self.plan.is_sound(file_size)
    }
}

fn names_registers(kind: PointKind) -> bool {
    let exists = |register: Register| register.0 <= 31;
    match kind {
        PointKind::Pop { block, pool }
        | PointKind::PopIndirect { block, pool }
        | PointKind::NewPoolBranch { block, pool } => exists(block.register) && exists(pool),
        PointKind::PagePop { block, page, .. } => exists(block.register) && exists(page),
        PointKind::Push { block } | PointKind::PushIndirect { block } => exists(block.register),
        PointKind::NewPoolReturn | PointKind::Malloc(_) => true,
    }
}

/// Reads a file that nobody else could have written.
fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !is_own(&metadata) {
        return Err(io::Error::other("not a file of our own that only we can write"));
    }
    read_at_most(file, LONGEST_ENTRY)
}

fn is_own(metadata: &Metadata) -> bool {
    metadata.is_file() && own_user() == Some(metadata.uid()) && metadata.mode() & 0o022 == 0
}

/// The user this process acts as: the kernel makes it the owner of the process's own directory (proc(5), unless it is undumpable,
/// and then the owner is root, which makes the files of anybody else untrusted: the safe side).
fn own_user() -> Option<u32> {
    std::fs::metadata("/proc/self").ok().map(|metadata| metadata.uid())
}

fn read_at_most(file: File, longest: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(longest + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > longest {
        true => Err(io::Error::other(format!("longer than {longest} bytes"))),
        false => Ok(bytes),
    }
}
