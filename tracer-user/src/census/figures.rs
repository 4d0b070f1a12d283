//! Reads the three figures of a process, as of now: what pools, malloc and the kernel say.
//!
//! No probe, and the process is neither stopped nor written to: it changes while it is read, and what may be off by that is
//! in the figures. It must not know when to look, nor who shows what is found.

use std::io;
use std::path::Path;

use super::arenas::{ArenaVariables, Reason, find_arenas};
use super::malloc::Malloc;
use super::mimalloc::{PageLayout, blocks_in_pages};
use super::pools::{PoolCensus, blocks_in_use};
use crate::discover::memory::{Mapping, ProcessMemory, ReadMemory as _, mappings};
use crate::discover::{Interpreter, Target};
use crate::profile::{Figures, Known, MallocBytes, PoolBytes, ResidentBytes};

const PROC: &str = "/proc";
/// Tries of the pools, if some change while they are read.
const TRIES: usize = 3;
const ENDED: &str = "the process had ended";

/// What objects come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objects {
    /// Arenas and pools.
    Pymalloc,
    /// Pages of mimalloc; pymalloc besides, in interpreters with a lock.
    Mimalloc(PageLayout),
    /// No allocator of CPython's own.
    Malloc,
}

/// Reads one process again and again, and keeps where things lie.
#[derive(Debug)]
pub struct FigureReader {
    target: Target,
    memory: io::Result<ProcessMemory>,
    tables: Option<ArenaVariables>,
    malloc: Malloc,
}

impl FigureReader {
    /// Opens a process; one that has ended shows when it is read.
    #[must_use]
    pub fn new(target: Target) -> Self {
        let memory = ProcessMemory::open(Path::new(PROC), target.pid);
        Self { target, memory, tables: None, malloc: Malloc::default() }
    }

    /// The process.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether its interpreter has started: before, nothing is where it will be.
    #[must_use]
    pub fn has_started(&self) -> bool {
        let Interpreter { runtime, layout, .. } = &self.target.interpreter;
        let head = runtime.wrapping_add(layout.runtime.interpreters_head.into());
        self.memory.as_ref().is_ok_and(|memory| memory.read_u64(head).is_ok_and(|first| first != 0))
    }

    /// Whether it has ended, or become another program.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let runtime = self.target.interpreter.runtime;
        self.memory.as_ref().map_or(true, |memory| memory.read_u64(runtime).is_err())
    }

    /// Looks.
    pub fn read(&mut self, objects: Objects) -> Figures {
        let Self { target, memory, tables, malloc } = self;
        let memory = match memory {
            Ok(memory) => memory,
            Err(error) => return Figures::unknown(&format!("its memory cannot be read: {error}")),
        };
        let now = || mappings(Path::new(PROC), target.pid);
        // The descriptor is that of the program that was opened, whoever has its number by now.
        if memory.read_u64(target.interpreter.runtime).is_err() {
            return Figures::unknown(ENDED);
        }
        let mapped = match now() {
            Ok(mapped) if !mapped.is_empty() => mapped,
            _ => return Figures::unknown(ENDED),
        };
        let pools = pools(memory, &mapped, target, tables, objects);
        let library = target.c_library.as_ref().map(|library| &*library.name);
        let malloc = malloc.read(memory, now, library).map(|census| MallocBytes {
            in_use_bytes: census.chunks.in_use_bytes - census.fast_bytes,
            in_use_chunks: census.chunks.in_use_chunks.saturating_sub(census.fast_chunks),
            free_bytes: census.chunks.free_bytes + census.chunks.cached_bytes + census.fast_bytes,
            cached_bytes: census.chunks.cached_bytes + census.fast_bytes,
            mapped_bytes: census.mapped_bytes,
            mapped_chunks: census.mapped_chunks,
            reread_bytes: census.chunks.reread_bytes,
        });
        let figures = Figures { pools: pools.into(), malloc: malloc.into(), resident: resident(target.pid) };
        if figures.resident.reason().is_some() { Figures::unknown(ENDED) } else { figures }
    }
}

fn pools(
    memory: &ProcessMemory,
    mapped: &[Mapping],
    target: &Target,
    tables: &mut Option<ArenaVariables>,
    objects: Objects,
) -> Result<PoolBytes, Reason> {
    let layout = &target.interpreter.layout;
    let pages = match objects {
        Objects::Malloc => return Ok(PoolBytes::default()),
        Objects::Mimalloc(pages) => blocks_in_pages(memory, mapped, pages)?.pool_bytes(),
        Objects::Pymalloc => PoolBytes::default(),
    };
    if layout.free_threading.is_some() || matches!(objects, Objects::Mimalloc(_)) {
        return Ok(pages);
    }
    let known = match tables.take() {
        Some(tables) => tables,
        None => find_arenas(memory, mapped, layout, target.interpreter.runtime)?,
    };
    let mut best: Option<PoolCensus> = None;
    let torn = |census: &PoolCensus| census.invalid_pools + census.lost_arenas;
    for _ in 0..TRIES {
        let census = blocks_in_use(memory, mapped, layout, &known)?;
        let is_quiet = torn(&census) == 0;
        if best.as_ref().is_none_or(|best| torn(&census) < torn(best)) {
            best = Some(census);
        }
        if is_quiet {
            break;
        }
    }
    *tables = Some(known);
    let census = best.unwrap_or_default();
    Ok(census.pool_bytes(layout.pools))
}

/// `/proc/PID/status` (`task_mem`, fs/proc/task_mmu.c).
fn resident(pid: u32) -> Known<ResidentBytes> {
    let text = std::fs::read_to_string(format!("{PROC}/{pid}/status")).unwrap_or_default();
    resident_of(&text).ok_or(ENDED).into()
}

fn resident_of(status: &str) -> Option<ResidentBytes> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(ResidentBytes {
        anonymous_bytes: field("RssAnon")?,
        file_bytes: field("RssFile")?,
        shared_bytes: field("RssShmem")?,
        // Kernels without swap do not say.
        swapped_bytes: field("VmSwap").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_kernel() {
        let text = "Name:\tx\nVmSwap:\t   4 kB\nRssAnon:\t    1000 kB\nRssFile:\t 20 kB\nRssShmem:\t 0 kB\n";
        let expected = ResidentBytes {
            anonymous_bytes: 1_024_000,
            file_bytes: 20_480,
            shared_bytes: 0,
            swapped_bytes: 4096,
        };
        assert_eq!(resident_of(text), Some(expected));
        assert_eq!(resident_of("Name:\tx\nState:\tZ (zombie)\n"), None);
        assert_eq!(resident_of("RssAnon:\t99999999999999999999 kB\n"), None);
    }
}
