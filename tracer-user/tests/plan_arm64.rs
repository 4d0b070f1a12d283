//! The finder on arm64 files of Debian's packages, which `cargo xtask setup` unpacks: golden plans of interpreters and C libraries, and
//! nothing at all in other large programs.
//!
//! What is not there is reported as ignored, but fails where `CI` is set. Packages of stable suites must have a golden file. Those of sid
//! change every few weeks and old ones leave the mirror: there a golden file is compared if it is of the same build, and the checks
//! that need none (callers of the function that opens pools, nothing to note) are made always.

#[path = "plan_files/golden.rs"]
#[expect(dead_code, reason = "trials of files that may be missing are for plan_files")]
mod golden;

use std::path::{Path, PathBuf};

use alloctrace::plan::elf::{Elf, Machine};
use alloctrace::plan::{InterpreterPlan, PointKind, plan_interpreter, thread_self_distance};
use golden::{build_id, compare, golden_path, interpreter_text, malloc_text, no_points};
use libtest_mimic::{Arguments, Failed, Trial};

/// Interpreters: a label, a suite, the package, the file, and how many pops there must be at least.
const INTERPRETERS: [(&str, &str, &str, &str, usize); 8] = [
    ("arm64-3.11", "bookworm", "python3.11-minimal", "usr/bin/python3.11", 150),
    ("arm64-3.11-shared", "bookworm", "libpython3.11", "usr/lib/aarch64-linux-gnu/libpython3.11.so.1.0", 2),
    ("arm64-3.13", "trixie", "python3.13-minimal", "usr/bin/python3.13", 150),
    ("arm64-3.13-shared", "trixie", "libpython3.13", "usr/lib/aarch64-linux-gnu/libpython3.13.so.1.0", 2),
    ("arm64-3.14", "sid", "python3.14-minimal", "usr/bin/python3.14", 150),
    ("arm64-3.14-shared", "sid", "libpython3.14", "usr/lib/aarch64-linux-gnu/libpython3.14.so.1.0", 2),
    ("arm64-3.15", "sid", "python3.15-minimal", "usr/bin/python3.15", 150),
    ("arm64-3.15-shared", "sid", "libpython3.15", "usr/lib/aarch64-linux-gnu/libpython3.15.so.1.0", 2),
];

/// C libraries.
const C_LIBRARIES: [(&str, &str, &str, &str); 4] = [
    ("arm64-glibc-2.36", "bookworm", "libc6", "lib/aarch64-linux-gnu/libc.so.6"),
    ("arm64-glibc-2.41", "trixie", "libc6", "usr/lib/aarch64-linux-gnu/libc.so.6"),
    ("arm64-glibc-sid", "sid", "libc6", "usr/lib/aarch64-linux-gnu/libc.so.6"),
    ("arm64-musl", "bookworm", "musl", "lib/aarch64-linux-musl/libc.so"),
];

/// Other allocators.
const ALLOCATORS: [(&str, &str, &str, &str); 3] = [
    ("arm64-jemalloc-5.3.0", "bookworm", "libjemalloc2", "usr/lib/aarch64-linux-gnu/libjemalloc.so.2"),
    (
        "arm64-tcmalloc-2.10",
        "bookworm",
        "libtcmalloc-minimal4",
        "usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4",
    ),
    ("arm64-mimalloc-2.0.9", "bookworm", "libmimalloc2.0", "usr/lib/aarch64-linux-gnu/libmimalloc.so.2"),
];

/// Large programs of all kinds that hold no pymalloc.
const OTHERS: [(&str, &str); 13] = [
    ("cmake", "usr/bin/cmake"),
    ("gdb", "usr/bin/gdb"),
    ("git", "usr/bin/git"),
    ("libc6", "lib/aarch64-linux-gnu/libc.so.6"),
    ("libllvm14", "usr/lib/aarch64-linux-gnu/libLLVM-14.so.1"),
    ("libnode108", "usr/lib/aarch64-linux-gnu/libnode.so.108"),
    ("libruby3.1", "usr/lib/aarch64-linux-gnu/libruby-3.1.so.3.1"),
    ("libsqlite3-0", "usr/lib/aarch64-linux-gnu/libsqlite3.so.0"),
    ("libssl3", "usr/lib/aarch64-linux-gnu/libcrypto.so.3"),
    ("perl-base", "usr/bin/perl"),
    ("php8.2-cli", "usr/bin/php8.2"),
    ("postgresql-15", "usr/lib/postgresql/15/bin/postgres"),
    ("vim", "usr/bin/vim.basic"),
];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials: Vec<_> = INTERPRETERS.into_iter().map(interpreter).collect();
    trials.extend(C_LIBRARIES.into_iter().chain(ALLOCATORS).map(malloc_functions));
    trials.extend(C_LIBRARIES.into_iter().map(thread_self));
    trials.extend(OTHERS.into_iter().map(nothing_in));
    libtest_mimic::run(&arguments, trials).exit();
}

