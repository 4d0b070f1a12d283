//! The x86-64 finder on code written for one rule each: what it must accept, and where the probe must go.

#[path = "plan_x86/program.rs"]
mod program;

use alloctrace::plan::{
    InterpreterPlan, MimallocVersion, Operand, PlanError, PlanNote, PointKind, Register, plan_free_threaded,
    plan_interpreter, plan_with_mimalloc,
};
use iced_x86::code_asm::*;
use program::{Program, find, find_with};

const RAX: Register = Register(0);
const RCX: Register = Register(1);
const RDX: Register = Register(2);
const RBX: Register = Register(3);
const RSP: Register = Register(4);
const RBP: Register = Register(5);
const RDI: Register = Register(7);
const R12: Register = Register(12);

fn held(register: Register, displacement: i8) -> Operand {
    Operand { register, displacement }
}

fn pop(block: Register, pool: Register) -> Vec<PointKind> {
    vec![PointKind::Pop { block: held(block, 0), pool }]
}

fn push(block: Operand) -> Vec<PointKind> {
    vec![PointKind::Push { block }]
}

/// Finds exactly `expected` in what `write` assembles, on the instruction that `write` labels "probe".
#[track_caller]
fn accepts(expected: &[PointKind], write: impl FnOnce(&mut Program)) {
    let found = find(write);
    assert_eq!(found.kinds(), expected, "{:?}", found.plan.checks);
    assert_eq!(found.offsets(), found.probes, "the probes are on the wrong instructions");
    assert_eq!(
        found.plan.checks.notes.iter().filter(|note| matches!(note, PlanNote::Unprobed { .. })).count(),
        0
    );
}

/// gcc 12 to 16: `mov 8(P),R; addl $1,(P); mov (R),T; mov T,8(P); test T,T; je`.
fn gcc_pop(code: &mut Program) {
    code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
    code.op(|a| a.add(dword_ptr(rcx), 1));
    code.op(|a| a.mov(rdx, qword_ptr(rax)));
    code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
    code.op(|a| a.test(rdx, rdx));
    code.probe();
}

/// gcc and clang, 3.9 and later: the counter is loaded, lowered and stored apart.
fn gcc_push(code: &mut Program) {
    code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
    code.op(|a| a.mov(qword_ptr(rbx), rcx));
    code.op(|a| a.mov(edi, dword_ptr(rax)));
    code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
    code.op(|a| a.lea(edx, dword_ptr(rdi - 1)));
    code.op(|a| a.mov(dword_ptr(rax), edx));
    code.op(|a| a.test(rcx, rcx));
    code.probe();
}

#[test]
fn finds_gcc_pop() {
    accepts(&pop(RAX, RCX), gcc_pop);
}

#[test]
fn finds_gcc_push() {
    accepts(&push(held(RBX, 0)), gcc_push);
}

