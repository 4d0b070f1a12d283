//! The cold path: where pymalloc opens a pool and takes its first block.
//!
//! Why: those blocks leave the pool without the pop's counter and branch (`allocate_from_new_pool` in CPython, Objects/obmalloc.c:
//! `pool->ref.count = 1; if (pool->szidx == size) { reuse the free list } else { carve the pool anew }`), so pops miss them.
//! It must not know how pops are found.

use super::machine::Machine;
use super::patterns::{FREE_BLOCK, HEADER_SIZE, Operation, SIZE_INDEX, completed, find_register};
use super::targets::BranchTargets;
use super::value::Value;
use super::{Code, Flow, Instruction};
use crate::plan::{Operand, PointKind};

/// Instructions between `count = 1` and the comparison of the size classes: at most three in the builds looked at.
const STEPS_TO_BRANCH: u32 = 6;
/// Instructions behind it until the side shows what it is.
const STEPS_ON_SIDE: u32 = 12;
/// Branches on a side whose both ways are followed: builds with assertions test the old free list's head (`assert(bp != NULL)`).
const FORKS_ON_SIDE: u32 = 1;

/// One place that opens pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdSite {
    /// The store of the counter: identifies the site.
    pub store: u64,
    /// Where the pool is carved anew: behind the store of its size class, which the probe reads, with the block behind the header.
    pub carve: (u64, PointKind),
    /// Where the pool's old free list is used: the load of its second block, with the first in a register.
    pub reuse: (u64, PointKind),
}

/// Looks closer at a store of 1; none if no pool is opened there.
pub fn examine<'data, C: Code<'data>>(code: &mut C, targets: &BranchTargets, store: u64) -> Option<ColdSite> {
    let mut machine = Machine::default();
    let first = code.at(store)?;
    let pool = first.memory_address(&machine)?;
    let mut address = store;
    for _ in 0..STEPS_TO_BRANCH {
        let instruction = code.at(address)?;
        match instruction.flow() {
            Flow::Next => code.execute(&instruction, &mut machine),
            Flow::Conditional(target) => {
                let sides = [instruction.next_address(), target?];
                return join(store, sides.map(|side| explore(code, targets, Way::new(&machine, side), pool)));
            }
            _ => return None,
        }
        address = instruction.next_address();
    }
    None
}

/// What a side of the comparison does.
#[derive(Clone, Copy)]
enum Side {
    Carve(u64, PointKind),
    Reuse(u64, PointKind),
}

fn join(store: u64, sides: [Option<Side>; 2]) -> Option<ColdSite> {
    let [first, second] = sides;
    match (first?, second?) {
        (Side::Carve(carve, fresh), Side::Reuse(reuse, old))
        | (Side::Reuse(reuse, old), Side::Carve(carve, fresh)) => {
            Some(ColdSite { store, carve: (carve, fresh), reuse: (reuse, old) })
        }
        _ => None,
    }
}

/// One way on a side.
#[derive(Clone)]
struct Way {
    machine: Machine,
    address: u64,
    steps: u32,
    forks: u32,
    reuse: Option<(u64, PointKind)>,
}

impl Way {
    fn new(machine: &Machine, address: u64) -> Self {
        Self { machine: machine.clone(), address, steps: STEPS_ON_SIDE, forks: FORKS_ON_SIDE, reuse: None }
    }
}

fn explore<'data, C: Code<'data>>(
    code: &mut C,
    targets: &BranchTargets,
    way: Way,
    pool: Value,
) -> Option<Side> {
    let Way { mut machine, mut address, steps, forks, mut reuse } = way;
    for step in 0..steps {
        let instruction = code.at(address)?;
        match instruction.flow() {
            Flow::Next => address = instruction.next_address(),
            Flow::Jump(target) => {
                address = target?;
                continue;
            }
            Flow::Conditional(Some(target)) => {
                let left =
                    Way { machine, address, steps: steps - step - 1, forks: forks.checked_sub(1)?, reuse };
                let ways =
                    [instruction.next_address(), target].map(|address| Way { address, ..left.clone() });
                return ways.into_iter().find_map(|way| explore(code, targets, way, pool));
            }
            _ => return None,
        }
        reuse = reuse.or_else(|| head_in_register(&machine, &instruction, pool));
        let stores = machine.stores().len();
        code.execute(&instruction, &mut machine);
        let mut newest = machine.stores().iter().skip(stores);
        if newest.any(|store| store.address == pool.plus(SIZE_INDEX) && store.size == 4) {
            let register = find_register(&machine, pool)?;
            let block = Operand { register, displacement: HEADER_SIZE };
            let kind = PointKind::NewPoolBranch { block, pool: register };
            // A probe fires before its instruction, and before the store the class is that of the pool's former blocks.
            return (!targets.contains(address)).then_some(Side::Carve(address, kind));
        }
        if matches!(completed(&machine, stores), Some(Operation::Pop { pool: popped, .. }) if popped == pool)
        {
            return reuse.map(|(address, kind)| Side::Reuse(address, kind));
        }
    }
    None
}

/// Whether this instruction loads through the pool's free list head: both are in registers before it.
fn head_in_register(
    machine: &Machine,
    instruction: &impl Instruction,
    pool: Value,
) -> Option<(u64, PointKind)> {
    let [Some(load), _] = instruction.loads() else { return None };
    let head = machine.register(load.base);
    let through =
        load.displacement == 0 && machine.origins().loaded_from(head) == Some(pool.plus(FREE_BLOCK));
    let block = Operand { register: crate::plan::Register(load.base), displacement: 0 };
    let pool = through.then(|| find_register(machine, pool)).flatten()?;
    Some((instruction.address(), PointKind::NewPoolBranch { block, pool }))
}
