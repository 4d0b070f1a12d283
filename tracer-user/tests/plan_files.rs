//! The finder on real files: golden plans of the interpreters on this machine, and points only where pymalloc is.
//!
//! A golden file is named by version and build id. An interpreter that is not here is reported as ignored; one that is here without a
//! golden file fails, unless `ALLOCTRACE_BLESS=1` writes it.

#[path = "plan_files/golden.rs"]
#[expect(dead_code, reason = "files without pymalloc are for plan_others")]
mod golden;
#[path = "plan_files/inside.rs"]
mod inside;

use std::fs;
use std::path::{Path, PathBuf};

use alloctrace::plan::{
    InterpreterPlan, MimallocVersion, PlanError, PlanNote, Point, PointKind, plan_free_threaded,
    plan_interpreter, plan_with_mimalloc,
};
use golden::{build_id, golden, golden_path, interpreter_text, is_blessing, malloc_text};
use libtest_mimic::{Arguments, Trial};

/// Versions that pyenv may have, and the size of their pools.
const PYENV: [(&str, u64); 6] = [
    ("3.8.18", 4096),
    ("3.9.18", 4096),
    ("3.10.13", 16384),
    ("3.11.7", 16384),
    ("3.12.1", 16384),
    ("3.13.0", 16384),
];

/// Allocators that `cargo xtask setup` has unpacked, where they are, and how many points the finder must have for what each exports.
const ALLOCATORS: [(&str, &str, usize); 3] = [
    ("jemalloc-5.3.0", "libjemalloc.so.2", 30),
    ("tcmalloc-2.10", "libtcmalloc_minimal.so.4", 17),
    ("mimalloc-2.0.9", "libmimalloc.so.2", 56),
];

/// Builds with a lock, and the mimalloc that they have.
const MIMALLOCS: [(&str, &str, MimallocVersion); 3] = [
    ("trixie", "3.13", MimallocVersion::V2_1),
    ("sid", "3.14", MimallocVersion::V2_5),
    ("sid", "3.15", MimallocVersion::V2_5),
];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials: Vec<_> =
        PYENV.into_iter().map(|(version, pool_size)| pyenv(version, pool_size)).collect();
    trials.push(golden("debian-3.11", Path::new("/usr/bin/python3.11"), interpreter_text));
    trials.extend(unpacked());
    trials.extend(PYENV.into_iter().map(|(version, _)| inside::inside(version, pyenv_library(version))));
    trials.push(inside::inside("musl-3.13", musl_python()));
    trials.extend(["3.13", "3.14"].map(free_threaded));
    trials.extend(MIMALLOCS.map(mimalloc_of));
    trials.push(golden("glibc", Path::new("/lib/x86_64-linux-gnu/libc.so.6"), malloc_text));
    trials.extend(ALLOCATORS.into_iter().map(allocator));
    libtest_mimic::run(&arguments, trials).exit();
}

fn pyenv(version: &'static str, pool_size: u64) -> Trial {
    golden(version, &pyenv_library(version), move |file| {
        let text = interpreter_text(file)?;
        let found = plan_interpreter(file).map_err(|error| error.to_string())?.checks.pool_size;
        match found {
            Some(other) if other != pool_size => Err(format!("pools of {other} bytes").into()),
            _ => Ok(text),
        }
    })
}

fn pyenv_library(version: &str) -> PathBuf {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv"));
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    root.or(home).unwrap_or_default().join(format!("versions/{version}/lib/libpython{minor}.so.1.0"))
}

/// What `cargo xtask setup` has built against musl, with symbols.
fn musl_python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons/musl/bin/python3.13")
}

/// Those that `cargo xtask setup` has unpacked from the packages of newer Debian releases: a release, and its versions.
const UNPACKED: [(&str, &str); 3] = [("trixie", "3.13"), ("sid", "3.14"), ("sid", "3.15")];