#[test]
fn finds_clang_pop_that_counts_first() {
    accepts(&pop(RAX, RCX), |code| {
        code.op(|a| a.inc(dword_ptr(rcx)));
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn finds_pop_with_split_counter() {
    accepts(&pop(RAX, RCX), |code| {
        code.op(|a| a.mov(esi, dword_ptr(rcx)));
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.add(esi, 1));
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.op(|a| a.mov(dword_ptr(rcx), esi));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn follows_register_copies() {
    accepts(&pop(R12, RBX), |code| {
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.mov(r12, rax));
        code.op(|a| a.mov(rbx, rcx));
        code.op(|a| a.add(dword_ptr(rcx), 1));
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.xor(eax, eax));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.op(|a| a.mov(rcx, 7u64));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn follows_direct_jump() {
    accepts(&pop(RAX, RCX), |code| {
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.add(dword_ptr(rcx), 1));
        let mut on = code.label();
        code.op(|a| a.jmp(on));
        code.op(CodeAssembler::ret);
        code.place(&mut on);
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn follows_taken_side_of_branch() {
    accepts(&pop(RAX, RCX), |code| {
        code.op(|a| a.mov(rax, qword_ptr(rcx + 8)));
        code.op(|a| a.cmp(rax, rsi));
        let mut on = code.label();
        code.op(|a| a.jne(on));
        code.op(CodeAssembler::ret);
        code.place(&mut on);
        code.op(|a| a.add(dword_ptr(rcx), 1));
        code.op(|a| a.mov(rdx, qword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rdx));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn reads_index_alone_as_base() {
    accepts(&pop(RAX, RCX), |code| {
        code.op(|a| a.mov(rax, qword_ptr(rcx * 1 + 8)));
        code.op(|a| a.add(dword_ptr(rcx * 1), 1));
        code.op(|a| a.mov(rdx, qword_ptr(rax * 1)));
        code.op(|a| a.mov(qword_ptr(rcx * 1 + 8), rdx));
        code.op(|a| a.test(rdx, rdx));
        code.probe();
    });
}

#[test]
fn follows_spills_to_the_stack() {
    accepts(&push(held(RBX, 0)), |code| {
        code.op(|a| a.mov(qword_ptr(rsp + 0x20), rbx));
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(rsi, qword_ptr(rsp + 0x20)));
        code.op(|a| a.mov(qword_ptr(rsi), rcx));
        code.op(|a| a.mov(edi, dword_ptr(rax)));
        code.op(|a| a.mov(dword_ptr(rsp + 0x10), edi));
        code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
        code.op(|a| a.mov(edi, dword_ptr(rsp + 0x10)));
        code.op(|a| a.dec(edi));
        code.op(|a| a.mov(dword_ptr(rax), edi));
        code.op(|a| a.mov(esi, 0u32));
        code.op(|a| a.test(rcx, rcx));
        code.probe();
    });
}

#[test]
fn finds_block_behind_a_header() {
    accepts(&push(held(RBP, -16)), |code| {
        code.op(|a| a.lea(rdi, qword_ptr(rbp - 0x10)));
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rbp - 0x10), rcx));
        code.op(|a| a.mov(qword_ptr(rax + 8), rdi));
        code.op(|a| a.mov(edi, dword_ptr(rax)));
        code.op(|a| a.sub(edi, 1));
        code.op(|a| a.mov(dword_ptr(rax), edi));
        code.op(|a| a.test(rcx, rcx));
        code.probe();
    });
}

#[test]
fn trusts_the_pool_mask_where_addresses_cannot_be_compared() {
    accepts(&push(held(RBX, 0)), |code| {
        code.op(|a| a.mov(rax, rbx));
        code.op(|a| a.and(rax, -0x4000));
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rsi - 0x10), rcx));
        code.op(|a| a.sub(dword_ptr(rax), 1));
        code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
        code.op(|a| a.test(rcx, rcx));
        code.probe();
    });
}

/// The debug hooks' free in Debian's 3.11: `memset` returns the block in `rax`, its address behind the hooks' header is in `rbx`, and the
/// radix tree is asked between the mask and the load.
#[test]
fn finds_push_far_behind_its_mask() {
    accepts(&push(held(RDI, 0)), |code| {
        code.op(|a| a.mov(rdi, rax));
        code.op(|a| a.mov(rax, rdi));
        code.op(|a| a.and(rax, -0x4000));
        for _ in 0..24 {
            code.op(|a| a.mov(rsi, rdi));
        }
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rbx - 16), rcx));
        code.op(|a| a.mov(esi, dword_ptr(rax)));
        code.op(|a| a.mov(qword_ptr(rax + 8), rdi));
        code.op(|a| a.lea(edx, dword_ptr(rsi - 1)));
        code.op(|a| a.mov(dword_ptr(rax), edx));
        code.op(|a| a.test(rcx, rcx));
        code.probe();
    });
}

#[test]
fn reports_the_pool_size() {
    let found = find(|code| {
        code.op(|a| a.mov(rax, rbx));
        code.op(|a| a.and(rax, -0x1000));
        gcc_push(code);
    });
    assert_eq!(found.plan.checks.pool_size, Some(0x1000));
}

/// 3.8: `if (!lastfree) { --count; ...; return } if (--count != 0)`.
#[test]
fn finds_push_that_counts_behind_the_branch() {
    accepts(&push(held(RBX, 0)), |code| {
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rbx), rcx));
        code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
        code.op(|a| a.test(rcx, rcx));
        let mut full = code.probe_label();
        code.op(|a| a.sub(dword_ptr(rax), 1));
        code.op(CodeAssembler::ret);
        code.place(&mut full);
        code.op(|a| a.mov(edx, dword_ptr(rax + 0x24)));
        code.op(|a| a.sub(dword_ptr(rax), 1));
    });
}

