//! The names of allocator functions, and what each takes and gives.
//!
//! Why a table: an allocator is known by what it exports. A name is in it only if its arguments are those of a function of the C
//! library's family, and all ways to free or to resize a block must be there: an allocation that is not seen is missing, but a free
//! that is not seen leaves a block live for ever. It must not know files or instructions.

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

use crate::plan::MallocFunction::{self, *};

/// What stands before the names, one for each way that an allocator is built: in place of the C library's, jemalloc with its usual
/// prefix, with that of Rust's `tikv-jemallocator` and with that of PyArrow, mimalloc, tcmalloc, and TBB's.
const PREFIXES: [&str; 7] = ["", "je_", "_rjem_", "je_arrow_", "mi_", "tc_", "scalable_"];

/// With any prefix. The usual name of a function comes first: aliases at one address are one point. `free_sized` and
/// `free_aligned_sized` are C23's, the last four are jemalloc's (`mallocx(3)`).
const STANDARD: [(&str, MallocFunction); 18] = [
    ("malloc", Malloc),
    ("calloc", Calloc),
    ("realloc", Realloc),
    ("reallocarray", ReallocArray),
    ("free", Free),
    ("posix_memalign", PosixMemalign),
    ("aligned_alloc", AlignedAlloc),
    ("memalign", Memalign),
    ("valloc", Valloc),
    ("pvalloc", Pvalloc),
    ("cfree", Free),
    ("reallocf", Realloc),
    ("free_sized", Free),
    ("free_aligned_sized", Free),
    ("mallocx", Malloc),
    ("rallocx", Realloc),
    ("dallocx", Free),
    ("sdallocx", Free),
];

/// With a prefix only, because other things have such names, too: mimalloc's (`mimalloc.h`; its heaps are left out), and TBB's
/// (`tbb/scalable_allocator.h`).
const WITH_PREFIX: [(&str, MallocFunction); 32] = [
    ("zalloc", Malloc),
    ("malloc_small", Malloc),
    ("zalloc_small", Malloc),
    ("mallocn", Calloc),
    ("reallocn", ReallocArray),
    ("rezalloc", Realloc),
    ("recalloc", ReallocArray),
    ("malloc_aligned", Malloc),
    ("malloc_aligned_at", Malloc),
    ("zalloc_aligned", Malloc),
    ("zalloc_aligned_at", Malloc),
    ("calloc_aligned", Calloc),
    ("calloc_aligned_at", Calloc),
    ("realloc_aligned", Realloc),
    ("realloc_aligned_at", Realloc),
    ("rezalloc_aligned", Realloc),
    ("rezalloc_aligned_at", Realloc),
    ("recalloc_aligned", ReallocArray),
    ("recalloc_aligned_at", ReallocArray),
    ("free_size", Free),
    ("free_size_aligned", Free),
    ("free_aligned", Free),
    ("new", Malloc),
    ("new_nothrow", Malloc),
    ("new_aligned", Malloc),
    ("new_aligned_nothrow", Malloc),
    ("new_n", Calloc),
    ("new_realloc", Realloc),
    ("new_reallocn", ReallocArray),
    ("aligned_malloc", Malloc),
    ("aligned_realloc", Realloc),
    ("aligned_free", Free),
];

/// What follows `operator new` and `operator new[]` (`_Znwm`, `_Znam`): plain, aligned, without exceptions.
const NEW: [&str; 4] = ["", "RKSt9nothrow_t", "St11align_val_t", "St11align_val_tRKSt9nothrow_t"];
/// What follows `operator delete` and `operator delete[]` (`_ZdlPv`, `_ZdaPv`).
const DELETE: [&str; 6] =
    ["", "m", "RKSt9nothrow_t", "St11align_val_t", "mSt11align_val_t", "St11align_val_tRKSt9nothrow_t"];

/// CPython has a copy of mimalloc inside, whose functions the compiler has merged into their callers: of it, only frees could be seen.
const PYTHONS_MIMALLOC: &str = "_PyMem_MiMalloc";

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The function that it is, by its arguments and its result.
    pub function: MallocFunction,
    /// Place in the table: the lower is the more usual name of two.
    pub rank: usize,
    /// Index of its prefix; none for C++ operators, which are an allocator's own only beside one of C.
    prefix: Option<usize>,
}

static NAMES: LazyLock<FxHashMap<String, Named>> = LazyLock::new(names);

