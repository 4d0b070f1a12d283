//! A cheap look at what follows a load of `[P+8]`: could this be a pop or a push at all?
//!
//! Why: an interpreter has tens of thousands of such loads (`ob_type` lies there) and a few hundred allocator sites. This follows only
//! which registers still hold the loaded value. It may say yes wrongly; it must not say no where `walk` would find something.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

use super::code::{Code, jump_target, plain_load64, plain_store64, register_number};
use super::patterns::FREE_BLOCK;
use super::walk::{FORKS, FORWARD_STEPS};

#[derive(Clone, Copy)]
struct Trail {
    address: u64,
    /// Bit n: register n holds the loaded value.
    holders: u16,
    /// The loaded value was followed (`[R]`) or stored (`[X] = L`).
    used: bool,
    /// Something was stored to `[Q+8]`.
    stored: bool,
    steps: u32,
    forks: u32,
}

/// Whether the load `instruction` deserves the full walk.
pub fn is_promising(code: &mut Code<'_>, instruction: &Instruction, destination: u8) -> bool {
    let start = Trail {
        address: instruction.next_ip(),
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
fn follow(code: &mut Code<'_>, mut trail: Trail, others: &mut Vec<Trail>) -> bool {
    let mut instruction = Instruction::default();
    if !code.seek(trail.address) {
        return false;
    }
    while trail.steps > 0 && code.next_into(&mut instruction) && !instruction.is_invalid() {
        trail.steps -= 1;
        match instruction.flow_control() {
            FlowControl::Next => {
                observe(&mut trail, &instruction);
                if trail.used && trail.stored {
                    return true;
                }
                if !trail.used && trail.holders == 0 {
                    return false;
                }
            }
            FlowControl::ConditionalBranch if trail.forks > 0 => {
                trail.forks -= 1;
                if let Some(address) = jump_target(&instruction) {
                    others.push(Trail { address, ..trail });
                }
            }
            FlowControl::UnconditionalBranch => match jump_target(&instruction) {
                Some(target) if code.seek(target) => {}
                _ => return false,
            },
            _ => return false,
        }
    }
    false
}

fn observe(trail: &mut Trail, instruction: &Instruction) {
    let holds = |register: u8| trail.holders & (1 << register) != 0;
    if let Some((source, _, displacement)) = plain_store64(instruction) {
        trail.used |= holds(source);
        trail.stored |= displacement == FREE_BLOCK;
        return;
    }
    if let Some((_, base, displacement)) = plain_load64(instruction) {
        trail.used |= holds(base) && displacement == 0;
    }
    let keeps = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
    if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Register || keeps {
        return;
    }
    let Some(target) = register_number(instruction.op0_register()) else { return };
    let copied = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op1_kind() == OpKind::Register
        && register_number(instruction.op1_register()).is_some_and(holds);
    // A pop from the stack or a sum may bring the value back in a way that only the walk understands: `lea` keeps it.
    let kept = instruction.mnemonic() == Mnemonic::Lea
        && register_number(instruction.memory_base()).is_some_and(holds);
    match copied || kept {
        true => trail.holders |= 1 << target,
        false => trail.holders &= !(1 << target),
    }
}
