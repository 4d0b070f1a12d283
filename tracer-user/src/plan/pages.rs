//! The points of mimalloc: the places where blocks leave and return to its pages. Free-threaded interpreters have nothing else; those with a lock have
//! it beside pymalloc, for `PYTHONMALLOC=mimalloc`.
//!
//! It must not know instructions.

use super::allocator_tables::find_tables;
use super::elf::Elf;
use super::finder::{InstructionSet, PageFindings, PageSite, Verdict, find_pages};
use super::interpreter::{InterpreterChecks, InterpreterPlan, PlanNote, drop_ambiguous, plan_interpreter};
use super::mimalloc::MimallocVersion;
use super::{Plan, Point, PointKind};

/// The newest mimalloc of which a free-threaded release was recorded (docs/decisions/0014).
const NEWEST_TRIED: MimallocVersion = MimallocVersion::V2_1;

/// Plans a free-threaded interpreter of this instruction set.
pub fn plan_free_threaded<Set: InstructionSet>(elf: &Elf<'_>) -> InterpreterPlan {
    let Pages { mut points, mut checks, mut version } = pages::<Set>(elf);
    if version.is_some_and(|version| version > NEWEST_TRIED) {
        checks = InterpreterChecks { notes: vec![PlanNote::UntriedPages], ..InterpreterChecks::default() };
        points.clear();
        version = None;
    }
    InterpreterPlan {
        plan: Plan { points },
        checks,
        allocators: find_tables::<Set>(elf),
        thread_slot: None,
        mimalloc: version,
    }
}

/// Plans an interpreter with a lock: pymalloc and mimalloc.
pub fn plan_both<Set: InstructionSet>(elf: &Elf<'_>) -> InterpreterPlan {
    let mut plan = plan_interpreter::<Set>(elf);
    let pages = pages::<Set>(elf);
    plan.checks.pops += pages.checks.pops;
    plan.checks.pushes += pages.checks.pushes;
    plan.checks.notes.extend(pages.checks.notes);
    plan.plan.points.extend(pages.points);
    drop_ambiguous(&mut plan.plan.points, &mut plan.checks);
    InterpreterPlan { mimalloc: pages.version, ..plan }
}

struct Pages {
    /// Sorted by offset, no two alike.
    points: Vec<Point>,
    checks: InterpreterChecks,
    version: Option<MimallocVersion>,
}

fn pages<Set: InstructionSet>(elf: &Elf<'_>) -> Pages {
    let PageFindings { pops, frees, is_cut } = find_pages::<Set>(elf);
    let mut checks = InterpreterChecks::default();
    let mut points = Vec::new();
    take(elf, &pops, &mut points, &mut checks);
    take(elf, &frees, &mut points, &mut checks);
    drop_ambiguous(&mut points, &mut checks);
    checks.pops = points.iter().filter(|point| matches!(point.kind, PointKind::PagePop { .. })).count();
    checks.pushes = points.len() - checks.pops;
    checks.notes.extend(is_cut.then_some(PlanNote::Cut));
    let mut version = version(pops.iter().chain(&frees));
    if version.is_ok() && (checks.pops == 0) != (checks.pushes == 0) {
        version = Err(PlanNote::OneSided { pops: checks.pops, pushes: checks.pushes });
    }
    if let Err(note) = version {
        checks.notes.push(note);
        // Blocks that never end, that were never there, or of sizes that nobody knows: worse than nothing.
        points.clear();
    }
    let version = version.ok().filter(|_| !points.is_empty());
    Pages { points, checks, version }
}

/// The one version that all sites are of.
fn version<'a>(mut sites: impl Iterator<Item = &'a PageSite>) -> Result<MimallocVersion, PlanNote> {
    let first = sites.next().ok_or(PlanNote::NoPages)?.version;
    if sites.all(|site| site.version == first) { Ok(first) } else { Err(PlanNote::MixedPages) }
}

fn take(elf: &Elf<'_>, sites: &[PageSite], points: &mut Vec<Point>, checks: &mut InterpreterChecks) {
    for site in sites {
        let Some(offset) = elf.offset_of(site.branch) else { continue };
        match site.verdict {
            Verdict::Proven(kind) => points.push(Point { offset, kind }),
            verdict => checks.notes.push(PlanNote::Unprobed { offset, verdict }),
        }
    }
}