fn names() -> FxHashMap<String, Named> {
    let prefixed = PREFIXES.iter().enumerate().flat_map(|(prefix, text)| {
        let more: &[_] = if text.is_empty() { &[] } else { &WITH_PREFIX };
        STANDARD
            .iter()
            .chain(more)
            .map(move |(stem, function)| (format!("{text}{stem}"), *function, Some(prefix)))
    });
    let operators = [
        ("_Znwm", &NEW[..], Malloc),
        ("_Znam", &NEW, Malloc),
        ("_ZdlPv", &DELETE, Free),
        ("_ZdaPv", &DELETE, Free),
    ];
    let operators = operators.into_iter().flat_map(|(stem, endings, function)| {
        endings.iter().map(move |ending| (format!("{stem}{ending}"), function, None))
    });
    let ranked = prefixed.chain(operators).enumerate();
    ranked.map(|(rank, (name, function, prefix))| (name, Named { function, rank, prefix })).collect()
}

/// What the symbol `name` stands for, if it is an allocator's.
pub fn named(name: &[u8]) -> Option<Named> {
    NAMES.get(std::str::from_utf8(name).ok()?).copied()
}

/// Which families a file has, gathered symbol by symbol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Families {
    mallocs: u32,
    frees: u32,
    pythons_mimalloc: bool,
}

impl Families {
    /// No name that matters here is longer, in bytes.
    pub const LONGEST_NAME: usize = 15;

    /// Takes note of a symbol that the file defines.
    pub fn take(&mut self, name: &[u8]) {
        self.pythons_mimalloc |= name == PYTHONS_MIMALLOC.as_bytes();
        for (place, prefix) in PREFIXES.iter().enumerate() {
            match name.strip_prefix(prefix.as_bytes()) {
                Some(b"malloc") => self.mallocs |= 1 << place,
                Some(b"free") => self.frees |= 1 << place,
                _ => {}
            }
        }
    }

    /// Whether the file has an allocator: one that gives and takes back.
    pub fn any(self) -> bool {
        self.whole() != 0
    }

    /// Whether the name belongs to an allocator that the file has.
    pub fn include(self, named: Named) -> bool {
        named.prefix.map_or(self.any(), |prefix| self.whole() >> prefix & 1 != 0)
    }

    fn whole(self) -> u32 {
        let own = PREFIXES.iter().position(|prefix| *prefix == "mi_" && self.pythons_mimalloc);
        self.mallocs & self.frees & !own.map_or(0, |place| 1 << place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families(names: &[&str]) -> Families {
        let mut families = Families::default();
        names.iter().for_each(|name| families.take(name.as_bytes()));
        families
    }

    fn includes(families: Families, name: &str) -> bool {
        families.include(named(name.as_bytes()).expect("a name of the table"))
    }

    #[test]
    fn an_allocator_gives_and_takes_back() {
        assert!(families(&["malloc", "free"]).any());
        assert!(!families(&["malloc", "xfree", "mi_free"]).any());
        assert!(families(&["_rjem_free", "_rjem_malloc"]).any());
        assert!(!families(&[]).any());
    }

    #[test]
    fn names_count_with_their_own_allocator_only() {
        let own = families(&["malloc", "free", "mi_free"]);
        assert!(includes(own, "calloc") && includes(own, "_ZdlPvm"));
        assert!(!includes(own, "mi_free"));
        assert!(!includes(families(&[]), "_Znwm"), "libstdc++'s operators call malloc");
        assert!(includes(families(&["mi_malloc", "mi_free"]), "_ZnwmSt11align_val_t"));
    }

    #[test]
    fn the_mimalloc_inside_python_is_left_alone() {
        let python = ["mi_malloc", "mi_free", PYTHONS_MIMALLOC];
        assert!(!families(&python).any());
        assert!(families(&[&python[..], &["malloc", "free"]].concat()).any());
    }

    #[test]
    fn short_names_need_a_prefix() {
        assert_eq!(named(b"new"), None);
        assert_eq!(named(b"mi_new").map(|named| named.function), Some(Malloc));
        assert_eq!(named(b"\xff"), None);
        // No name is there twice: the later one would be lost.
        let all = PREFIXES.len() * STANDARD.len() + (PREFIXES.len() - 1) * WITH_PREFIX.len();
        assert_eq!(NAMES.len(), all + 2 * (NEW.len() + DELETE.len()));
    }
}