/// gcc 12 loads the counter into the block's register: the block is in memory only.
#[test]
fn finds_push_by_the_head_of_the_list() {
    accepts(&[PointKind::PushIndirect { block: held(RAX, 8) }], |code| {
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rbx), rcx));
        code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
        code.op(|a| a.mov(ebx, dword_ptr(rax)));
        code.op(|a| a.lea(edx, dword_ptr(rbx - 1)));
        code.op(|a| a.mov(dword_ptr(rax), edx));
        code.op(|a| a.test(rcx, rcx));
        code.probe();
    });
}

/// gcc 16 spills the block and loads its second word into the same register.
#[test]
fn finds_pop_whose_block_is_spilled() {
    accepts(&[PointKind::PopIndirect { block: held(RSP, 0x20), pool: RAX }], |code| {
        code.op(|a| a.mov(rsi, qword_ptr(rax + 8)));
        code.op(|a| a.add(dword_ptr(rax), 1));
        code.op(|a| a.mov(qword_ptr(rsp + 0x20), rsi));
        code.op(|a| a.mov(rsi, qword_ptr(rsi)));
        code.op(|a| a.mov(qword_ptr(rax + 8), rsi));
        code.op(|a| a.test(rsi, rsi));
        code.probe();
    });
}

#[test]
fn finds_push_that_stores_the_head_first() {
    accepts(&push(held(RBX, 0)), |code| {
        code.op(|a| a.mov(rcx, qword_ptr(rax + 8)));
        code.op(|a| a.mov(qword_ptr(rax + 8), rbx));
        code.op(|a| a.mov(qword_ptr(rbx), rcx));
        code.op(|a| a.dec(dword_ptr(rax)));
        code.op(|a| a.test(rcx, rcx));
        code.probe();
    });
}

#[test]
fn finds_inlined_pool_opening() {
    let cold = |block, pool| PointKind::NewPoolBranch { block, pool };
    let expected = [
        PointKind::Pop { block: held(RAX, 0), pool: RCX },
        cold(held(RCX, 48), RCX),
        cold(held(RDX, 0), RCX),
    ];
    accepts(&expected, |code| {
        gcc_pop(code);
        code.op(|a| a.mov(esi, dword_ptr(rcx + 0x24)));
        code.op(|a| a.mov(dword_ptr(rcx), 1));
        code.op(|a| a.cmp(esi, ebx));
        let mut reuse = code.label();
        code.op(|a| a.je(reuse));
        code.op(|a| a.mov(dword_ptr(rcx + 0x24), ebx));
        // Behind the store of the size class: before it, the class is that of the pool's former blocks.
        code.mark();
        code.op(CodeAssembler::ret);
        code.place(&mut reuse);
        code.op(|a| a.mov(rdx, qword_ptr(rcx + 8)));
        code.mark();
        code.op(|a| a.mov(rax, qword_ptr(rdx)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rax));
    });
}

