//! Which allocator CPython uses just now, read from its tables of allocators.
//!
//! Why: `PYTHONMALLOC`, tracemalloc and `PyMem_SetAllocator` put others in pymalloc's place, before or while it is recorded, and pools
//! without events say nothing then. A table's entry is `PyMemAllocatorEx`: `ctx`, `malloc`, `calloc`, `realloc`, `free`. CPython's own
//! hooks keep the entry that they replaced where `ctx` points to, so what is below them can be read, too.
//! It must not know how the tables were found, nor probes.

use std::fmt;

use crate::discover::memory::{Mapping, ReadMemory};

/// Entries below each other that are looked at: debug hooks and tracemalloc make three.
const DEEPEST: usize = 8;

/// Where the tables of CPython's domains begin, in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableAddresses {
    /// That of `PyMem_RawMalloc`.
    pub raw: u64,
    /// That of `PyMem_Malloc`.
    pub memory: u64,
    /// That of `PyObject_Malloc`.
    pub object: u64,
}

/// The words of the tables that tell one state from another: cheap to read, and to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableWords([Entry; 3]);

/// `ctx` and `malloc` of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    context: u64,
    function: u64,
}

/// One of CPython's own hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `PYTHONMALLOC=debug` and `-X dev`: blocks have marks around them (`_PyMem_DebugMalloc`).
    Debug,
    /// `tracemalloc.start()` (`tracemalloc_malloc_gil`).
    Tracemalloc,
}

/// What the hooks are laid over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bottom {
    /// `_PyObject_Malloc`.
    Pymalloc,
    /// The C library's (`_PyMem_RawMalloc`).
    Malloc,
    /// `PYTHONMALLOC=mimalloc`.
    Mimalloc,
    /// Somebody else's: the function at this address.
    Other(u64),
}

/// The allocator of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Hooks, outermost first.
    pub hooks: Vec<Hook>,
    /// What is below them.
    pub bottom: Bottom,
}

impl Installed {
    /// In words; `name` is that of the other allocator's function.
    pub fn describe(&self, name: impl Fn(u64) -> String) -> String {
        let mut text: String = self.hooks.iter().map(|hook| format!("{hook} over ")).collect();
        match self.bottom {
            Bottom::Pymalloc => text.push_str("pymalloc"),
            Bottom::Malloc => text.push_str("malloc"),
            Bottom::Mimalloc => text.push_str("mimalloc"),
            Bottom::Other(function) => text.push_str(&format!("another allocator ({})", name(function))),
        }
        text
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Debug => "debug hooks",
            Self::Tracemalloc => "tracemalloc",
        })
    }
}

/// Reads the words by which a change is noticed; `None` if the process has ended, or the tables are not there yet.
pub fn read_words(memory: &impl ReadMemory, tables: TableAddresses) -> Option<TableWords> {
    let words = TableWords([
        entry_at(memory, tables.object)?,
        entry_at(memory, tables.memory)?,
        entry_at(memory, tables.raw)?,
    ]);
    words.0.iter().all(|entry| entry.function != 0).then_some(words)
}

/// Says what the words mean. `file` is the name of the interpreter's file as the mappings have it.
pub fn interpret(memory: &impl ReadMemory, mappings: &[Mapping], file: &str, words: TableWords) -> Installed {
    let chains = Chains { memory, mappings, file };
    let [object, other, raw] = words.0.map(|entry| chains.follow(entry));
    let own = |chain: &Chain| chain.own.then_some(chain.function);
    let bottom = match (own(&object), own(&other), own(&raw)) {
        (None, _, _) => Bottom::Other(object.function),
        (object, _, raw) if object == raw => Bottom::Malloc,
        // `_PyMem_MiMalloc` and `_PyObject_MiMalloc` are two functions, pymalloc is one for both domains.
        (object, Some(other), _) if object != Some(other) => Bottom::Mimalloc,
        _ => Bottom::Pymalloc,
    };
    Installed { hooks: object.hooks, bottom }
}

struct Chain {
    hooks: Vec<Hook>,
    function: u64,
    /// Whether the function is the interpreter's own.
    own: bool,
}

struct Chains<'a, Memory> {
    memory: &'a Memory,
    mappings: &'a [Mapping],
    file: &'a str,
}

impl<Memory: ReadMemory> Chains<'_, Memory> {
    fn follow(&self, mut entry: Entry) -> Chain {
        let mut hooks = Vec::new();
        while hooks.len() < DEEPEST && self.is_own(entry.function) && entry.context != 0 {
            let Some((hook, below)) = self.below(entry) else { break };
            hooks.push(hook);
            entry = below;
        }
        let own = self.is_own(entry.function) && entry.context == 0;
        Chain { hooks, function: entry.function, own }
    }

    /// What one of CPython's own hooks keeps behind its `ctx`. The debug hooks' is a `debug_alloc_api_t`: a letter, and an entry.
    fn below(&self, entry: Entry) -> Option<(Hook, Entry)> {
        let first = self.memory.read_u64(entry.context).ok()?;
        let is_letter = u8::try_from(first).is_ok_and(|letter| b"rmo".contains(&letter));
        let (hook, below) = match is_letter {
            true => (Hook::Debug, entry_at(self.memory, entry.context.wrapping_add(8))?),
            false => (Hook::Tracemalloc, entry_at(self.memory, entry.context)?),
        };
        self.mapping(below.function).map(|_| (hook, below))
    }

    fn is_own(&self, address: u64) -> bool {
        self.mapping(address).is_some_and(|mapping| mapping.name == self.file)
    }

    fn mapping(&self, address: u64) -> Option<&Mapping> {
        mapping_of(self.mappings, address)
    }
}

