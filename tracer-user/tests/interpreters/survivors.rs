//! Looks at single blocks against a program that says which of its objects it keeps, has freed, and has freed and made others at.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;

use alloctrace::census::blocks::{BlockReader, Found, Wanted};
use alloctrace::discover::memory::{ProcessMemory, ReadMemory as _};
use alloctrace::identity::Likeness;
use anyhow::{Context as _, Result, ensure};

use crate::support::{Interpreter, Target};

/// Kinds with the collector's links before the object.
const COLLECTED: [&str; 4] = ["tuple", "dict", "list", "slotted"];
/// Kinds whose free lists (`float`: 100, `dict`: 80, `list`: 80) give a freed object's block to another, of which the allocator never hears; of `tuple`
/// those up to 20 items have one.
const WITH_FREE_LISTS: [&str; 3] = ["float", "dict", "list"];
/// Kinds whose content tells each object from the next. What holds pointers may have the same again: what it points to was freed and made anew with it.
const NOTICED: [&str; 4] = ["str", "bytes", "int", "float"];

/// Addresses of objects, by kind and by what is said of them.
type Said = BTreeMap<(String, String), Vec<u64>>;

pub fn check(interpreter: &Interpreter) -> Result<()> {
    let mut target = Target::start_asked(interpreter, "survivors.py", &[], Stdio::inherit())?;
    let first = read_round(&mut target)?;
    target.wait_until('S')?;
    let memory = target.memory()?;
    let mut reader = BlockReader::default();
    let (before, blocks) = look(&mut reader, interpreter, &memory, &first)?;
    target.child.stdin.as_mut().context("no stdin")?.write_all(b"\n")?;
    let second = read_round(&mut target)?;
    target.wait_until('S')?;
    reader.forget_types();
    let mut now = BTreeMap::new();
    let mut wanted: Vec<Wanted> = blocks.values().copied().collect();
    reader.look(&memory, &interpreter.layout, &mut wanted, |address, found| {
        now.insert(address, found);
    });
    let (before, now) = (&before, &now);
    // How many of them may be the same, and how many there are.
    let same = |objects: &[u64]| {
        let blocks = objects.iter().filter_map(|object| blocks.get(object)).map(|block| block.address);
        let pairs = blocks.filter_map(|block| Some((before.get(&block)?, now.get(&block)?)));
        pairs.filter(|(before, now)| matches!(now, Found::There(now) if before.may_be(now))).count()
    };
    for ((kind, state), objects) in first.iter().chain(&second) {
        let (same, all) = (same(objects), objects.len());
        let label = format!("{kind} {state}: {same} of {all} look the same");
        match state.as_str() {
            "kept" => ensure!(same == all, "{label}"),
            // A free list keeps some of what was given up.
            "freed" if WITH_FREE_LISTS.contains(&kind.as_str()) => ensure!(same <= 100, "{label}"),
            "freed" => ensure!(same == 0, "{label}"),
            "reused" if NOTICED.contains(&kind.as_str()) => ensure!(same == 0, "{label}"),
            _ => {}
        }
    }
    let reused: usize =
        second.iter().filter(|((_, state), _)| state == "reused").map(|(_, objects)| objects.len()).sum();
    ensure!(reused > 100, "only {reused} addresses were used again: nothing was tested");
    Ok(())
}

fn read_round(target: &mut Target) -> Result<Said> {
    let mut said = Said::new();
    loop {
        let line = target.line()?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let Some(kind) = words.next() else { return Ok(said) };
        let state = words.next().context("a kind without a state")?;
        let objects = words.map(|word| u64::from_str_radix(&word, 16)).collect::<Result<_, _>>()?;
        said.insert((kind, state), objects);
    }
}

/// The block of each object, and what it looks like: the class is what its pool says, the header what makes it a block.
fn look(
    reader: &mut BlockReader,
    interpreter: &Interpreter,
    memory: &ProcessMemory,
    said: &Said,
) -> Result<(BTreeMap<u64, Likeness>, BTreeMap<u64, Wanted>)> {
    let pool_size = u64::from(interpreter.layout.pools.pool_size);
    let mut blocks = BTreeMap::new();
    let of_kind = |((kind, _), objects): (&(String, String), &Vec<u64>)| {
        let links = if COLLECTED.contains(&kind.as_str()) { 16 } else { 0 };
        objects.iter().map(|object| (*object, object - links)).collect::<Vec<_>>()
    };
    for (object, address) in said.iter().flat_map(of_kind) {
        let pool = object - object % pool_size;
        // `szidx` of `struct pool_header`.
        let mut class = [0; 4];
        memory.read(pool + 36, &mut class)?;
        let bytes = 16 * (u64::from(u32::from_le_bytes(class)) + 1);
        let offset = address.checked_sub(pool + 48);
        let is_block = offset.is_some_and(|offset| offset.is_multiple_of(bytes));
        ensure!(is_block, "{object:x} is in no block of {bytes} bytes");
        blocks.insert(object, Wanted { address, bytes });
    }
    let mut seen = BTreeMap::new();
    let mut wanted: Vec<Wanted> = blocks.values().copied().collect();
    reader.look(memory, &interpreter.layout, &mut wanted, |address, found| {
        if let Found::There(likeness) = found {
            seen.insert(address, likeness);
        }
    });
    ensure!(
        seen.len() == blocks.len(),
        "{} of {} living blocks look free",
        blocks.len() - seen.len(),
        blocks.len()
    );
    Ok((seen, blocks))
}
