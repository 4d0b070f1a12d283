//! Which of the files that a process runs code from have an allocator, by the symbols that they define.
//!
//! All of them count, also one whose functions another file's go before: where nothing calls them, nothing is counted, and who calls
//! whom may change while the process runs (`dlopen`, `dlsym`, `RTLD_DEEPBIND`). What is hidden and stripped is not found. It must not
//! know probe points.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{FileHeader64, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC, STT_NOTYPE, Sym64};
use object::read::elf::{FileHeader as _, SectionHeader as _, Sym as _};
use object::read::{ReadCache, ReadRef};

use super::memory::mappings;
use super::target::{path_of, path_of_fork};
use crate::plan::Families;

/// The largest table of symbols or of their names that is looked at, in bytes: the tracer's memory is bounded, whatever a file says.
/// Tables past it are those of the debug builds of the largest libraries.
const LARGEST_TABLE: u64 = 16 << 20;

/// A file with an allocator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MallocFile {
    /// A path that leads to the very file; see [`super::MappedFile`].
    pub path: PathBuf,
    /// The name that the process knows it by.
    pub name: String,
}

impl MallocFile {
    /// The same file in a process `child` that is a copy of process `parent`.
    #[must_use]
    pub fn of_fork(&self, parent: u32, child: u32) -> Self {
        Self { path: path_of_fork(&self.path, parent, child), name: self.name.clone() }
    }
}

/// Looks for allocators in one process, at each file once.
#[derive(Debug, Clone, Default)]
pub struct MallocSearch {
    /// Inode and name.
    seen: HashSet<(u64, String)>,
    /// How much memory the process could execute at the last look, KiB.
    executable: Option<u64>,
}

impl MallocSearch {
    /// The files with an allocator among those mapped as code since the last call, by address.
    ///
    /// # Errors
    /// When the mappings cannot be read. A file that cannot be read has no allocator that could be armed, and is passed over.
    pub fn new_files(&mut self, proc_root: &Path, pid: u32) -> io::Result<Vec<MallocFile>> {
        let folder = proc_root.join(pid.to_string());
        let mut found = Vec::new();
        let before = std::mem::replace(&mut self.executable, executable_memory(&folder));
        if before.is_some() && before == self.executable {
            return Ok(found);
        }
        for mapping in mappings(proc_root, pid)? {
            let is_code = mapping.executable && mapping.inode != 0 && mapping.name.starts_with('/');
            if !is_code || !self.seen.insert((mapping.inode, mapping.name.clone())) {
                continue;
            }
            let path = path_of(&folder, &mapping);
            match open(&path).map(|file| has_malloc(&ReadCache::new(file))) {
                Ok(true) => found.push(MallocFile { path, name: mapping.name }),
                Ok(false) => {}
                Err(error) => tracing::debug!(file = mapping.name, %error, "not looked at for an allocator"),
            }
        }
        Ok(found)
    }
}

/// `VmLib` of `/proc/PID/status`: what can be executed besides the program itself (`task_mem` in fs/proc/task_mmu.c). Code that has
/// been mapped since changes it. To read it takes 40 us; the mappings take 3 ms where a process has 1,000.
fn executable_memory(folder: &Path) -> Option<u64> {
    let status = std::fs::read_to_string(folder.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLib:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Opens what may be anything by now, a pipe or a device, without waiting for it.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

/// Whether an ELF file defines an allocator. Only its tables of symbols are read: files may have hundreds of megabytes.
fn has_malloc<'data>(data: impl ReadRef<'data>) -> bool {
    any_families(Bounded(data)).unwrap_or(false)
}

fn any_families<'data>(data: impl ReadRef<'data>) -> object::read::Result<bool> {
    let mut families = Families::default();
    let header = FileHeader64::<LittleEndian>::parse(data)?;
    let endian = header.endian()?;
    let sections = header.section_headers(endian, data)?;
    for table in sections.iter().filter(|section| matches!(section.sh_type(endian), SHT_DYNSYM | SHT_SYMTAB))
    {
        let Some(names) = sections.get(table.sh_link(endian) as usize) else { continue };
        // A table that does not hold together defines nothing.
        let (Ok(names), Ok(symbols)) =
            (names.data(endian, data), table.data_as_array::<Sym64<LittleEndian>, _>(endian, data))
        else {
            continue;
        };
        for symbol in symbols {
            let is_code = matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE);
            if is_code && symbol.st_shndx(endian) != SHN_UNDEF {
                families.take(text_at(names, symbol.st_name(endian)));
            }
        }
        if families.any() {
            break;
        }
    }
    Ok(families.any())
}