/// Builds with assertions test the old free list's head (`assert(bp != NULL)`, `allocate_from_new_pool`): Debian's debug builds.
#[test]
fn finds_inlined_pool_opening_with_an_assertion() {
    let cold = |block, pool| PointKind::NewPoolBranch { block, pool };
    let expected = [
        PointKind::Pop { block: held(RAX, 0), pool: RCX },
        cold(held(RCX, 48), RCX),
        cold(held(RDX, 0), RCX),
    ];
    accepts(&expected, |code| {
        gcc_pop(code);
        code.op(|a| a.mov(dword_ptr(rcx), 1));
        code.op(|a| a.cmp(dword_ptr(rcx + 0x24), ebx));
        let (mut reuse, mut failed) = (code.label(), code.label());
        code.op(|a| a.je(reuse));
        code.op(|a| a.mov(dword_ptr(rcx + 0x24), ebx));
        code.mark();
        code.op(CodeAssembler::ret);
        code.place(&mut reuse);
        code.op(|a| a.mov(rdx, qword_ptr(rcx + 8)));
        code.op(|a| a.test(rdx, rdx));
        code.op(|a| a.je(failed));
        code.mark();
        code.op(|a| a.mov(rax, qword_ptr(rdx)));
        code.op(|a| a.mov(qword_ptr(rcx + 8), rax));
        code.op(CodeAssembler::ret);
        code.place(&mut failed);
        code.op(CodeAssembler::ud2);
    });
}

#[test]
fn says_that_pops_without_pushes_are_no_allocator() {
    let notes = find(gcc_pop).plan.checks.notes;
    assert_eq!(notes, [PlanNote::NoColdSite { pops: 1 }, PlanNote::OneSided { pops: 1, pushes: 0 }]);
    // The texts are read by people who must decide whether to trust a trace.
    let texts: Vec<_> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "1 pops but no place that opens pools; the first block of each pool is missed",
            "1 pops but 0 pushes; this is not a whole pymalloc"
        ]
    );
}

/// A page's counter: 32 bits, or 16 if `is_half`, at this offset.
#[derive(Debug, Clone, Copy)]
struct Counter {
    offset: i32,
    is_half: bool,
}

const COUNTER_2_1: Counter = Counter { offset: 0x18, is_half: false };
const COUNTER_2_5: Counter = Counter { offset: 0x20, is_half: true };
/// Where `local_free` is.
const LIST_2_1: i32 = 0x20;
const LIST_2_5: i32 = 0x18;
const SEGMENT_MASK: i32 = -0x200_0000;

/// gcc 12 on `mi_heap_malloc`: the page is looked up, its list tested, and a block taken.
fn page_pop(code: &mut Program, counter: Counter) {
    code.op(|a| a.mov(rax, qword_ptr(rdi + rax * 8 + 8)));
    code.op(|a| a.mov(rdx, qword_ptr(rax + 0x10)));
    code.op(|a| a.test(rdx, rdx));
    let mut slow = code.probe_label();
    code.op(|a| match counter.is_half {
        true => a.add(word_ptr(rax + counter.offset), 1),
        false => a.add(dword_ptr(rax + counter.offset), 1),
    });
    code.op(|a| a.mov(rcx, qword_ptr(rdx)));
    code.op(|a| a.mov(qword_ptr(rax + 0x10), rcx));
    code.op(|a| a.mov(rax, rdx));
    code.op(CodeAssembler::ret);
    code.place(&mut slow);
    code.op(|a| a.xor(ecx, ecx));
}

