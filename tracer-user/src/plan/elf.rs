//! A small checked view of an ELF64 little-endian file: code, addresses, symbols, build id, function extents.
//!
//! Why: several stages ask the same few questions of a file, and every file is hostile; the checks live here once.
//! It must not know what the code means (that is `x86`, `malloc`) nor where the bytes came from.

use gimli::UnwindSection as _;
use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::read::{Object as _, ObjectSection as _, ObjectSymbol};

use super::FileOffset;

/// Program headers that are looked at; linkers write about ten. Every address is looked up in them, so a hostile file could make
/// that dear.
const MOST_SEGMENTS: usize = 256;

/// Why a file cannot be viewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF64 little-endian file, or its tables do not hold together.
    #[error("not a usable elf64 little-endian file of {length} bytes; check that it is a program or library")]
    Malformed {
        /// Length of the file.
        length: usize,
        /// What the reader objected to.
        #[source]
        source: object::read::Error,
    },
}

/// The instruction set of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// Any other, by its `e_machine` value.
    Other(u16),
}

/// A stretch of a file that is mapped at one stretch of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedBytes<'data> {
    /// Address of the first byte, before relocation.
    pub address: u64,
    /// Where the first byte lies in the file.
    pub offset: FileOffset,
    /// The bytes.
    pub bytes: &'data [u8],
}

impl<'data> MappedBytes<'data> {
    /// The address behind the last byte.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes.len() as u64)
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: u64) -> bool {
        (self.address..self.end()).contains(&address)
    }

    /// The bytes from `address` on.
    pub fn bytes_from(&self, address: u64) -> Option<&'data [u8]> {
        let skip = usize::try_from(address.checked_sub(self.address)?).ok()?;
        self.bytes.get(skip..)
    }
}

/// A defined symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol {
    /// Its address, before relocation.
    pub address: u64,
    /// Its size, 0 where the file does not say.
    pub size: u64,
}

/// The extent of a function, or of a part of one that the compiler placed apart, as `.eh_frame` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionExtent {
    /// Address of the first instruction.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
}

impl FunctionExtent {
    /// Whether `address` lies inside.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A checked ELF64 file.
pub struct Elf<'data> {
    data: &'data [u8],
    file: ElfFile64<'data, LittleEndian>,
}

impl<'data> Elf<'data> {
    /// Checks the headers of `data`; nothing else is read yet.
    pub fn parse(data: &'data [u8]) -> Result<Self, ElfError> {
        ElfFile64::parse(data)
            .map(|file| Self { data, file })
            .map_err(|source| ElfError::Malformed { length: data.len(), source })
    }

