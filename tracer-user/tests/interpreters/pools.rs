//! The census against what the interpreter itself counts: pools and blocks of every size class, exactly.

use std::{
    io::BufReader,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use alloctrace::{
    census::{
        arenas::find_arenas,
        pools::{PoolCensus, blocks_in_use, scan_blocks_in_use},
    },
    discover::layout::ArenaSource,
};
use anyhow::{Context as _, Result, ensure};

use crate::support::{Interpreter, Target};

pub fn check_small(interpreter: &Interpreter) -> Result<()> {
    check(interpreter, "0")
}

pub fn check_large(interpreter: &Interpreter) -> Result<()> {
    check(interpreter, "200")
}

/// A census of a target that runs is of no single moment, but there always is one, and it says where it met changes.
pub fn check_running(interpreter: &Interpreter) -> Result<()> {
    let mut target = Target::start(interpreter, "churn.py", &[], Stdio::inherit())?;
    target.line()?;
    let (memory, runtime) = (target.memory()?, target.symbol("_PyRuntime")?);
    let find = || find_arenas(&memory, &target.mappings()?, &interpreter.layout, runtime).context("find");
    let variables = (0..10).find_map(|_| find().ok()).context("no table in ten tries")?;
    for _ in 0..100 {
        let census = blocks_in_use(&memory, &target.mappings()?, &interpreter.layout, &variables)?;
        let is_quiet = census.invalid_pools + census.lost_arenas == 0;
        ensure!(!is_quiet || (5_000..300_000).contains(&census.blocks()), "{census:#?}");
    }
    Ok(())
}

/// To 3.11 all interpreters of a process share one allocator.
pub fn has_allocator_per_interpreter(interpreter: &Interpreter) -> bool {
    interpreter.layout.pools.arenas != ArenaSource::Static
}

/// Interpreters with an allocator of their own are counted too; the scan, which knows no interpreters, is the oracle.
pub fn check_subinterpreters(interpreter: &Interpreter) -> Result<()> {
    let mut target = Target::start(interpreter, "subinterpreters.py", &[], Stdio::inherit())?;
    target.line()?;
    wait_until_still(&target)?;
    let (memory, mappings, runtime) = (target.memory()?, target.mappings()?, target.symbol("_PyRuntime")?);
    let variables = find_arenas(&memory, &mappings, &interpreter.layout, runtime)?;
    let census = blocks_in_use(&memory, &mappings, &interpreter.layout, &variables)?;
    let scan = scan_blocks_in_use(&memory, &mappings, &interpreter.layout)?;
    ensure!(variables.0.len() == 3 && census.blocks() > 40_000, "{variables:x?} {census:#?}");
    ensure!(scan.classes == census.classes, "scanned {scan:#?}\nread {census:#?}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the time a census takes is a figure of the project")]
fn check(interpreter: &Interpreter, megabytes: &str) -> Result<()> {
    let mut target = Target::start(interpreter, "heap.py", &[megabytes], Stdio::piped())?;
    target.line()?;
    let runtime = target.symbol("_PyRuntime")?;
    let memory = target.memory()?;
    wait_until_still(&target)?;

    let mappings = target.mappings()?;
    let start = Instant::now();
    let variables = find_arenas(&memory, &mappings, &interpreter.layout, runtime)?;
    let found = start.elapsed();
    let start = Instant::now();
    let census = blocks_in_use(&memory, &mappings, &interpreter.layout, &variables)?;
    let counted = start.elapsed();
    // As if nothing were known but `_PyRuntime`: the way to 3.11, and where a patch release moved a member.
    let mut unknown = interpreter.layout;
    unknown.pools.arenas = ArenaSource::Static;
    let searched = find_arenas(&memory, &mappings, &unknown, runtime)?;
    let by_search = blocks_in_use(&memory, &mappings, &unknown, &searched)?;
    let start = Instant::now();
    let scan = scan_blocks_in_use(&memory, &mappings, &interpreter.layout)?;
    let scanned = start.elapsed();

    let stderr = target.child.stderr.take().context("no stderr")?;
    let expected = parse_statistics(BufReader::new(stderr))?;
    ensure!(census.classes == expected.classes, "read {census:#?}\nprinted {expected:#?}");
    ensure!(scan.classes == expected.classes, "scanned {scan:#?}\nprinted {expected:#?}");
    ensure!(by_search == census, "searched {by_search:#?}\nread {census:#?}");
    ensure!(census.arenas == expected.arenas, "{} arenas, not {}", census.arenas, expected.arenas);
    ensure!(census.invalid_pools == 0 && census.blocks() > 1000, "{census:#?}");
    let (label, blocks, bytes, arenas) = (&interpreter.label, census.blocks(), census.bytes(), census.arenas);
    println!(
        "{label}: {blocks} blocks, {bytes} bytes, {arenas} arenas; table found in {found:.1?}, pools counted in \
         {counted:.1?}, scanned without the table in {scanned:.1?}"
    );
    Ok(())
}

/// Blocked in a write, seen several times with no processor time in between.
fn wait_until_still(target: &Target) -> Result<()> {
    let path = format!("/proc/{}/stat", target.child.id());
    let mut last = String::new();
    let mut same = 0;
    for _ in 0..500 {
        sleep(Duration::from_millis(20));
        let now = std::fs::read_to_string(&path)?;
        same = if now == last && now.contains(") S ") { same + 1 } else { 0 };
        last = now;
        if same == 5 {
            return Ok(());
        }
    }
    anyhow::bail!("the target does not come to rest: {last}")
}

/// The table of `sys._debugmallocstats` (Objects/obmalloc.c, `_PyObject_DebugMallocStats`).
fn parse_statistics(lines: impl std::io::BufRead) -> Result<PoolCensus> {
    let mut census = PoolCensus::default();
    for line in lines.lines() {
        let line = line?;
        let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        if let [class, _size, pools, blocks, _free] = fields[..] {
            let class = census.classes.get_mut(usize::try_from(class)?).context("a class above 31")?;
            (class.pools, class.blocks) = (pools, blocks);
        }
        if let Some(count) = line.strip_prefix("# arenas allocated current") {
            census.arenas = count.trim_start_matches([' ', '=']).parse()?;
        }
    }
    Ok(census)
}