/// gcc 12 on `mi_free`, as far as it matters: `mask` of the segment, whose owner is compared, and a push of `pushed` onto the list.
fn page_free(code: &mut Program, mask: i32, pushed: AsmRegister64, list: i32, counter: Counter) {
    let mut null = code.label();
    code.op(|a| a.mov(rcx, rdi));
    code.op(|a| a.test(rdi, rdi));
    code.op(|a| a.je(null));
    code.op(|a| a.lea(rdi, qword_ptr(rdi - 1)));
    code.op(|a| a.mov(rax, rcx));
    code.op(|a| a.and(rdi, mask));
    code.op(|a| a.sub(rax, rdi));
    code.op(|a| a.mov(r8, qword_ptr(rdi + 0x100)));
    code.op(|a| a.shr(rax, 16));
    code.op(|a| a.lea(rsi, qword_ptr(rax + 0x108)));
    code.op(|a| a.mov(rdx, qword_ptr(0).fs()));
    code.op(|a| a.add(rsi, rdi));
    code.op(|a| a.cmp(r8, rdx));
    let mut remote = code.probe_label();
    let mut full = code.label();
    code.op(|a| a.cmp(byte_ptr(rsi + 0xe), 0));
    code.op(|a| a.jne(full));
    code.op(|a| a.mov(rax, qword_ptr(rsi + list)));
    code.op(|a| a.mov(qword_ptr(pushed), rax));
    code.op(|a| a.mov(qword_ptr(rsi + list), pushed));
    if counter.is_half {
        code.op(|a| a.movzx(eax, word_ptr(rsi + counter.offset)));
        code.op(|a| a.sub(eax, 1));
        code.op(|a| a.mov(word_ptr(rsi + counter.offset), ax));
    } else {
        code.op(|a| a.sub(dword_ptr(rsi + counter.offset), 1));
    }
    code.place(&mut null);
    code.op(CodeAssembler::ret);
    code.place(&mut remote);
    code.op(|a| a.xor(edx, edx));
    code.op(CodeAssembler::ret);
    code.place(&mut full);
}

type PlanOf = fn(&[u8]) -> Result<InterpreterPlan, PlanError>;

/// 2.5 has been recorded in builds with a lock only.
fn plan_of(version: MimallocVersion) -> PlanOf {
    match version {
        MimallocVersion::V2_1 => plan_free_threaded,
        MimallocVersion::V2_5 => plan_with_mimalloc,
    }
}

fn page_kinds(plan: PlanOf, write: impl FnOnce(&mut Program)) -> Vec<PointKind> {
    let found = find_with(plan, write);
    assert!(found.kinds().is_empty() || found.offsets() == found.probes, "on the wrong instructions");
    found.kinds()
}

#[test]
fn finds_where_blocks_leave_pages_and_where_they_are_freed() {
    for (version, counter, list) in
        [(MimallocVersion::V2_1, COUNTER_2_1, LIST_2_1), (MimallocVersion::V2_5, COUNTER_2_5, LIST_2_5)]
    {
        let write = |code: &mut Program| {
            page_pop(code, counter);
            code.op(CodeAssembler::ret);
            page_free(code, SEGMENT_MASK, rcx, list, counter);
        };
        let pop = PointKind::PagePop { block: held(RDX, 0), page: RAX, version };
        assert_eq!(page_kinds(plan_of(version), write), [pop, PointKind::Push { block: held(RCX, 0) }]);
        assert_eq!(find_with(plan_of(version), write).plan.mimalloc, Some(version));
    }
}

/// Nobody has recorded such an interpreter: it is refused, and the reader is told which it is.
#[test]
fn a_free_threaded_build_with_a_newer_mimalloc_has_no_points() {
    let found = find_with(plan_free_threaded, |code| {
        page_pop(code, COUNTER_2_5);
        code.op(CodeAssembler::ret);
        page_free(code, SEGMENT_MASK, rcx, LIST_2_5, COUNTER_2_5);
    });
    assert_eq!((found.kinds(), found.plan.mimalloc), (Vec::new(), None));
    assert_eq!(found.plan.checks.notes, [PlanNote::UntriedPages]);
    assert!(PlanNote::UntriedPages.to_string().contains("3.14.10"));
}