/// The name at an offset, as far as any name is looked at; a long one is no allocator's.
fn text_at(names: &[u8], offset: u32) -> &[u8] {
    let from = names.get(offset as usize..).unwrap_or_default();
    let from = &from[..from.len().min(Families::LONGEST_NAME + 1)];
    from.iter().position(|byte| *byte == 0).map_or(from, |end| &from[..end])
}

/// A file of which no piece is read that no sound file has.
#[derive(Clone, Copy)]
struct Bounded<R>(R);

impl<'data, R: ReadRef<'data>> ReadRef<'data> for Bounded<R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        if size > LARGEST_TABLE {
            return Err(());
        }
        self.0.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_of_this_process_is_found_once() {
        let mut search = MallocSearch::default();
        let found = search.new_files(Path::new("/proc"), std::process::id()).unwrap();
        let names: Vec<_> = found.iter().filter_map(|file| file.name.rsplit('/').next()).collect();
        assert_eq!(names, ["libc.so.6"]);
        assert_eq!(search.new_files(Path::new("/proc"), std::process::id()).unwrap(), []);
    }

    /// A process that maps a library while it runs, in a folder that looks like `/proc`.
    #[test]
    fn mappings_are_read_again_when_there_is_more_code() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("7");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink("/", folder.join("root")).unwrap();
        let map = |kib: u32, lines: &[String]| {
            std::fs::write(folder.join("status"), format!("Name:\tx\nVmLib:\t  {kib} kB\n")).unwrap();
            std::fs::write(folder.join("maps"), lines.concat()).unwrap();
        };
        let own = std::fs::read_to_string("/proc/self/maps").unwrap();
        let library = own.lines().find(|line| line.ends_with("libc.so.6") && line.contains("r-x")).unwrap();
        let library = format!("{library}\n");
        let mut search = MallocSearch::default();
        map(100, &[]);
        assert_eq!(search.new_files(root.path(), 7).unwrap(), []);
        map(100, std::slice::from_ref(&library));
        assert_eq!(search.new_files(root.path(), 7).unwrap(), [], "as much code as before");
        map(104, std::slice::from_ref(&library));
        assert_eq!(search.new_files(root.path(), 7).unwrap().len(), 1);
        map(108, &[library]);
        assert_eq!(search.new_files(root.path(), 7).unwrap(), []);
    }

    #[test]
    fn a_damaged_file_has_no_allocator() {
        let library = std::fs::read("/proc/self/maps").unwrap();
        assert!(!has_malloc(&library[..]), "text");
        let text = String::from_utf8(library).unwrap();
        let path = text.split_whitespace().find(|word| word.ends_with("libc.so.6")).unwrap();
        let whole = std::fs::read(path).unwrap();
        assert!(has_malloc(&whole[..]));
        for length in (0..whole.len()).step_by(whole.len() / 200) {
            has_malloc(&whole[..length]);
            let mut damaged = whole.clone();
            damaged[length..].iter_mut().step_by(13).for_each(|byte| *byte = !*byte);
            has_malloc(&damaged[..]);
        }
    }

    #[test]
    fn pieces_that_are_too_large_are_not_read() {
        let bytes = [0; 8];
        assert_eq!(Bounded(&bytes[..]).read_bytes_at(0, 8), Ok(&bytes[..]));
        assert_eq!(Bounded(&bytes[..]).read_bytes_at(0, LARGEST_TABLE + 1), Err(()));
    }

    #[test]
    fn names_end_at_a_zero_or_where_the_table_does() {
        assert_eq!(text_at(b"\0malloc\0free", 1), b"malloc");
        assert_eq!(text_at(b"\0malloc\0free", 8), b"free");
        assert_eq!(text_at(b"\0", 9), b"");
    }
}
