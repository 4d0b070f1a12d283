//! Where points lie by the words of the linker and the compiler: in functions that take blocks from pools or give them back.
//!
//! binutils' addr2line says which function an address is in, and which were inlined there. It takes an interpreter that is not stripped.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alloctrace::plan::elf::Elf;
use alloctrace::plan::plan_interpreter;
use libtest_mimic::{Failed, Trial};

/// pymalloc's functions (Objects/obmalloc.c, 3.8 to 3.15): those that pop or push, and the one that opens pools.
const PYMALLOC: [&str; 12] = [
    "_PyObject_Malloc",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    "_PyObject_Free",
    "_PyMem_Malloc",
    "PyObject_Malloc",
    "PyObject_Free",
    "pymalloc_alloc",
    "pymalloc_free",
    "pymalloc_realloc",
    "allocate_from_new_pool",
    "insert_to_freepool",
];

/// A trial of an interpreter or libpython; ignored where it, its symbols or addr2line are missing.
pub fn inside(label: &str, path: PathBuf) -> Trial {
    let has_tool = Command::new("addr2line").arg("--version").stdout(Stdio::null()).status().is_ok();
    let is_here = has_tool && fs::read(&path).is_ok_and(|file| has_symbols(&file));
    Trial::test(format!("inside_pymalloc::{label}"), move || check(&path)).with_ignored_flag(!is_here)
}

/// Whether the file names functions that only a full symbol table has.
fn has_symbols(file: &[u8]) -> bool {
    Elf::parse(file)
        .is_ok_and(|elf| elf.symbol("_PyObject_Malloc").is_some() && elf.section(".symtab").is_some())
}

fn check(path: &Path) -> Result<(), Failed> {
    let file = fs::read(path)?;
    let elf = Elf::parse(&file)?;
    let plan = plan_interpreter(&file)?.plan;
    if plan.points.is_empty() {
        return Err("no points at all".into());
    }
    let addresses: Vec<u64> = plan.points.iter().filter_map(|point| elf.address_of(point.offset)).collect();
    let functions = functions(path, &addresses)?;
    if functions.len() != plan.points.len() {
        return Err(format!("{} points, {} answers", plan.points.len(), functions.len()).into());
    }
    let is_pymalloc = |name: &String| PYMALLOC.contains(&name.split('.').next().unwrap_or(name));
    let outside: Vec<_> = plan
        .points
        .iter()
        .zip(&functions)
        .filter(|(_, chain)| !chain.iter().any(is_pymalloc))
        .map(|(point, chain)| format!("{point:?} is in {chain:?}"))
        .collect();
    if outside.is_empty() { Ok(()) } else { Err(outside.join("\n").into()) }
}

/// For each address the function that it is in, innermost inlined one first.
fn functions(path: &Path, addresses: &[u64]) -> Result<Vec<Vec<String>>, Failed> {
    let mut tool = Command::new("addr2line")
        .args(["--functions", "--inlines", "--addresses", "--exe"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let questions: String = addresses.iter().map(|address| format!("{address:#x}\n")).collect();
    // A few KB: the pipe holds them all.
    tool.stdin.take().ok_or("no input")?.write_all(questions.as_bytes())?;
    let output = tool.wait_with_output()?;
    let mut chains: Vec<Vec<String>> = Vec::new();
    let mut is_function = true;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.starts_with("0x") {
            chains.push(Vec::new());
            is_function = true;
            continue;
        }
        // A function, then its place, in turns.
        if let Some(chain) = chains.last_mut().filter(|_| is_function) {
            chain.push(line.to_owned());
        }
        is_function = !is_function;
    }
    Ok(chains)
}
