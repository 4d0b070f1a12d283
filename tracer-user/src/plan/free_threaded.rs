//! The plan of a free-threaded interpreter: the places where blocks leave and return to mimalloc's pages.
//!
//! It must not know instructions.

use super::allocator_tables::find_tables;
use super::elf::Elf;
use super::finder::{InstructionSet, PageFindings, PageSite, Verdict, find_pages};
use super::interpreter::{InterpreterChecks, InterpreterPlan, PlanNote, drop_ambiguous};
use super::{Plan, Point};

/// Plans an interpreter of this instruction set.
pub fn plan_free_threaded<Set: InstructionSet>(elf: &Elf<'_>) -> InterpreterPlan {
    let PageFindings { pops, frees, is_cut } = find_pages::<Set>(elf);
    let mut checks = InterpreterChecks::default();
    let mut points = Vec::new();
    take(elf, &pops, &mut points, &mut checks);
    take(elf, &frees, &mut points, &mut checks);
    drop_ambiguous(&mut points, &mut checks);
    checks.pops =
        points.iter().filter(|point| matches!(point.kind, super::PointKind::PagePop { .. })).count();
    checks.pushes = points.len() - checks.pops;
    checks.notes.extend(is_cut.then_some(PlanNote::Cut));
    if pops.is_empty() && frees.is_empty() {
        checks.notes.push(PlanNote::NoPages);
    }
    if (checks.pops == 0) != (checks.pushes == 0) {
        checks.notes.push(PlanNote::OneSided { pops: checks.pops, pushes: checks.pushes });
        // Blocks that never end, or that were never there: worse than nothing.
        points.clear();
    }
    InterpreterPlan { plan: Plan { points }, checks, allocators: find_tables::<Set>(elf), thread_slot: None }
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