/// The mapping that holds an address.
pub fn mapping_of(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&address))
}

fn entry_at(memory: &impl ReadMemory, address: u64) -> Option<Entry> {
    let context = memory.read_u64(address).ok()?;
    Some(Entry { context, function: memory.read_u64(address.checked_add(8)?).ok()? })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::discover::memory::parse_mappings;

    const FILE: &str = "/usr/bin/python3";
    const CODE: u64 = 0x1000;
    const DATA: u64 = 0x10_000;
    const LIBRARY: u64 = 0x50_000;
    const PYMALLOC: u64 = CODE;
    const MALLOC: u64 = CODE + 16;
    const DEBUG: u64 = CODE + 32;
    const TRACE: u64 = CODE + 48;
    const TABLES: TableAddresses = TableAddresses { raw: DATA, memory: DATA + 40, object: DATA + 80 };

    struct Words(Vec<u64>);

    impl ReadMemory for Words {
        fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            let index = address.checked_sub(DATA).map(|bytes| (bytes / 8) as usize);
            let word = index.and_then(|index| self.0.get(index)).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(&word.to_le_bytes()[..buffer.len()]);
            Ok(())
        }
    }

    fn memory(entries: &[(u64, [u64; 2])]) -> Words {
        let mut words = vec![0; 64];
        for (address, entry) in entries {
            let at = ((address - DATA) / 8) as usize;
            words[at..at + 2].copy_from_slice(entry);
        }
        Words(words)
    }

    fn described(entries: &[(u64, [u64; 2])]) -> String {
        let memory = memory(entries);
        let mappings = parse_mappings(
            "1000-2000 r-xp 0 08:01 5 /usr/bin/python3\n10000-11000 rw-p 0 08:01 5 /usr/bin/python3\n\
             50000-51000 r-xp 0 08:01 6 /tmp/other.so\n",
        );
        let words = read_words(&memory, TABLES).unwrap();
        interpret(&memory, &mappings, FILE, words).describe(|address| format!("{address:#x}"))
    }

    fn tables(raw: [u64; 2], memory: [u64; 2], object: [u64; 2]) -> Vec<(u64, [u64; 2])> {
        vec![(TABLES.raw, raw), (TABLES.memory, memory), (TABLES.object, object)]
    }

    #[test]
    fn what_python_starts_with() {
        assert_eq!(described(&tables([0, MALLOC], [0, PYMALLOC], [0, PYMALLOC])), "pymalloc");
        assert_eq!(described(&tables([0, MALLOC], [0, MALLOC], [0, MALLOC])), "malloc");
        assert_eq!(described(&tables([0, MALLOC], [0, TRACE], [0, PYMALLOC])), "mimalloc");
    }

    #[test]
    fn hooks_are_unwrapped() {
        let (raw, object, saved) = (DATA + 120, DATA + 200, DATA + 280);
        let mut entries = tables([raw, DEBUG], [object, DEBUG], [object, DEBUG]);
        entries.extend([(raw, [u64::from(b'r'), 0]), (raw + 8, [0, MALLOC])]);
        entries.extend([(object, [u64::from(b'o'), 0]), (object + 8, [0, PYMALLOC])]);
        assert_eq!(described(&entries), "debug hooks over pymalloc");
        entries.extend([(TABLES.object, [saved, TRACE]), (saved, [object, DEBUG])]);
        assert_eq!(described(&entries), "tracemalloc over debug hooks over pymalloc");
        entries.push((object + 8, [0, MALLOC]));
        assert_eq!(described(&entries), "tracemalloc over debug hooks over malloc");
    }

    #[test]
    fn another_allocator_is_named() {
        let text = described(&tables([0, MALLOC], [0, PYMALLOC], [DATA, LIBRARY + 0x139]));
        assert_eq!(text, "another allocator (0x50139)");
    }

    /// A context that leads nowhere ends the search, and one that leads to itself does.
    #[test]
    fn tables_that_lie() {
        let entries = tables([0, MALLOC], [0, PYMALLOC], [TABLES.object, TRACE]);
        assert!(described(&entries).ends_with("another allocator (0x1030)"), "{}", described(&entries));
        let entries = tables([0, MALLOC], [0, PYMALLOC], [7, TRACE]);
        assert_eq!(described(&entries), "another allocator (0x1030)");
    }

    #[test]
    fn tables_that_are_not_there_yet() {
        assert_eq!(read_words(&memory(&tables([0, 0], [0, 0], [0, 0])), TABLES), None);
    }
}
