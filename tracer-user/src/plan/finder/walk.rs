//! The walk: from a load of `[P+8]` along every short path to the branch that can carry the probe.
//!
//! Why: one path is one proof. The walk ends at calls, returns and indirect jumps, follows direct jumps and both sides of a few
//! conditional ones, and reports an operation only with the registers that hold its values *at the branch*.
//! It must not know how candidates were chosen or how many sites there should be.

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::patterns::{Operation, completed, find_cell, find_operand, find_register, has_counted, pool_size};
use super::targets::BranchTargets;
use super::value::Origin;
use super::{Code, Flow, Instruction};
use crate::plan::PointKind;

/// Instructions that a path may take behind the load; the longest one seen between load and branch is about 20.
pub const FORWARD_STEPS: u32 = 40;
/// Instructions before the load that are executed too: counters and masks may come first (clang counts before it loads).
pub const LOOK_BACK: usize = 32;
/// Conditional branches whose both sides are followed; two were needed in every build looked at.
pub const FORKS: u32 = 2;
/// Instructions that may pass between the branch and the counter in the push of 3.8, which counts on both sides of it.
const LATE_COUNT_STEPS: u32 = 12;

/// Where a walk begins and which load made it worthwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// First instruction to execute: some way before the load, in straight line.
    pub start: u64,
    /// The load of `[P+8]`.
    pub load: u64,
}

/// An operation that was proven up to its branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The instruction whose store completed the operation.
    pub store: u64,
    /// The conditional branch behind it.
    pub branch: u64,
    /// Why there is or is not a probe point.
    pub verdict: Verdict,
    /// Pool size, where the code shows it.
    pub pool_size: Option<u64>,
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The branch can carry this probe.
    Proven(PointKind),
    /// The counter is not changed: some other linked list.
    NotCounted,
    /// Block or pool cannot be reached from the registers at the branch.
    OutOfReach,
    /// Other code jumps between the store and the branch, so the branch is not the operation's alone.
    Shared,
    /// The branch is one that the kernel cannot emulate.
    NotEmulated,
}

struct Path {
    machine: Machine,
    address: u64,
    /// Whether the load has not been executed yet.
    before_load: bool,
    steps: u32,
    forks: u32,
    /// The operation whose branch is looked for, the instruction that completed it, and whether other code jumps in behind it.
    pending: Option<(Operation, u64, bool)>,
}

/// Walks over one stretch of code.
pub struct Walker<'walk, C> {
    code: &'walk mut C,
    targets: &'walk BranchTargets,
}

impl<'walk, 'data, C: Code<'data>> Walker<'walk, C> {
    /// A walker; `targets` must know every direct jump of the stretch.
    pub fn new(code: &'walk mut C, targets: &'walk BranchTargets) -> Self {
        Self { code, targets }
    }

    /// All sites that the load leads to.
    pub fn walk(&mut self, candidate: Candidate) -> Vec<Site> {
        let mut sites = Vec::new();
        let start = Path {
            machine: Machine::default(),
            address: candidate.start,
            before_load: candidate.start < candidate.load,
            steps: FORWARD_STEPS + LOOK_BACK as u32,
            forks: FORKS,
            pending: None,
        };
        let mut paths = vec![start];
        while let Some(path) = paths.pop() {
            sites.extend(self.follow(path, candidate.load, &mut paths));
        }
        sites
    }

    fn follow(&mut self, mut path: Path, load: u64, others: &mut Vec<Path>) -> Option<Site> {
        let mut jumped = false;
        while path.steps > 0 {
            let instruction = self.code.at(path.address)?;
            if path.before_load && path.address >= load {
                path.before_load = false;
                path.steps = FORWARD_STEPS;
            }
            path.steps -= 1;
            self.note_joins(&mut path, jumped);
            jumped = false;
            match instruction.flow() {
                Flow::Next => self.advance(&mut path, &instruction),
                Flow::Conditional(target) => {
                    if let Some((operation, store, shared)) = path.pending {
                        return Some(self.judge(&path, &instruction, operation, store, shared));
                    }
                    if !path.before_load {
                        others.extend(fork(&mut path, target)?);
                    }
                    path.address = instruction.next_address();
                }
                Flow::Jump(target) => {
                    path.address = target?;
                    jumped = true;
                }
                Flow::End => return None,
            }
        }
        None
    }

