//! Where output goes: a file that appears whole or not at all, or a stream.
//!
//! It must not know formats.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::OutputError;

/// Most symbolic links that are followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// A place for output.
#[derive(Debug)]
enum Destination {
    /// Our standard output.
    StandardOutput,
    /// A pipe, a device, another open file: written to as it is.
    Stream(PathBuf),
    /// A file, at the end of all symbolic links, that is replaced as a whole.
    File(PathBuf),
}

/// Writes to `path` what `produce` produces. A file is replaced only when everything has been written; until then,
/// and after an error, it is what it was.
///
/// # Errors
/// Those of `produce`, and when the file cannot be written.
pub(super) fn write(
    path: &Path,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    match Destination::of(path)? {
        Destination::StandardOutput => to_stream(io::stdout().lock(), produce),
        Destination::Stream(path) => to_stream(open_stream(&path)?, produce),
        Destination::File(path) => {
            let mut temporary = temporary_beside(&path)?;
            to_stream(temporary.as_file_mut(), produce)?;
            take_over_attributes(&path, temporary.as_file());
            let persisted = temporary.persist(&path).map_err(|error| error.error);
            persisted.map(drop).map_err(|source| OutputError::Create { path, source })
        }
    }
}

/// Finds out whether [`write`] could succeed, and leaves nothing behind.
///
/// # Errors
/// What [`write`] would say.
pub(super) fn check(path: &Path) -> Result<(), OutputError> {
    match Destination::of(path)? {
        // Opening a pipe would wait for its reader; what is wrong with a stream shows when it is written.
        Destination::StandardOutput | Destination::Stream(_) => Ok(()),
        Destination::File(path) => temporary_beside(&path).map(drop),
    }
}

impl Destination {
    fn of(path: &Path) -> Result<Self, OutputError> {
        // By name and not by what they lead to: with `>> log`, replacing the file behind them would lose it.
        if ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name)) {
            return Ok(Self::StandardOutput);
        }
        let descriptors = ["/dev/stderr", "/dev/fd", "/proc/self/fd"];
        if descriptors.iter().any(|folder| path.starts_with(folder)) {
            return Ok(Self::Stream(path.to_owned()));
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(OutputError::Directory { path: path.to_owned() }),
            Ok(metadata) if metadata.is_file() => {
                let open = OpenOptions::new().write(true).open(path);
                open.map_err(|source| OutputError::Create { path: path.to_owned(), source })?;
                resolve(path).map(Self::File)
            }
            Ok(metadata) if metadata.file_type().is_socket() => {
                Err(OutputError::Socket { path: path.to_owned() })
            }
            Ok(_) => Ok(Self::Stream(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => resolve(path).map(Self::File),
            Err(source) => Err(OutputError::Create { path: path.to_owned(), source }),
        }
    }
}

/// Follows symbolic links to the file, which need not exist: the file is replaced, the links stay.
fn resolve(path: &Path) -> Result<PathBuf, OutputError> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder(&path).join(target),
            Err(_) => return Ok(path),
        }
    }
    let source = io::Error::other("too many levels of symbolic links");
    Err(OutputError::Create { path, source })
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// In the same folder, because only within one file system is a rename atomic.
fn temporary_beside(path: &Path) -> Result<NamedTempFile, OutputError> {
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(OutputError::Directory { path: path.to_owned() });
    }
    let created = tempfile::Builder::new()
        .prefix(".alloctrace-")
        // As for any new file: everybody may, less the umask.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder(path));
    created.map_err(|error| OutputError::Folder {
        folder: folder(path).to_owned(),
        source: without_its_name(&error),
    })
}

/// The crate adds the name that it made up, which says nothing to whoever asked for another.
fn without_its_name(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let cause = text.split_once(" at path ").map_or(&*text, |(cause, _)| cause);
    io::Error::new(error.kind(), cause.to_owned())
}

/// A file that is replaced keeps its mode, and its owner where we may give files away.
fn take_over_attributes(path: &Path, file: &File) {
    let Ok(existing) = fs::metadata(path) else { return };
    // Neither is worth losing a recording for.
    let _ = fchown(file, Some(existing.uid()), Some(existing.gid()));
    let _ = file.set_permissions(existing.permissions());
}

fn open_stream(path: &Path) -> Result<File, OutputError> {
    let open = OpenOptions::new().write(true).open(path);
    open.map_err(|source| OutputError::Create { path: path.to_owned(), source })
}

fn to_stream(
    stream: impl Write,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    let mut writer = BufWriter::with_capacity(1 << 16, stream);
    let result = produce(&mut writer).and_then(|()| writer.flush().map_err(OutputError::Write));
    if result.is_err() {
        // What is left in the buffer of an output that failed must not be written on drop.
        let _ = writer.into_parts();
    }
    result
}