/// These releases move: of a build id without a golden file the plan is held against its own checks only.
fn unpacked() -> impl Iterator<Item = Trial> {
    UNPACKED.into_iter().map(|(suite, version)| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons").join(suite);
        let (label, path) = (format!("{suite}-{version}"), root.join(format!("usr/bin/python{version}")));
        let is_known = fs::read(&path).is_ok_and(|file| {
            build_id(&file).is_some_and(|build_id| golden_path(&label, &build_id).exists()) || is_blessing()
        });
        if is_known {
            return golden(&label, &path, interpreter_text);
        }
        let is_here = path.exists();
        Trial::test(format!("checks::{label}"), move || {
            let checks = plan_interpreter(&fs::read(&path)?).map_err(|error| error.to_string())?.checks;
            let is_sound = checks.notes.is_empty() && checks.pops >= 100 && checks.pushes >= 20;
            if is_sound { Ok(()) } else { Err(format!("{checks:?}").into()) }
        })
        .with_ignored_flag(!is_here)
    })
}

fn allocator((label, file, points): (&'static str, &'static str, usize)) -> Trial {
    let folder = "../target/xtask/allocators/usr/lib/x86_64-linux-gnu";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(file);
    golden(label, &path, move |file| {
        let text = malloc_text(file)?;
        let found = text.lines().count();
        if found == points { Ok(text) } else { Err(format!("{found} points").into()) }
    })
}

/// A free-threaded one that `cargo xtask setup` has built here: what a compiler makes of it differs from machine to machine, its checks do not.
/// gcc 12 inlines `_mi_page_malloc` into 32 places, five of which Python uses, and `mi_free` into none.
fn free_threaded(version: &'static str) -> Trial {
    let pythons = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons");
    let path = pythons.join(format!("{version}t/bin/python{version}t"));
    let is_here = path.exists();
    Trial::test(format!("checks::free-threaded-{version}"), move || {
        let file = fs::read(&path)?;
        let found = plan_free_threaded(&file).map_err(|error| error.to_string())?;
        let checks = found.checks;
        let is_sound = checks.notes.is_empty() && checks.pops >= 5 && checks.pushes >= 1;
        if is_sound { Ok(()) } else { Err(format!("{checks:?}").into()) }
    })
    .with_ignored_flag(!is_here)
}

/// Builds with a lock have a mimalloc too, for `PYTHONMALLOC=mimalloc`: of one version, and with no place that pymalloc has as well.
fn mimalloc_of((suite, version, mimalloc): (&'static str, &'static str, MimallocVersion)) -> Trial {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons").join(suite);
    let path = root.join(format!("usr/bin/python{version}"));
    let is_here = path.exists();
    Trial::test(format!("checks::mimalloc-{suite}-{version}"), move || {
        let file = fs::read(&path)?;
        let plan_by = |plan: fn(&[u8]) -> Result<InterpreterPlan, PlanError>| {
            plan(&file).map_err(|error| error.to_string())
        };
        let (pools, both) = (plan_by(plan_interpreter)?, plan_by(plan_with_mimalloc)?);
        let (of_pools, of_pages): (Vec<Point>, Vec<Point>) =
            both.plan.points.iter().partition(|point| pools.plan.points.contains(point));
        let pops = of_pages.iter().filter(|point| matches!(point.kind, PointKind::PagePop { .. })).count();
        let is_whole = of_pools == pools.plan.points && pops > 0 && pops < of_pages.len();
        if !is_whole || both.mimalloc != Some(mimalloc) || both.checks.notes != pools.checks.notes {
            return Err(format!("{:?}, {of_pages:?}, {:?}", both.mimalloc, both.checks).into());
        }
        // As a free-threaded build 2.5 would be refused, and said so.
        let notes = plan_by(plan_free_threaded)?.checks.notes;
        let is_known = mimalloc == MimallocVersion::V2_1;
        let is_right = if is_known { notes.is_empty() } else { notes == [PlanNote::UntriedPages] };
        if is_right { Ok(()) } else { Err(format!("{notes:?}").into()) }
    })
    .with_ignored_flag(!is_here)
}
