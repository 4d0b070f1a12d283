//! How many freed blocks are still taken for live ones after the looks that budget mode has at a window's blocks, and how many living ones are lost.
//!
//! usage: survivors PID ORACLE MINOR WINDOWS
//!
//! PID runs under the reuse oracle (`xtask/bench/identity`), which writes to the file ORACLE and is the truth. A window of 5 ms is what was allocated in it, by
//! the oracle; its blocks are followed as budget mode follows them (`alloctrace::budget::waiting`), and looked at again 5 and 10 s later. Counts go to
//! standard output as JSON. `cargo xtask bench identity --looks` runs this on several programs and interpreters.
#![expect(clippy::print_stdout, reason = "its result goes there")]

mod counts;
#[path = "../identity/oracle.rs"]
mod oracle;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use alloctrace::budget::waiting::LOOKS;
use alloctrace::census::blocks::{BlockReader, Found, Wanted};
use alloctrace::discover::layout::{InterpreterLayout, layout};
use alloctrace::discover::memory::{Mapping, ProcessMemory, ReadMemory as _, mappings};
use alloctrace::identity::Likeness;
use anyhow::{Context as _, Result};
use counts::{Block, Counts};
use oracle::Oracle;
use rustc_hash::FxHashMap;

const WINDOW: Duration = Duration::from_millis(5);
const BETWEEN_WINDOWS: Duration = Duration::from_millis(300);
/// Looks at survivors.
const LATER: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(10)];
/// Addresses that are followed from one window, in stretches, as budget mode thins them. Asking the oracle for more would put off the first look.
const FOLLOWED: usize = 600;
/// The looks of which something is counted: the last of a window's, and those at survivors.
const COUNTED: [usize; 3] = [7, 8, 9];
/// Blocks above this are malloc's.
const PYMALLOC_BYTES: u64 = 512;

struct Measurement {
    oracle: Oracle,
    memory: ProcessMemory,
    layout: &'static InterpreterLayout,
    reader: BlockReader,
    /// Where malloc's small blocks are, which the oracle cannot tell from pymalloc's.
    heap: Range<u64>,
    /// By window.
    blocks: Vec<Vec<Block>>,
    /// When, and a look at which window; `None`: the next window.
    steps: BinaryHeap<Reverse<(Instant, Option<usize>)>>,
}

impl Measurement {
    fn run(&mut self, windows: usize) -> Result<()> {
        self.steps.push(Reverse((Instant::now(), None)));
        while let Some(Reverse((at, step))) = self.steps.pop() {
            sleep(at.saturating_duration_since(Instant::now()));
            match step {
                Some(window) => self.look(window)?,
                None if self.blocks.len() < windows => self.window()?,
                None => {}
            }
        }
        Ok(())
    }

