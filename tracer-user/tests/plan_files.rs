//! The finder on real files: golden plans of the interpreters on this machine, and nothing at all in other large programs.
//!
//! A golden file is named by version and build id. An interpreter that is not here is reported as ignored; one that is here without a
//! golden file fails, unless `ALLOCTRACE_BLESS=1` writes it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use alloctrace::plan::elf::Elf;
use alloctrace::plan::{InterpreterPlan, Operand, Plan, PointKind, Register, plan_interpreter, plan_malloc};
use libtest_mimic::{Arguments, Failed, Trial};

/// Versions that pyenv may have, and the size of their pools.
const PYENV: [(&str, u64); 6] = [
    ("3.8.18", 4096),
    ("3.9.18", 4096),
    ("3.10.13", 16384),
    ("3.11.7", 16384),
    ("3.12.1", 16384),
    ("3.13.0", 16384),
];

/// Large programs of all kinds that hold no pymalloc.
const OTHERS: [&str; 26] = [
    "/bin/bash",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/x86_64-linux-gnu/libcrypto.so.3",
    "/lib/x86_64-linux-gnu/libsqlite3.so.0",
    "/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/lib/x86_64-linux-gnu/libperl.so.5.36",
    "/lib/x86_64-linux-gnu/libruby-3.1.so.3.1",
    "/lib/x86_64-linux-gnu/libglib-2.0.so.0",
    "/lib/x86_64-linux-gnu/libxml2.so.2",
    "/usr/bin/cmake",
    "/usr/bin/gdb",
    "/usr/bin/git",
    "/usr/bin/lua5.4",
    "/usr/bin/node",
    "/usr/bin/openssl",
    "/usr/bin/perf",
    "/usr/bin/perl",
    "/usr/bin/php8.2",
    "/usr/bin/qemu-system-x86_64",
    "/usr/bin/tmux",
    "/usr/bin/vim.basic",
    "/usr/lib/gcc/x86_64-linux-gnu/12/cc1",
    "/usr/lib/gcc/x86_64-linux-gnu/12/lto1",
    "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so",
    "/usr/lib/systemd/systemd",
    "/usr/local/bin/postgres",
];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials: Vec<_> =
        PYENV.into_iter().map(|(version, pool_size)| pyenv(version, pool_size)).collect();
    trials.push(golden("debian-3.11", Path::new("/usr/bin/python3.11"), interpreter_text));
    trials.extend(unpacked());
    trials.push(golden("glibc", Path::new("/lib/x86_64-linux-gnu/libc.so.6"), malloc_text));
    trials.extend(OTHERS.into_iter().map(no_points));
    libtest_mimic::run(&arguments, trials).exit();
}

fn pyenv(version: &'static str, pool_size: u64) -> Trial {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv"));
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let library = format!("versions/{version}/lib/libpython{minor}.so.1.0");
    let path = root.or(home).unwrap_or_default().join(library);
    golden(version, &path, move |file| {
        let text = interpreter_text(file)?;
        let found = plan_interpreter(file).map_err(|error| error.to_string())?.checks.pool_size;
        match found {
            Some(other) if other != pool_size => Err(format!("pools of {other} bytes").into()),
            _ => Ok(text),
        }
    })
}

/// Those that `cargo xtask setup` has unpacked from the packages of newer Debian releases: a release, and its versions.
const UNPACKED: [(&str, &str); 3] = [("trixie", "3.13"), ("sid", "3.14"), ("sid", "3.15")];