/// What is no mimalloc, or half of one, has no points: each of these differs from the above in one thing.
#[test]
fn what_only_looks_like_pages_has_no_points() {
    let (free_threaded, both): (PlanOf, PlanOf) = (plan_free_threaded, plan_with_mimalloc);
    let of_2_1 = (free_threaded, COUNTER_2_1, SEGMENT_MASK, rcx, LIST_2_1, COUNTER_2_1);
    let of_2_5 = (both, COUNTER_2_5, SEGMENT_MASK, rcx, LIST_2_5, COUNTER_2_5);
    let moved = |counter: Counter| Counter { offset: counter.offset + 4, ..counter };
    let resized = |counter: Counter| Counter { is_half: !counter.is_half, ..counter };
    let mut cases = Vec::new();
    for (plan, pop, mask, pushed, list, free) in [of_2_1, of_2_5] {
        cases.extend([
            (plan, moved(pop), mask, pushed, list, free),
            (plan, resized(pop), mask, pushed, list, free),
            (plan, pop, -0x10_0000, pushed, list, free),
            (plan, pop, mask, r9, list, free),
            (plan, pop, mask, pushed, list + 8, free),
            (plan, pop, mask, pushed, list, resized(free)),
        ]);
    }
    // A pop of the one and a free of the other.
    cases.push((free_threaded, COUNTER_2_1, SEGMENT_MASK, rcx, LIST_2_5, COUNTER_2_5));
    cases.push((free_threaded, COUNTER_2_5, SEGMENT_MASK, rcx, LIST_2_1, COUNTER_2_1));
    for (plan, pop, mask, pushed, list, free) in cases {
        let kinds = page_kinds(plan, |code| {
            page_pop(code, pop);
            code.op(CodeAssembler::ret);
            page_free(code, mask, pushed, list, free);
        });
        assert_eq!(kinds, [], "{pop:?}, mask {mask}, list at {list}, {free:?}");
    }
    assert_eq!(page_kinds(plan_free_threaded, gcc_pop), []);
    assert_eq!(page_kinds(plan_free_threaded, gcc_push), []);
}

/// Two versions in one file are none, as sizes would be read from the wrong place; a file with neither says so.
#[test]
fn pages_that_contradict_each_other_are_told() {
    let found = find_with(plan_free_threaded, |code| {
        for (counter, list) in [(COUNTER_2_1, LIST_2_1), (COUNTER_2_5, LIST_2_5)] {
            page_pop(code, counter);
            code.op(CodeAssembler::ret);
            page_free(code, SEGMENT_MASK, rcx, list, counter);
            code.op(CodeAssembler::ret);
        }
    });
    assert_eq!((found.kinds(), found.plan.mimalloc), (Vec::new(), None));
    assert_eq!(found.plan.checks.notes, [PlanNote::MixedPages]);
    let found = find_with(plan_free_threaded, gcc_pop);
    assert_eq!((found.plan.mimalloc, found.plan.checks.notes), (None, vec![PlanNote::NoPages]));
}

/// An interpreter with a lock has both allocators.
#[test]
fn pages_beside_pools() {
    let write = |code: &mut Program| {
        gcc_pop(code);
        code.op(CodeAssembler::ret);
        gcc_push(code);
        code.op(CodeAssembler::ret);
        page_pop(code, COUNTER_2_5);
        code.op(CodeAssembler::ret);
        page_free(code, SEGMENT_MASK, rcx, LIST_2_5, COUNTER_2_5);
    };
    let (both, pools) = (find_with(plan_with_mimalloc, write), find_with(plan_interpreter, write));
    assert_eq!((both.plan.mimalloc, pools.plan.mimalloc), (Some(MimallocVersion::V2_5), None));
    assert_eq!(both.offsets(), both.probes, "on the wrong instructions");
    assert_eq!((pools.offsets(), both.offsets().len()), (both.offsets()[..2].to_vec(), 4));
}