    /// A jump from elsewhere into the stretch behind the store means that the branch is reached without the operation.
    fn note_joins(&self, path: &mut Path, jumped: bool) {
        if let Some((_, _, shared)) = &mut path.pending {
            *shared |= !jumped && self.targets.contains(path.address);
        }
    }

    /// Executes one instruction. What lies before the load only prepares: its own operations belong to other candidates.
    fn advance(&mut self, path: &mut Path, instruction: &C::Instruction) {
        let stores_before = path.machine.stores().len();
        self.code.execute(instruction, &mut path.machine);
        if !path.before_load
            && let Some(operation) = completed(&path.machine, stores_before)
            // Variables on the stack can look like a pool's header in code that is not optimised; a pool is never there.
            && operation.pool().origin != Origin::initial(C::STACK_POINTER)
        {
            path.pending = Some((operation, instruction.address(), false));
        }
        path.address = instruction.next_address();
    }

    fn judge(
        &mut self,
        path: &Path,
        branch: &C::Instruction,
        operation: Operation,
        store: u64,
        shared: bool,
    ) -> Site {
        let machine = &path.machine;
        let (block, pool) = match operation {
            Operation::Pop { block, pool } | Operation::Push { block, pool } => (block, pool),
        };
        let kind = point_kind(machine, operation);
        let counted = has_counted(machine, pool, operation.count_change())
            || matches!(operation, Operation::Push { .. })
                && self.counts_on_both_sides(machine, branch, operation);
        let verdict = match kind {
            _ if !counted => Verdict::NotCounted,
            _ if !branch.is_emulated_branch() => Verdict::NotEmulated,
            _ if shared => Verdict::Shared,
            None => Verdict::OutOfReach,
            Some(kind) => Verdict::Proven(kind),
        };
        Site { store, branch: branch.address(), verdict, pool_size: pool_size(machine, pool, block) }
    }

    /// 3.8 tests the old head first and counts on both sides (Objects/obmalloc.c, pymalloc_free: `--pool->ref.count` twice).
    fn counts_on_both_sides(
        &mut self,
        machine: &Machine,
        branch: &C::Instruction,
        operation: Operation,
    ) -> bool {
        let sides = [Some(branch.next_address()), branch.flow().target()];
        sides
            .into_iter()
            .all(|side| side.is_some_and(|side| self.counts_soon(machine.clone(), side, operation)))
    }

    fn counts_soon(&mut self, mut machine: Machine, mut address: u64, operation: Operation) -> bool {
        for _ in 0..LATE_COUNT_STEPS {
            let Some(instruction) = self.code.at(address) else { return false };
            match instruction.flow() {
                Flow::Next => {
                    self.code.execute(&instruction, &mut machine);
                    address = instruction.next_address();
                }
                Flow::Jump(Some(target)) => address = target,
                _ => return false,
            }
            if has_counted(&machine, operation.pool(), operation.count_change()) {
                return true;
            }
        }
        false
    }
}

/// How a probe at this point finds the block and, for a pop, the pool. A register is cheapest; where gcc has spilled the block or has
/// loaded the counter into its register, memory has it still.
fn point_kind(machine: &Machine, operation: Operation) -> Option<PointKind> {
    match operation {
        Operation::Pop { block, pool } => {
            let pool = find_register(machine, pool)?;
            let direct = find_operand(machine, block).map(|block| PointKind::Pop { block, pool });
            direct.or_else(|| Some(PointKind::PopIndirect { block: find_cell(machine, block)?, pool }))
        }
        Operation::Push { block, .. } => {
            let direct = find_operand(machine, block).map(|block| PointKind::Push { block });
            direct.or_else(|| Some(PointKind::PushIndirect { block: find_cell(machine, block)? }))
        }
    }
}

/// The path behind the taken side; `path` itself goes on behind the other. None when no more forks are allowed.
fn fork(path: &mut Path, target: Option<u64>) -> Option<Option<Path>> {
    path.forks = path.forks.checked_sub(1)?;
    Some(target.map(|address| Path {
        machine: path.machine.clone(),
        address,
        before_load: false,
        steps: path.steps,
        forks: path.forks,
        pending: None,
    }))
}
