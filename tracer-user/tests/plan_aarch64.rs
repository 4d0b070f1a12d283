//! The arm64 finder on code written for one rule each: what it must accept, where the probe must go, and what it must leave alone.
//!
//! Instructions are words as `aarch64-linux-gnu-as` writes them, with their text beside them.

#[path = "plan_x86/program.rs"]
#[expect(dead_code, reason = "the assembler is for plan_x86")]
mod program;

use alloctrace::plan::{InterpreterPlan, Operand, PlanNote, PointKind, Register, Verdict, plan_interpreter};
use program::elf_for;
use proptest::prelude::*;

/// File offset of the first instruction.
const BASE: u64 = 0x1000;
const AARCH64: u16 = 183;

const RET: u32 = 0xd65f_03c0;
const CBZ_X1: u32 = 0xb400_0041; // cbz x1, .+8
const CBZ_X2: u32 = 0xb400_0042; // cbz x2, .+8
const LOAD_HEAD: u32 = 0xf940_0413; // ldr x19, [x0, #8]
const LOAD_COUNT: u32 = 0xb940_0001; // ldr w1, [x0]
const COUNT_UP: u32 = 0x1100_0421; // add w1, w1, #1
const COUNT_DOWN: u32 = 0x5100_0421; // sub w1, w1, #1
const STORE_COUNT: u32 = 0xb900_0001; // str w1, [x0]
const LOAD_NEXT: u32 = 0xf940_0261; // ldr x1, [x19]
const STORE_HEAD: u32 = 0xf900_0401; // str x1, [x0, #8]

/// `pymalloc_alloc` as gcc 12 to 16 write it.
const POP: [u32; 9] = [LOAD_HEAD, LOAD_COUNT, COUNT_UP, STORE_COUNT, LOAD_NEXT, STORE_HEAD, CBZ_X1, RET, RET];
/// `pymalloc_free` as gcc 12 to 16 write it.
const PUSH: [u32; 10] = [
    0x9272_c6c0, // and x0, x22, #-16384
    0xf940_0402, // ldr x2, [x0, #8]
    0xf900_02c2, // str x2, [x22]
    0xf900_0416, // str x22, [x0, #8]
    LOAD_COUNT,
    COUNT_DOWN,
    STORE_COUNT,
    CBZ_X2,
    RET,
    RET,
];

fn held(register: u8, displacement: i8) -> Operand {
    Operand { register: Register(register), displacement }
}

fn pop(block: Operand, pool: u8) -> PointKind {
    PointKind::Pop { block, pool: Register(pool) }
}

#[expect(clippy::expect_used, reason = "a helper of tests fails as tests do")]
fn find(words: &[u32]) -> InterpreterPlan {
    let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    plan_interpreter(&elf_for(AARCH64, &code)).expect("the test's own file is sound")
}

/// Finds exactly these, by the index of the instruction that carries the probe.
#[track_caller]
fn accepts(words: &[u32], expected: &[(u64, PointKind)]) {
    let InterpreterPlan { plan, checks, .. } = find(words);
    let found: Vec<_> = plan.points.iter().map(|point| ((point.offset.0 - BASE) / 4, point.kind)).collect();
    assert_eq!(found, expected, "{checks:?}");
    assert!(!checks.notes.iter().any(|note| matches!(note, PlanNote::Unprobed { .. })), "{checks:?}");
}

#[test]
fn finds_gcc_pop() {
    accepts(&POP, &[(6, pop(held(19, 0), 0))]);
}

#[test]
fn finds_gcc_push_and_the_pool_size() {
    accepts(&PUSH, &[(7, PointKind::Push { block: held(22, 0) })]);
    assert_eq!(find(&PUSH).checks.pool_size, Some(16384));
}

/// gcc loads the counter into the block's register: the block is in memory only.
#[test]
fn finds_push_by_the_head_of_the_list() {
    let words = [
        0xf940_0402, // ldr x2, [x0, #8]
        0xf900_0022, // str x2, [x1]
        STORE_HEAD,  // str x1, [x0, #8]
        LOAD_COUNT,
        COUNT_DOWN,
        STORE_COUNT,
        CBZ_X2,
        RET,
        RET,
    ];
    accepts(&words, &[(6, PointKind::PushIndirect { block: held(0, 8) })]);
}

#[test]
fn finds_pop_whose_block_is_spilled() {
    let words = [
        LOAD_HEAD,
        LOAD_COUNT,
        COUNT_UP,
        STORE_COUNT,
        0xf900_13f3, // str x19, [sp, #32]
        0xf940_0273, // ldr x19, [x19]
        0xf900_0413, // str x19, [x0, #8]
        0xb400_0053, // cbz x19, .+8
        RET,
        RET,
    ];
    accepts(&words, &[(7, PointKind::PopIndirect { block: held(31, 32), pool: Register(0) })]);
}

#[test]
fn follows_copies_pairs_and_tests_by_flags() {
    let words = [
        0xa940_8c13, // ldp x19, x3, [x0, #8]
        0xaa13_03f4, // mov x20, x19
        0xaa00_03f5, // mov x21, x0
        LOAD_COUNT,
        COUNT_UP,
        STORE_COUNT,
        LOAD_NEXT,
        STORE_HEAD,
        0xd280_00f3, // mov x19, #7
        0xd280_0120, // mov x0, #9
        0xea01_003f, // tst x1, x1
        0x5400_0040, // b.eq .+8
        RET,
        RET,
    ];
    accepts(&words, &[(11, pop(held(20, 0), 21))]);
}