/// These releases move: of a build id without a golden file the plan is held against its own checks only.
fn unpacked() -> impl Iterator<Item = Trial> {
    UNPACKED.into_iter().map(|(suite, version)| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons").join(suite);
        let (label, path) = (format!("{suite}-{version}"), root.join(format!("usr/bin/python{version}")));
        let is_known = fs::read(&path).is_ok_and(|file| {
            build_id(&file).is_some_and(|build_id| golden_file(&label, &build_id).exists()) || is_blessing()
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

fn is_blessing() -> bool {
    std::env::var_os("ALLOCTRACE_BLESS").is_some_and(|value| value == "1")
}

fn golden_file(label: &str, build_id: &str) -> PathBuf {
    let name = format!("{label}-{}.txt", &build_id[..build_id.len().min(12)]);
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plan").join(name)
}

/// Compares what `describe` says of the file with the golden file.
fn golden(
    label: &str,
    path: &Path,
    describe: impl Fn(&[u8]) -> Result<String, Failed> + Send + 'static,
) -> Trial {
    let (label, path) = (label.to_owned(), path.to_owned());
    let is_here = path.exists();
    Trial::test(format!("golden::{label}"), move || {
        let file = fs::read(&path)?;
        let build_id = build_id(&file).ok_or("no build id")?;
        let text = format!("{label} {build_id}\n{}", describe(&file)?);
        let golden = golden_file(&label, &build_id);
        if is_blessing() {
            fs::write(&golden, &text)?;
        }
        let expected = fs::read_to_string(&golden)
            .map_err(|error| format!("{}: {error}; ALLOCTRACE_BLESS=1 writes it", golden.display()))?;
        if text == expected { Ok(()) } else { Err(difference(&expected, &text).into()) }
    })
    .with_ignored_flag(!is_here)
}

fn build_id(file: &[u8]) -> Option<String> {
    let id = Elf::parse(file).ok()?.build_id()?;
    Some(id.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn difference(expected: &str, found: &str) -> String {
    let missing = expected.lines().filter(|line| !found.lines().any(|other| other == *line));
    let new = found.lines().filter(|line| !expected.lines().any(|other| other == *line));
    let lines = missing.map(|line| format!("-{line}\n")).chain(new.map(|line| format!("+{line}\n")));
    format!(
        "the plan differs from the golden file; ALLOCTRACE_BLESS=1 accepts it\n{}",
        lines.collect::<String>()
    )
}

fn interpreter_text(file: &[u8]) -> Result<String, Failed> {
    let InterpreterPlan { plan, checks } = plan_interpreter(file).map_err(|error| error.to_string())?;
    let mut text = format!(
        "pops {} pushes {} cold sites {} cold callers {} pool size {}\n",
        checks.pops,
        checks.pushes,
        checks.cold_sites,
        checks.cold_callers.map_or("none".to_owned(), |callers| callers.to_string()),
        checks.pool_size.map_or("unknown".to_owned(), |size| size.to_string()),
    );
    for note in &checks.notes {
        let _ = writeln!(text, "note: {note}");
    }
    Ok(text + &points_text(&plan))
}

fn malloc_text(file: &[u8]) -> Result<String, Failed> {
    Ok(points_text(&plan_malloc(file).map_err(|error| error.to_string())?))
}

fn points_text(plan: &Plan) -> String {
    plan.points.iter().map(|point| format!("{:#x} {}\n", point.offset.0, kind_text(point.kind))).collect()
}

fn kind_text(kind: PointKind) -> String {
    match kind {
        PointKind::Pop { block, pool } => format!("pop block {} pool {}", operand(block), name(pool)),
        PointKind::Push { block } => format!("push block {}", operand(block)),
        PointKind::PopIndirect { block, pool } => {
            format!("pop block at {} pool {}", operand(block), name(pool))
        }
        PointKind::PushIndirect { block } => format!("push block at {}", operand(block)),
        PointKind::NewPoolReturn => "new pool, return".to_owned(),
        PointKind::NewPoolBranch { block, pool } => {
            format!("new pool block {} pool {}", operand(block), name(pool))
        }
        PointKind::Malloc(function) => format!("{function:?}"),
    }
}

fn operand(operand: Operand) -> String {
    match operand.displacement {
        0 => name(operand.register).to_owned(),
        displacement => format!("{}{displacement:+}", name(operand.register)),
    }
}

fn name(register: Register) -> &'static str {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    NAMES.get(usize::from(register.0)).copied().unwrap_or("no register")
}

/// A program without pymalloc has no points, and says nothing odd either.
fn no_points(path: &'static str) -> Trial {
    Trial::test(format!("nothing_in::{}", path.rsplit('/').next().unwrap_or(path)), move || {
        let file = fs::read(path)?;
        let start = Instant::now();
        let InterpreterPlan { plan, checks } = plan_interpreter(&file).map_err(|error| error.to_string())?;
        let took = start.elapsed();
        match plan.points.is_empty() && checks.notes.is_empty() {
            true => Ok(()),
            false => Err(format!("after {took:?}: {plan:?} {checks:?}").into()),
        }
    })
    .with_ignored_flag(!Path::new(path).exists())
}
