//! The x86-64 finder on code that is no pop or push, or whose branch cannot carry a probe: look-alikes are silent, losses are noted.

#[path = "plan_x86/program.rs"]
#[expect(dead_code, reason = "where probes go is for plan_x86")]
mod program;

use alloctrace::plan::PlanNote;
use alloctrace::plan::Verdict;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use program::{Program, find};

#[track_caller]
fn rejects(write: impl FnOnce(&mut Program)) {
    let found = find(write);
    assert_eq!(found.kinds(), [], "{:?}", found.plan.checks);
}

#[test]
fn rejects_push_that_counts_on_one_side_only() {
    rejects(|code| {
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rbx), rcx));
        code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
        code.op(|a| a.test(rcx, rcx));
        let mut full = code.probe_label();
        code.op(|a| a.sub(dword_ptr(rax), 1));
        code.op(CodeAssembler::ret);
        code.place(&mut full);
    });
}

#[test]
fn rejects_pop_without_counter() {
    rejects(|code| {
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn rejects_list_insert_without_counter() {
    rejects(|code| {
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rbx), rcx));
        code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
        code.op(|a| a.test(rcx, rcx));
        code.probe();
    });
}

/// Free lists of other programs: the counter goes the other way, is 64 bits wide, or lies elsewhere.
#[test]
fn rejects_other_counters() {
    let pop_with = |count: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        rejects(|code| {
            code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
            code.op(count);
            code.op(|a| a.mov(rdx, qword_ptr(rax)));
            code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
            code.op(|a| a.test(rdx, rdx));
            code.probe();
        });
    };
    pop_with(|a| a.sub(dword_ptr(rcx), 1));
    pop_with(|a| a.add(qword_ptr(rcx), 1));
    pop_with(|a| a.add(dword_ptr(rcx + 4), 1));
    pop_with(|a| a.add(dword_ptr(rcx), 2));
    pop_with(|a| a.add(dword_ptr(rbx), 1));
    pop_with(|a| a.mov(dword_ptr(rcx), 1));
}

#[test]
fn rejects_store_elsewhere() {
    let pop_with = |store: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        rejects(|code| {
            code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
            code.op(|a| a.add(dword_ptr(rcx), 1));
            code.op(|a| a.mov(rdx, qword_ptr(rax)));
            code.op(store);
            code.op(|a| a.test(rdx, rdx));
            code.probe();
        });
    };
    pop_with(|a| a.mov(qword_ptr(rcx + 16), rdx));
    pop_with(|a| a.mov(qword_ptr(rbx + 8), rdx));
    pop_with(|a| a.mov(dword_ptr(rcx + 8), edx));
    pop_with(|a| a.mov(qword_ptr(rcx + 8).fs(), rdx));
    pop_with(|a| a.mov(qword_ptr(rcx + rbx + 8), rdx));
}

#[test]
fn rejects_a_pool_register_that_changed() {
    rejects(|code| {
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.add(dword_ptr(rcx), 1));
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.mov(rcx, rsi));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn ends_at_calls() {
    rejects(|code| {
        code.op(|a| a.mov(rbx, qword_ptr(r12 + 8)));
        code.op(|a| a.add(dword_ptr(r12), 1));
        code.op(|a| a.mov(rdx, qword_ptr(rbx)));
        code.op(|a| a.mov(qword_ptr(r12 + 8), rdx));
        code.op(|a| a.call(0x1000u64));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

/// The pop is real, but the probe could not say which block: it must be told, not guessed.
#[test]
fn notes_a_pop_whose_block_is_lost() {
    for lose in [lost_by_copy, lost_by_overwritten_spill, lost_by_conditional_move, lost_by_half_register] {
        let found = find(|code| {
            code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
            code.op(|a| a.add(dword_ptr(rcx), 1));
            code.op(|a| a.mov(rdx, qword_ptr(rax)));
            code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
            code.op(lose);
            code.op(|a| a.test(rdx, rdx));
            code.probe();
        });
        assert_eq!(found.kinds(), []);
        assert!(
            matches!(found.plan.checks.notes[..], [PlanNote::Unprobed { verdict: Verdict::OutOfReach, .. }]),
            "{:?}",
            found.plan.checks
        );
    }
}

fn lost_by_copy(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, rsi)
}

/// The spill is there, but another value has gone over half of it.
fn lost_by_overwritten_spill(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(qword_ptr(rsp + 8), rax)?;
    a.mov(rax, rsi)?;
    a.mov(dword_ptr(rsp + 12), esi)
}

fn lost_by_conditional_move(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cmove(rax, rsi)
}

fn lost_by_half_register(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(al, 3)
}

/// A branch that other code reaches without a pop would count what is none.
#[test]
fn notes_a_branch_that_is_shared() {
    let found = find(|code| {
        let mut shared = code.label();
        code.op(|a| a.cmp(rsi, rdi));
        code.op(|a| a.je(shared));
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.add(dword_ptr(rcx), 1));
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.place(&mut shared);
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
    assert_eq!(found.kinds(), []);
    assert!(
        matches!(found.plan.checks.notes[..], [PlanNote::Unprobed { verdict: Verdict::Shared, .. }]),
        "{:?}",
        found.plan.checks
    );
}

/// `jrcxz` is a conditional branch that the kernel cannot emulate.
#[test]
fn notes_a_branch_that_is_not_emulated() {
    let found = find(|code| {
        code.op(|a| a.mov(rax, qword_ptr(rbx + 8)));
        code.op(|a| a.add(dword_ptr(rbx), 1));
        code.op(|a| a.mov(rcx, qword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rbx + 8), rcx));
        let mut empty = code.label();
        code.op(|a| a.jrcxz(empty));
        code.op(CodeAssembler::ret);
        code.place(&mut empty);
    });
    assert_eq!(found.kinds(), []);
    assert!(
        matches!(found.plan.checks.notes[..], [PlanNote::Unprobed { verdict: Verdict::NotEmulated, .. }]),
        "{:?}",
        found.plan.checks
    );
}