    fn window(&mut self) -> Result<()> {
        let first = self.oracle.latest()? + 1;
        sleep(WINDOW);
        let end = self.oracle.latest()? + 1;
        let ended = Instant::now();
        // The last one at an address is whose block it is.
        let mut last: FxHashMap<u64, u64> =
            self.oracle.addresses(first..end)?.into_iter().zip(first..end).collect();
        last.retain(|address, _| !self.heap.contains(address));
        let mut last: Vec<(u64, u64)> = last.into_iter().collect();
        last.sort_unstable_by_key(|(address, _)| ((address >> 14) ^ end).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        last.truncate(FOLLOWED);
        let found = self.first_look(&last)?;
        let mut blocks = Vec::new();
        for (address, number) in last {
            let Some((bytes, found)) = found.get(&address) else { continue };
            if let Some(then) = self.oracle.at(address)?.filter(|then| then.size <= PYMALLOC_BYTES) {
                blocks.push(Block { then, number, bytes: *bytes, looks: vec![*found], truths: vec![None] });
            }
        }
        let looks =
            LOOKS.iter().skip(1).chain(&LATER).map(|look| Reverse((ended + *look, Some(self.blocks.len()))));
        self.steps.extend(looks);
        self.steps.push(Reverse((ended + BETWEEN_WINDOWS, None)));
        self.blocks.push(blocks);
        Ok(())
    }

    /// At once, before the oracle is asked for more: whoever is gone by then and has been replaced is never found out. By address, with the size class.
    fn first_look(&mut self, last: &[(u64, u64)]) -> Result<FxHashMap<u64, (u64, Found<Likeness>)>> {
        let pool_size = u64::from(self.layout.pools.pool_size);
        let mut wanted = Vec::new();
        for (address, _) in last {
            // `szidx` of `struct pool_header`; of what is no block of pymalloc's, anything.
            let mut class = [0; 4];
            self.memory.read(address - address % pool_size + 36, &mut class)?;
            wanted.push(Wanted { address: *address, bytes: 16 * (u64::from(u32::from_le_bytes(class)) + 1) });
        }
        let mut found = FxHashMap::default();
        let bytes: FxHashMap<u64, u64> = wanted.iter().map(|wanted| (wanted.address, wanted.bytes)).collect();
        self.reader.look(&self.memory, self.layout, &mut wanted, |address, seen| {
            found.insert(address, (bytes.get(&address).copied().unwrap_or(0), seen));
        });
        Ok(found)
    }

    fn look(&mut self, window: usize) -> Result<()> {
        let Some(blocks) = self.blocks.get_mut(window) else { return Ok(()) };
        let oracle = &self.oracle;
        let lives = |block: &Block| -> Result<bool> {
            let now = oracle.again(&block.then)?;
            Ok(now.is_live && now.number == block.number)
        };
        let before = blocks.iter().map(lives).collect::<Result<Vec<_>>>()?;
        let wanted = blocks.iter().map(|block| Wanted { address: block.then.address, bytes: block.bytes });
        let mut found = BTreeMap::new();
        self.reader.look(&self.memory, self.layout, &mut wanted.collect::<Vec<_>>(), |address, seen| {
            found.insert(address, seen);
        });
        for (block, before) in blocks.iter_mut().zip(before) {
            let after = lives(block)?;
            block.looks.push(found.get(&block.then.address).copied().unwrap_or(Found::Unsure));
            block.truths.push((before == after).then_some(after));
        }
        Ok(())
    }

    fn count(&self) -> Counts {
        let mut counts = Counts::default();
        for block in self.blocks.iter().flatten() {
            COUNTED.into_iter().for_each(|look| counts.add(block, look));
        }
        counts
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pid, oracle, minor, windows] = arguments.as_slice() else {
        anyhow::bail!("usage: survivors PID ORACLE MINOR WINDOWS");
    };
    let minor = minor.parse().with_context(|| format!("`{minor}` is no minor version"))?;
    let layout = layout(3, minor).with_context(|| format!("nothing is known of 3.{minor}"))?;
    let pid = pid.parse().with_context(|| format!("`{pid}` is no process id"))?;
    let proc = Path::new("/proc");
    let memory =
        ProcessMemory::open(proc, pid).with_context(|| format!("failed to open the memory of {pid}"))?;
    let is_heap = |mapping: &&Mapping| mapping.name == "[heap]";
    let mapped = mappings(proc, pid)?;
    let mut measurement = Measurement {
        oracle: Oracle::open(Path::new(oracle)).with_context(|| format!("failed to open `{oracle}`"))?,
        memory,
        layout,
        reader: BlockReader::default(),
        // It may grow by a gigabyte; nothing else is there.
        heap: mapped.iter().find(is_heap).map_or(0..0, |heap| heap.start..heap.end + (1 << 30)),
        blocks: Vec::new(),
        steps: BinaryHeap::new(),
    };
    measurement.run(windows.parse().with_context(|| format!("`{windows}` is no number of windows"))?)?;
    let waits_ms: Vec<u64> = LOOKS.iter().chain(&LATER).map(|look| look.as_millis() as u64).collect();
    let followed: usize = measurement.blocks.iter().map(Vec::len).sum();
    let rows = measurement.count().rows(&waits_ms);
    println!(
        "{}",
        serde_json::json!({ "followed": followed, "lost": measurement.oracle.lost()?, "rows": rows })
    );
    Ok(())
}