    /// The instruction set.
    pub fn machine(&self) -> Machine {
        match self.file.elf_header().e_machine(LittleEndian) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            other => Machine::Other(other),
        }
    }

    /// Address of the first instruction of a program.
    pub fn entry(&self) -> u64 {
        self.file.elf_header().e_entry(LittleEndian)
    }

    /// The build id note.
    pub fn build_id(&self) -> Option<&'data [u8]> {
        self.file.build_id().ok().flatten()
    }

    /// The code: executable sections, or executable segments where the file has no section headers.
    ///
    /// Sorted by address and free of overlaps in the file, so a hostile file cannot have more code than bytes.
    pub fn code(&self) -> Vec<MappedBytes<'data>> {
        let mut ranges: Vec<_> = self.executable_sections().collect();
        if ranges.is_empty() {
            ranges = self.loaded_segments(elf::PF_X).collect();
        }
        ranges.retain(|range| {
            !range.bytes.is_empty() && range.address.checked_add(range.bytes.len() as u64).is_some()
        });
        ranges.sort_by_key(|range| range.offset);
        let mut covered = 0;
        ranges.retain(|range| {
            let fresh = range.offset.0 >= covered;
            if fresh {
                covered = range.offset.0.saturating_add(range.bytes.len() as u64);
            }
            fresh
        });
        ranges.sort_by_key(|range| range.address);
        ranges
    }

    /// Where the byte at `address` lies in the file; none if it is not loaded from the file.
    pub fn offset_of(&self, address: u64) -> Option<FileOffset> {
        self.loaded_segments(0)
            .find(|segment| segment.contains(address))
            .map(|segment| FileOffset(segment.offset.0 + (address - segment.address)))
    }

    /// The address at which the byte at `offset` is loaded, before relocation.
    pub fn address_of(&self, offset: FileOffset) -> Option<u64> {
        self.loaded_segments(0).find_map(|segment| {
            let inside = offset.0.checked_sub(segment.offset.0)?;
            (inside < segment.bytes.len() as u64).then(|| segment.address + inside)
        })
    }

    /// A section by its name, with its bytes as they are in the file (none for `.bss` and the like).
    pub fn section(&self, name: &str) -> Option<MappedBytes<'data>> {
        let section = self.file.section_by_name(name)?;
        let (offset, _) = section.file_range()?;
        Some(MappedBytes {
            address: section.address(),
            offset: FileOffset(offset),
            bytes: section.data().ok()?,
        })
    }

    /// A defined symbol by its name, from `.dynsym` (which survives stripping) or else `.symtab`.
    pub fn symbol(&self, name: &str) -> Option<Symbol> {
        self.file
            .dynamic_symbols()
            .chain(self.file.symbols())
            .find(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(name.as_bytes()))
            .map(|symbol| Symbol { address: symbol.address(), size: symbol.size() })
    }

    /// Every defined symbol with its name, of both tables; many are in both.
    pub fn definitions(&self) -> impl Iterator<Item = (&'data [u8], Symbol)> + '_ {
        let defined = self.file.dynamic_symbols().chain(self.file.symbols());
        defined.filter(ObjectSymbol::is_definition).filter_map(|symbol| {
            let name = symbol.name_bytes().ok()?;
            Some((name, Symbol { address: symbol.address(), size: symbol.size() }))
        })
    }

    /// The name of the function that holds `address`, where the file has symbols.
    pub fn function_at(&self, address: u64) -> Option<String> {
        let symbols = self.file.dynamic_symbols().chain(self.file.symbols());
        let functions =
            symbols.filter(|symbol| symbol.is_definition() && symbol.kind() == object::SymbolKind::Text);
        let holds = |start: u64, size: u64| address >= start && address - start < size.max(1);
        let mut found = functions.filter(|symbol| holds(symbol.address(), symbol.size()));
        found.find_map(|symbol| symbol.name().ok().map(str::to_owned))
    }

    /// Function extents from `.eh_frame`, which stripping keeps; sorted, empty where there is none.
    pub fn functions(&self) -> Vec<FunctionExtent> {
        let mut extents = Vec::new();
        let Some(section) = self.section(".eh_frame") else { return extents };
        let frames = gimli::EhFrame::new(section.bytes, gimli::LittleEndian);
        let bases = gimli::BaseAddresses::default().set_eh_frame(section.address);
        let mut entries = frames.entries(&bases);
        // Many functions share one common entry, and they follow it closely: remember the last.
        let mut last = None;
        while let Ok(Some(entry)) = entries.next() {
            let gimli::CieOrFde::Fde(partial) = entry else { continue };
            let parsed = partial.parse(|frames, bases, offset| match &last {
                Some((known, common)) if *known == offset => Ok(gimli::CommonInformationEntry::clone(common)),
                _ => {
                    let common = frames.cie_from_offset(bases, offset)?;
                    last = Some((offset, common.clone()));
                    Ok(common)
                }
            });
            let Ok(function) = parsed else { continue };
            let (start, length) = (function.initial_address(), function.len());
            if let Some(end) = start.checked_add(length).filter(|_| length > 0) {
                extents.push(FunctionExtent { start, end });
            }
        }
        extents.sort_unstable();
        extents.dedup();
        extents
    }

    fn executable_sections(&self) -> impl Iterator<Item = MappedBytes<'data>> + '_ {
        self.file.sections().filter_map(|section| {
            let object::SectionFlags::Elf { sh_flags } = section.flags() else { return None };
            let wanted = u64::from(elf::SHF_ALLOC | elf::SHF_EXECINSTR);
            let (offset, _) = section.file_range()?;
            (sh_flags & wanted == wanted).then_some(())?;
            Some(MappedBytes {
                address: section.address(),
                offset: FileOffset(offset),
                bytes: section.data().ok()?,
            })
        })
    }

    /// The loaded segments that have all of `flags`, as far as they come from the file.
    fn loaded_segments(&self, flags: u32) -> impl Iterator<Item = MappedBytes<'data>> + '_ {
        self.file.elf_program_headers().iter().take(MOST_SEGMENTS).filter_map(move |header| {
            let loaded =
                header.p_type(LittleEndian) == elf::PT_LOAD && header.p_flags(LittleEndian) & flags == flags;
            let bytes = header.data(LittleEndian, self.data).ok().filter(|_| loaded)?;
            let address = header.p_vaddr(LittleEndian);
            address.checked_add(bytes.len() as u64)?;
            Some(MappedBytes { address, offset: FileOffset(header.p_offset(LittleEndian)), bytes })
        })
    }
}

/// The extent that contains `address`; `extents` sorted as [`Elf::functions`] gives them.
pub fn extent_of(extents: &[FunctionExtent], address: u64) -> Option<FunctionExtent> {
    let behind = extents.partition_point(|extent| extent.start <= address);
    extents.get(behind.checked_sub(1)?).copied().filter(|extent| extent.contains(address))
}
