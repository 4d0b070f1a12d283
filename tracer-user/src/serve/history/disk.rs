//! What the history does to its folder, one step after the other.
//!
//! A file appears whole or not at all: it is written beside its place, forced to the disk, and moved there. Each step that changes anything asks first, so that tests
//! can look at what a crash there would leave, or have it fail. It must not know profiles or names' meanings.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::{HistoryError, name::BROKEN};

/// What files that are being written are called at first; whoever finds one later may remove it.
const TEMPORARY: &str = ".alloctrace-";

/// Asked before each step; an error stands for that of the step.
pub type BeforeStep = Box<dyn Fn(&'static str) -> io::Result<()> + Send + Sync>;

/// A folder that is changed in steps.
pub struct Disk {
    folder: PathBuf,
    before_step: Option<BeforeStep>,
}

/// Nobody else uses the folder.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close it is not enough: a process that is being started has it open too, until it is another program.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// What it is called.
    pub name: String,
    /// How large it is.
    pub bytes: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub written: i128,
    /// When it was last written or renamed, in nanoseconds since 1970.
    pub changed: i128,
}

/// What was read.
#[derive(Debug)]
pub enum Contents {
    /// The whole file.
    Bytes(Vec<u8>),
    /// It has more bytes than anybody asked for.
    TooLarge,
    /// There is no such file (any more).
    Gone,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Disk").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Puts what was done with which file to the reason why it failed.
pub fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HistoryError {
    let path = path.to_owned();
    move |source| HistoryError::File { what, path, source }
}

impl Disk {
    /// `folder` need not exist.
    pub fn new(folder: &Path, before_step: Option<BeforeStep>) -> Self {
        Self { folder: folder.to_owned(), before_step }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn step(&self, what: &'static str) -> io::Result<()> {
        self.before_step.as_ref().map_or(Ok(()), |before| before(what))
    }

    /// Makes a folder in ours, or ours itself, that only its owner may look into: names of a service's code are in it.
    pub fn make_folder(&self, folder: &Path) -> Result<(), HistoryError> {
        let made = self
            .step("make a folder")
            .and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(folder));
        made.map_err(failed("make the folder", folder))
    }

    /// Makes ours the only process that uses the folder, until the lock is dropped or the process ends in whatever way.
    pub fn lock(&self) -> Result<Lock, HistoryError> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(HistoryError::InUse { folder: self.folder.clone() }),
            Err(error) => Err(failed("lock", &path)(error.into())),
        }
    }

    /// The files of a folder, without those in folders in it and those whose names are no text: none of these is ours.
    pub fn list(&self, folder: &Path) -> Result<Vec<Listed>, HistoryError> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
            let entry = entry.map_err(failed("list", folder))?;
            let (Ok(name), path) = (entry.file_name().into_string(), entry.path()) else { continue };
            // Not that of what a link leads to. One that is gone by now is not there.
            let Ok(metadata) = entry.metadata() else { continue };
            let time = |seconds: i64, nanoseconds: i64| {
                i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
            };
            if metadata.is_file() {
                let written = time(metadata.mtime(), metadata.mtime_nsec());
                let changed = time(metadata.ctime(), metadata.ctime_nsec());
                files.push(Listed { path, name, bytes: metadata.len(), written, changed });
            }
        }
        Ok(files)
    }

    /// Reads a file of at most so many bytes.
    pub fn read(&self, path: &Path, most_bytes: u64) -> Result<Contents, HistoryError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::Gone),
            Err(error) => return Err(failed("open", path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(most_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(failed("read", path))?;
        Ok(if bytes.len() as u64 > most_bytes { Contents::TooLarge } else { Contents::Bytes(bytes) })
    }

    /// Writes a file whole or not at all; after an error there is none.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), HistoryError> {
        let folder = path.parent().unwrap_or(&self.folder);
        let mut file = self
            .step("create a file")
            .and_then(|()| tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder))
            .map_err(failed("create a file in", folder))?;
        self.step("write")
            .and_then(|()| file.as_file_mut().write_all(bytes))
            .map_err(failed("write", path))?;
        // The kernel's own time is that of its latest tick, by which two files may be alike. Without this they still are, and no worse.
        let _ = file.as_file().set_modified(SystemTime::now());
        self.step("sync").and_then(|()| file.as_file().sync_all()).map_err(failed("write", path))?;
        self.step("move")
            .and_then(|()| file.persist(path).map_err(|error| error.error))
            .map_err(failed("create", path))?;
        self.sync(folder).inspect_err(|_| {
            // Nobody may believe that it is there. If this fails as well, it is there, and nothing is lost by that.
            let _ = std::fs::remove_file(path);
        })
    }

    /// Forces to the disk which files are in a folder.
    pub fn sync(&self, folder: &Path) -> Result<(), HistoryError> {
        let synced = self.step("sync a folder").and_then(|()| File::open(folder)?.sync_all());
        synced.map_err(failed("sync the folder", folder))
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, path: &Path) -> Result<(), HistoryError> {
        match self.step("remove").and_then(|()| std::fs::remove_file(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(failed("remove", path)),
        }
    }

    /// Moves a file within ours; false if it is not there.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<bool, HistoryError> {
        match self.step("rename").and_then(|()| std::fs::rename(from, to)) {
            // And not the folder to which it goes.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(false),
            done => done.map(|()| true).map_err(failed("rename", from)),
        }
    }

    /// Gives a file that is no profile a name that says so, if it is there.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf, HistoryError> {
        let aside = PathBuf::from([path.as_os_str(), BROKEN.as_ref()].into_iter().collect::<OsString>());
        self.rename(path, &aside).map(|_| aside)
    }
}

/// Whether a file was being written when its process ended.
pub fn is_left_over(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}
