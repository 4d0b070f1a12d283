//! A cheap look at what follows a load of `[P+8]`: could this be a pop or a push at all?
//!
//! Why: an interpreter has tens of thousands of such loads (`ob_type` lies there) and a few hundred allocator sites. This follows only
//! which registers still hold the loaded value. It may say yes wrongly; it must not say no where `walk` would find something.

use super::patterns::FREE_BLOCK;
use super::walk::{FORKS, FORWARD_STEPS};
use super::{Code, Flow, Instruction};

#[derive(Clone, Copy)]
struct Trail {
    address: u64,
    /// Bit n: register n holds the loaded value.
    holders: u32,
    /// The loaded value was followed (`[R]`) or stored (`[X] = L`).
    used: bool,
    /// Something was stored to `[Q+8]`.
    stored: bool,
    steps: u32,
    forks: u32,
}

/// Whether the load `instruction` deserves the full walk.
pub fn is_promising<'data, C: Code<'data>>(
    code: &mut C,
    instruction: &C::Instruction,
    destination: u8,
) -> bool {
    let start = Trail {
        address: instruction.next_address(),
        holders: 1 << destination,
        used: false,
        stored: false,
        steps: FORWARD_STEPS,
        forks: FORKS,
    };
    let mut trails = vec![start];
    while let Some(trail) = trails.pop() {
        if follow(code, trail, &mut trails) {
            return true;
        }
    }
    false
}

/// Follows one path; true when it has all the stores that an operation needs.
fn follow<'data, C: Code<'data>>(code: &mut C, mut trail: Trail, others: &mut Vec<Trail>) -> bool {
    let mut instruction = C::Instruction::default();
    if !code.seek(trail.address) {
        return false;
    }
    while trail.steps > 0 && code.next_into(&mut instruction) {
        trail.steps -= 1;
        match instruction.flow() {
            Flow::Next => {
                observe(&mut trail, &instruction);
                if trail.used && trail.stored {
                    return true;
                }
                if !trail.used && trail.holders == 0 {
                    return false;
                }
            }
            Flow::Conditional(target) if trail.forks > 0 => {
                trail.forks -= 1;
                others.extend(target.map(|address| Trail { address, ..trail }));
            }
            Flow::Jump(Some(target)) if code.seek(target) => {}
            _ => return false,
        }
    }
    false
}

fn observe(trail: &mut Trail, instruction: &impl Instruction) {
    let holds = |register: u8| trail.holders & (1 << register) != 0;
    let (mut used, mut stored) = (false, false);
    for store in instruction.stores().into_iter().flatten() {
        used |= holds(store.register);
        stored |= store.displacement == FREE_BLOCK;
    }
    for load in instruction.loads().into_iter().flatten() {
        used |= holds(load.base) && load.displacement == 0;
    }
    trail.used |= used;
    trail.stored |= stored;
    trail.holders = instruction.holders_after(trail.holders);
}
