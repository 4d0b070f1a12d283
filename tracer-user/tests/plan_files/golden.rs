//! What a plan is as text, and the comparison with its golden file.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use alloctrace::plan::elf::{Elf, Machine};
use alloctrace::plan::{InterpreterPlan, Operand, Plan, PointKind, Register, plan_interpreter, plan_malloc};
use libtest_mimic::{Failed, Trial};

/// A trial that compares what `describe` says of the file with its golden file.
pub fn golden(
    label: &str,
    path: &Path,
    describe: impl Fn(&[u8]) -> Result<String, Failed> + Send + 'static,
) -> Trial {
    let (label, path) = (label.to_owned(), path.to_owned());
    let is_here = path.exists();
    Trial::test(format!("golden::{label}"), move || {
        let file = fs::read(&path)?;
        compare(&label, &file, &describe(&file)?)
    })
    .with_ignored_flag(!is_here)
}

/// Compares what is said of a file with the golden file of its build.
pub fn compare(label: &str, file: &[u8], said: &str) -> Result<(), Failed> {
    let build_id = build_id(file).ok_or("no build id")?;
    let text = format!("{label} {build_id}\n{said}");
    let golden = golden_path(label, &build_id);
    if is_blessing() {
        fs::write(&golden, &text)?;
    }
    let expected = fs::read_to_string(&golden)
        .map_err(|error| format!("{}: {error}; ALLOCTRACE_BLESS=1 writes it", golden.display()))?;
    if text == expected { Ok(()) } else { Err(difference(&expected, &text).into()) }
}

/// Whether golden files are to be written.
pub fn is_blessing() -> bool {
    std::env::var_os("ALLOCTRACE_BLESS").is_some_and(|value| value == "1")
}

/// Where the golden file of a build is.
pub fn golden_path(label: &str, build_id: &str) -> PathBuf {
    let name = format!("{label}-{}.txt", &build_id[..build_id.len().min(12)]);
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plan").join(name)
}

/// The build id in hexadecimal digits.
pub fn build_id(file: &[u8]) -> Option<String> {
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

/// An interpreter's plan and its checks.
pub fn interpreter_text(file: &[u8]) -> Result<String, Failed> {
    let InterpreterPlan { plan, checks, .. } = plan_interpreter(file).map_err(|error| error.to_string())?;
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
    Ok(text + &points_text(file, &plan))
}

/// A C library's plan.
pub fn malloc_text(file: &[u8]) -> Result<String, Failed> {
    Ok(points_text(file, &plan_malloc(file).map_err(|error| error.to_string())?))
}

fn points_text(file: &[u8], plan: &Plan) -> String {
    let names = match Elf::parse(file).map(|elf| elf.machine()) {
        Ok(Machine::Aarch64) => Names(arm64_name),
        _ => Names(x86_name),
    };
    plan.points.iter().map(|point| format!("{:#x} {}\n", point.offset.0, names.kind(point.kind))).collect()
}

/// How registers are called.
struct Names(fn(Register) -> String);

impl Names {
    fn kind(&self, kind: PointKind) -> String {
        match kind {
            PointKind::Pop { block, pool } => {
                format!("pop block {} pool {}", self.operand(block), (self.0)(pool))
            }
            PointKind::Push { block } => format!("push block {}", self.operand(block)),
            PointKind::PopIndirect { block, pool } => {
                format!("pop block at {} pool {}", self.operand(block), (self.0)(pool))
            }
            PointKind::PushIndirect { block } => format!("push block at {}", self.operand(block)),
            PointKind::NewPoolReturn => "new pool, return".to_owned(),
            PointKind::NewPoolBranch { block, pool } => {
                format!("new pool block {} pool {}", self.operand(block), (self.0)(pool))
            }
            PointKind::PagePop { block, page, version } => {
                format!("page pop block {} page {} of {version:?}", self.operand(block), (self.0)(page))
            }
            PointKind::Malloc(function) => format!("{function:?}"),
        }
    }

    fn operand(&self, operand: Operand) -> String {
        match operand.displacement {
            0 => (self.0)(operand.register),
            displacement => format!("{}{displacement:+}", (self.0)(operand.register)),
        }
    }
}

fn x86_name(register: Register) -> String {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    NAMES.get(usize::from(register.0)).copied().unwrap_or("no register").to_owned()
}

fn arm64_name(register: Register) -> String {
    match register.0 {
        number @ 0..=30 => format!("x{number}"),
        31 => "sp".to_owned(),
        _ => "no register".to_owned(),
    }
}

/// A program without pymalloc has no points, and says nothing odd either.
pub fn no_points(path: &Path) -> Result<(), Failed> {
    let file = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let start = Instant::now();
    let InterpreterPlan { plan, checks, .. } = plan_interpreter(&file).map_err(|error| error.to_string())?;
    let took = start.elapsed();
    match plan.points.is_empty() && checks.notes.is_empty() {
        true => Ok(()),
        false => Err(format!("after {took:?}: {plan:?} {checks:?}").into()),
    }
}