/// A file of a package; see `xtask/src/setup/test_files.rs`.
fn unpacked(suite: &str, package: &str, file: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    workspace.join("target/xtask/arm64").join(suite).join(package).join(file)
}

/// A trial that needs a file: without it, ignored on a developer's machine and failed in CI.
fn trial(
    name: String,
    path: PathBuf,
    check: impl FnOnce(&Path) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let is_optional = std::env::var_os("CI").is_none();
    let is_here = path.exists();
    Trial::test(name, move || match path.exists() {
        true => check(&path),
        false => Err(format!("{} is missing: run `cargo xtask setup`", path.display()).into()),
    })
    .with_ignored_flag(!is_here && is_optional)
}

fn interpreter(
    (label, suite, package, file, pops): (&'static str, &'static str, &'static str, &'static str, usize),
) -> Trial {
    trial(format!("golden::{label}"), unpacked(suite, package, file), move |path| {
        let file = std::fs::read(path)?;
        self_check(&file, pops)?;
        compare_if_known(label, suite, &file, &interpreter_text(&file)?)
    })
}

fn malloc_functions(
    (label, suite, package, file): (&'static str, &'static str, &'static str, &'static str),
) -> Trial {
    trial(format!("golden::{label}"), unpacked(suite, package, file), move |path| {
        let file = std::fs::read(path)?;
        compare_if_known(label, suite, &file, &malloc_text(&file)?)
    })
}

/// glibc says itself how large its `struct pthread` is, for debuggers.
fn thread_self(
    (label, suite, package, file): (&'static str, &'static str, &'static str, &'static str),
) -> Trial {
    trial(format!("thread_self::{label}"), unpacked(suite, package, file), move |path| {
        let file = std::fs::read(path)?;
        let found = thread_self_distance(&file)?;
        let elf = Elf::parse(&file)?;
        let expected = match elf.symbol("_thread_db_sizeof_pthread") {
            Some(symbol) => {
                let at = usize::try_from(elf.offset_of(symbol.address).ok_or("not in the file")?.0)?;
                u32::from_le_bytes(*file.get(at..).and_then(|rest| rest.first_chunk()).ok_or("cut")?)
            }
            // musl has no such word; this is what its disassembly says: `sub x0, x0, #0xc8`.
            None => 0xc8,
        };
        if found == expected { Ok(()) } else { Err(format!("{found} instead of {expected}").into()) }
    })
}

fn nothing_in((package, file): (&'static str, &'static str)) -> Trial {
    let name = file.rsplit('/').next().unwrap_or(file);
    trial(format!("nothing_in::{name}"), unpacked("bookworm", package, file), no_points)
}

fn compare_if_known(label: &str, suite: &str, file: &[u8], said: &str) -> Result<(), Failed> {
    let known = build_id(file).is_some_and(|id| golden_path(label, &id).exists());
    let blesses = std::env::var_os("ALLOCTRACE_BLESS").is_some_and(|value| value == "1");
    match suite == "sid" && !known && !blesses {
        true => Ok(()),
        false => compare(label, file, said),
    }
}

/// What must be true of any whole pymalloc that gcc has built, whatever its version.
fn self_check(file: &[u8], least_pops: usize) -> Result<(), Failed> {
    let InterpreterPlan { plan, checks, .. } = plan_interpreter(file).map_err(|error| error.to_string())?;
    if checks.cold_callers != Some(checks.pops) || checks.pops < least_pops || checks.pushes == 0 {
        return Err(format!("the figures do not fit together: {checks:?}").into());
    }
    if !checks.notes.is_empty() {
        return Err(format!("something to note: {:?}", checks.notes).into());
    }
    let elf = Elf::parse(file)?;
    if elf.machine() != Machine::Aarch64 {
        return Err("not an arm64 file".into());
    }
    for point in plan.points {
        let at = usize::try_from(point.offset.0)?;
        let word = file.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        let is_zero_test =
            word.is_some_and(|word| word & 0x7e00_0000 == 0x3400_0000 || word & 0xff00_0010 == 0x5400_0000);
        if !is_zero_test && !matches!(point.kind, PointKind::NewPoolReturn) {
            return Err(format!("{point:?} is on {word:x?}, which is no `cbz`, `cbnz` or `b.cond`").into());
        }
    }
    Ok(())
}