#[test]
fn finds_block_behind_a_header() {
    let words = [
        0xd100_42f6, // sub x22, x23, #16
        0xf940_0402, // ldr x2, [x0, #8]
        0xf81f_02e2, // stur x2, [x23, #-16]
        0xf900_0416, // str x22, [x0, #8]
        0xd280_0016, // mov x22, #0
        LOAD_COUNT,
        0x7100_0421, // subs w1, w1, #1
        STORE_COUNT,
        CBZ_X2,
        RET,
        RET,
    ];
    accepts(&words, &[(8, PointKind::Push { block: held(23, -16) })]);
}

#[test]
fn finds_the_function_that_opens_pools() {
    let mut words = POP.to_vec();
    words.extend([
        0x5280_0023, // mov w3, #1
        0xb900_0003, // str w3, [x0]
        0x6b04_02bf, // cmp w21, w4
        0x5400_00a1, // b.ne .+20
        0xf940_0405, // ldr x5, [x0, #8]
        0xf940_00a6, // ldr x6, [x5]
        0xf900_0406, // str x6, [x0, #8]
        RET,
        0x2904_8815, // stp w21, w2, [x0, #36]
        RET,
    ]);
    let new = |block| PointKind::NewPoolBranch { block, pool: Register(0) };
    // Without .eh_frame it is no function of its own: counted where it takes an old list, and where it carves behind the store of the class.
    accepts(&words, &[(6, pop(held(19, 0), 0)), (14, new(held(5, 0))), (18, new(held(0, 48)))]);
}

/// Behind the store of the class stands the return that the other side jumps to: a probe there would count both.
#[test]
fn leaves_a_pool_that_is_carved_before_a_shared_end() {
    let words = [
        0x5280_0023, // mov w3, #1
        0xb900_0003, // str w3, [x0]
        0x6b04_02bf, // cmp w21, w4
        0x5400_00a1, // b.ne .+20
        0xf940_0405, // ldr x5, [x0, #8]
        0xf940_00a6, // ldr x6, [x5]
        0xf900_0406, // str x6, [x0, #8]
        0x1400_0002, // b .+8
        0x2904_8815, // stp w21, w2, [x0, #36]
        RET,
    ];
    assert_eq!(find(&words).checks.cold_sites, 0);
    let mut apart = words;
    apart[7] = RET;
    assert_eq!(find(&apart).checks.cold_sites, 1);
}

#[test]
fn leaves_lists_that_count_nothing() {
    let words = [LOAD_HEAD, LOAD_NEXT, STORE_HEAD, CBZ_X1, RET, RET];
    accepts(&words, &[]);
    assert_eq!(find(&words).checks.notes, []);
}

#[test]
fn leaves_variables_on_the_stack() {
    let words = [
        0xf940_07f3, // ldr x19, [sp, #8]
        0xf940_0674, // ldr x20, [x19, #8]
        0xb940_03e1, // ldr w1, [sp]
        COUNT_UP,
        0xb900_03e1, // str w1, [sp]
        LOAD_NEXT,
        0xf900_07e1, // str x1, [sp, #8]
        CBZ_X1,
        RET,
        RET,
    ];
    accepts(&words, &[]);
    assert_eq!(find(&words).checks.notes, []);
}

/// A call between: registers are no longer what they were.
#[test]
fn ends_at_calls() {
    let mut words = POP.to_vec();
    words.insert(4, 0x9400_0002); // bl .+8
    accepts(&words, &[]);
}

/// `ldadd` writes x2 and memory: not modelled, so what it touches is not known.
#[test]
fn forgets_what_an_unknown_instruction_may_change() {
    let mut words = POP.to_vec();
    words.insert(5, 0xb821_0013); // ldadd w1, w19, [x0]
    let found = find(&words);
    assert_eq!(found.plan.points, []);
}

#[test]
fn says_that_a_branch_is_shared() {
    // The store is jumped over by other code.
    let mut words = POP.to_vec();
    words.push(0x17ff_fffd); // b .-12
    let notes = find(&words).checks.notes;
    assert_eq!(
        notes,
        [PlanNote::Unprobed { offset: alloctrace::plan::FileOffset(BASE + 24), verdict: Verdict::Shared }]
    );
}

proptest! {
    /// The decoder is somebody else's and every file is hostile: nothing may panic or run on.
    #[test]
    fn ends_on_random_words(words in proptest::collection::vec(any::<u32>(), 0..1024)) {
        drop(find(&words));
    }

    #[test]
    fn ends_on_random_programs(pieces in proptest::collection::vec(0usize..24, 0..400)) {
        let all: Vec<u32> = POP.iter().chain(&PUSH).copied().chain([
            0x17ff_fff8, // b .-32
            0x54ff_ff40, // b.eq .-24
            0x5280_0023, // mov w3, #1
            0xb900_0003, // str w3, [x0]
            0x2904_8815, // stp w21, w2, [x0, #36]
        ]).collect();
        drop(find(&pieces.into_iter().map(|piece| all[piece]).collect::<Vec<_>>()));
    }
}
