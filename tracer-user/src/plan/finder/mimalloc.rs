//! The finder of mimalloc: where blocks are taken from pages and given back, in free-threaded interpreters and under `PYTHONMALLOC=mimalloc`.
//!
//! Both are inlined like pymalloc's, and both pass one conditional branch at which the block is in a register
//! (CPython, Objects/mimalloc/alloc.c; the page is `mi_page_t` in Include/internal/mimalloc/mimalloc/types.h):
//! - pop (`_mi_page_malloc`): `R = [P+free]; if (R) { used += 1; T = [R]; [P+free] = T }`. The probe is on the test of R, before the pop: behind it there is
//!   no branch, or one whose both sides pop. Where R is null the slow path finds a page, and comes to another such place.
//! - free (`mi_free`): `S = X & -32 MiB; if (this thread == [S+thread_id]) { L = [P+local_free]; [X] = L; [P+local_free] = X; used -= 1 }`. The probe is on
//!   that comparison, which blocks freed by their own thread, by others, of full pages and of huge ones all pass, each once.
//!
//! Which mimalloc it is shows in the counter `used`: its place and its width are of one version only.
//!
//! It must not know processes, probes, or which interpreter this is.

use super::machine::Machine;
use super::patterns::{FREE_BLOCK, Operation, completed, find_operand, find_register, has_changed};
use super::value::{Definition, Origin, Value};
use super::walk::{LOOK_BACK, Verdict};
use super::{Code, Flow, Instruction};
use crate::plan::elf::{Elf, MappedBytes};
use crate::plan::{MimallocVersion, PointKind};

/// Of `free` in `mi_page_t`: the same in all versions.
const FREE: i64 = MimallocVersion::V2_1.layout().free as i64;
const _: () = assert!(FREE == MimallocVersion::V2_5.layout().free as i64);
/// `-MI_SEGMENT_SIZE`, 64-bit.
const SEGMENT_MASK: i64 = -(32 << 20);
/// A pop's load and its branch are neighbours in every build looked at.
const STEPS_TO_TEST: u32 = 12;
/// Branches between the load and the test: whether the block is to be cleared, and whether the page knows its blocks' size.
const FORKS_TO_TEST: u32 = 2;
/// From the test to the last store of the pop.
const STEPS_OF_POP: u32 = 16;
/// Branches between them: 2.5 asks whether its caller wants to know the page, and both ways pop.
const FORKS_OF_POP: u32 = 1;
/// From the mask to the comparison, and from there to the push: page and flags are found between.
const STEPS_TO_COMPARISON: u32 = 24;
const STEPS_TO_PUSH: u32 = 48;
/// Branches whose both sides are followed from there: full pages, and what the compiler made of the two ways to free.
const FORKS_TO_PUSH: u32 = 3;
/// Candidates that are looked at in one file: interpreters have some 10,000 loads at this offset.
const MOST_CANDIDATES: usize = 1 << 20;

/// A place where blocks leave or return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSite {
    /// Its branch.
    pub branch: u64,
    /// Why there is or is not a probe point.
    pub verdict: Verdict,
    /// Whose page it is.
    pub version: MimallocVersion,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFindings {
    /// Pops.
    pub pops: Vec<PageSite>,
    /// Frees.
    pub frees: Vec<PageSite>,
    /// Whether the file has more candidates than are looked at.
    pub is_cut: bool,
}

/// Searches all code of `elf`.
pub fn find_pages<Set: super::InstructionSet>(elf: &Elf<'_>) -> PageFindings {
    let mut findings = PageFindings::default();
    for range in elf.code() {
        search::<Set::Code<'_>>(range, &mut findings);
    }
    for sites in [&mut findings.pops, &mut findings.frees] {
        sites.sort_by_key(|site| site.branch);
        sites.dedup();
    }
    findings
}

fn search<'data, C: Code<'data>>(range: MappedBytes<'data>, findings: &mut PageFindings) {
    let (Some(mut code), Some(mut ahead)) = (C::new(range), C::new(range)) else { return };
    let mut recent = Recent::default();
    let mut instruction = C::Instruction::default();
    let mut candidates = 0;
    while code.next_into(&mut instruction) {
        recent.push(instruction.address());
        match instruction.flow() {
            Flow::Next => {}
            Flow::Conditional(_) => continue,
            Flow::Jump(_) | Flow::End => {
                recent.clear();
                continue;
            }
        }
        let is_load = instruction.loads().into_iter().flatten().any(|load| load.displacement == FREE);
        let is_mask = instruction.mask() == Some(SEGMENT_MASK);
        candidates += usize::from(is_load || is_mask);
        findings.is_cut |= candidates > MOST_CANDIDATES;
        if findings.is_cut {
            return;
        }
        if is_load {
            findings.pops.extend(examine_pop(&mut ahead, &instruction));
        } else if is_mask {
            examine_free(&mut ahead, recent.oldest(), instruction.address(), &mut findings.frees);
        }
    }
}

/// The last instructions that ran into each other.
#[derive(Default)]
struct Recent {
    addresses: [u64; LOOK_BACK],
    count: usize,
}

impl Recent {
    fn push(&mut self, address: u64) {
        self.addresses[self.count % LOOK_BACK] = address;
        self.count += 1;
    }

    fn clear(&mut self) {
        self.count = 0;
    }

    fn oldest(&self) -> u64 {
        self.addresses[if self.count <= LOOK_BACK { 0 } else { self.count % LOOK_BACK }]
    }
}

/// Looks closer at a load of `[P+free]`; nothing if what follows is no pop. Several where the test stands on more than one way: a build asks first whether the
/// block is to be cleared, and tests the list on both sides of that.
fn examine_pop<'data, C: Code<'data>>(code: &mut C, load: &C::Instruction) -> Vec<PageSite> {
    let mut sites = Vec::new();
    let mut machine = Machine::default();
    let Some(head) = load.memory_address(&machine) else { return sites };
    if head.origin == Origin::initial(C::STACK_POINTER) {
        return sites;
    }
    code.execute(load, &mut machine);
    let loaded = machine.registers().find(|(_, value)| machine.origins().loaded_from(*value) == Some(head));
    let Some((_, block)) = loaded else { return sites };
    let mut paths = vec![Path {
        machine,
        address: load.next_address(),
        steps: STEPS_TO_TEST,
        forks: FORKS_TO_TEST,
        touched: true,
    }];
    while let Some(mut path) = paths.pop() {
        while path.steps > 0 {
            path.steps -= 1;
            let Some(instruction) = code.at(path.address) else { break };
            match instruction.flow() {
                Flow::Next => {
                    code.execute(&instruction, &mut path.machine);
                    path.address = instruction.next_address();
                }
                Flow::Jump(Some(target)) => path.address = target,
                Flow::Conditional(Some(target)) => {
                    let sides = [instruction.next_address(), target];
                    let fates = sides.map(|side| fate(code, path.machine.clone(), side, block, head));
                    match fates {
                        // Always on one side and never on the other: there is no block.
                        [Fate::Pops(version), Fate::Stays] | [Fate::Stays, Fate::Pops(version)] => {
                            sites.push(judge_pop(&path.machine, &instruction, block, head, version));
                        }
                        _ if path.forks > 0 && fates.contains(&Fate::Unclear) => {
                            for address in sides {
                                let machine = path.machine.clone();
                                paths.push(Path { machine, address, forks: path.forks - 1, ..path });
                            }
                        }
                        _ => {}
                    }
                    break;
                }
                _ => break,
            }
        }
    }
    sites
}

/// What becomes of a block on all ways from some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It leaves a page's list.
    Pops(MimallocVersion),
    /// It does not.
    Stays,
    /// One way or another: the place says nothing.
    Unclear,
}

/// What becomes of `block` from `address` on.
fn fate<'data, C: Code<'data>>(
    code: &mut C,
    machine: Machine,
    address: u64,
    block: Value,
    head: Value,
) -> Fate {
    let before = machine.stores().len();
    let mut paths = vec![Path { machine, address, steps: STEPS_OF_POP, forks: FORKS_OF_POP, touched: true }];
    let mut fates = Vec::new();
    while let Some(mut path) = paths.pop() {
        fates.push(loop {
            if path.steps == 0 {
                break Fate::Stays;
            }
            path.steps -= 1;
            let Some(instruction) = code.at(path.address) else { break Fate::Stays };
            match instruction.flow() {
                Flow::Next => {
                    code.execute(&instruction, &mut path.machine);
                    path.address = instruction.next_address();
                }
                Flow::Jump(Some(target)) => path.address = target,
                Flow::Conditional(Some(target)) if path.forks > 0 => {
                    path.forks -= 1;
                    paths.push(Path { machine: path.machine.clone(), address: target, ..path });
                    path.address = instruction.next_address();
                }
                _ => break Fate::Stays,
            }
            if let Some(version) = popped(&path.machine, before, block, head) {
                break Fate::Pops(version);
            }
        });
    }
    let first = fates.first().copied().unwrap_or(Fate::Stays);
    if fates.iter().all(|fate| *fate == first) { first } else { Fate::Unclear }
}

/// The version of the page whose list `block` has left since `before`.
fn popped(machine: &Machine, before: usize, block: Value, head: Value) -> Option<MimallocVersion> {
    match completed(machine, before)? {
        Operation::Pop { block: popped, .. } if popped == block => counted(machine, head.plus(-FREE), 1),
        _ => None,
    }
}

/// The version whose counter in `page` has been changed by `change`.
fn counted(machine: &Machine, page: Value, change: i64) -> Option<MimallocVersion> {
    MimallocVersion::ALL.into_iter().find(|version| has_changed(machine, counter(*version, page), change))
}

/// A page's counter, as a load of it.
fn counter(version: MimallocVersion, page: Value) -> Definition {
    let used = version.layout().used;
    let place = page.plus(used.offset.into());
    if used.bytes == 4 { Definition::Load32(place) } else { Definition::Load16(place) }
}

fn judge_pop(
    machine: &Machine,
    branch: &impl Instruction,
    block: Value,
    head: Value,
    version: MimallocVersion,
) -> PageSite {
    let page = find_register(machine, head.plus(-FREE));
    let verdict = match (page, find_operand(machine, block)) {
        _ if !branch.is_emulated_branch() => Verdict::NotEmulated,
        // The kernel half looks whether the register is null.
        (Some(page), Some(block)) if block.displacement == 0 => {
            Verdict::Proven(PointKind::PagePop { block, page, version })
        }
        _ => Verdict::OutOfReach,
    };
    PageSite { branch: branch.address(), verdict, version }
}

/// A path from the mask on.
struct Path {
    machine: Machine,
    address: u64,
    steps: u32,
    forks: u32,
    /// Whether the segment has been looked at.
    touched: bool,
}

/// Looks closer at a mask of a segment; finds nothing if no block is freed behind it.
fn examine_free<'data, C: Code<'data>>(code: &mut C, start: u64, mask: u64, sites: &mut Vec<PageSite>) {
    // What came before may hide the block (a value known from elsewhere): look without it too.
    for start in [start, mask] {
        let Some((machine, masked, segment, address)) = masked(code, start, mask) else { continue };
        // mimalloc masks the byte before the block (`_mi_ptr_segment`), so that a block at a segment's end is its own.
        for block in [masked.plus(1), masked] {
            let found = sites.len();
            follow_free(code, &machine, block, segment, address, sites);
            if sites.len() > found {
                return;
            }
        }
    }
}

/// Follows the ways from the mask to the comparison of threads.
fn follow_free<'data, C: Code<'data>>(
    code: &mut C,
    machine: &Machine,
    block: Value,
    segment: Value,
    address: u64,
    sites: &mut Vec<PageSite>,
) {
    let machine = machine.clone();
    let mut paths = vec![Path { machine, address, steps: STEPS_TO_COMPARISON, forks: 1, touched: false }];
    while let Some(mut path) = paths.pop() {
        while path.steps > 0 {
            path.steps -= 1;
            let Some(instruction) = code.at(path.address) else { break };
            match instruction.flow() {
                Flow::Next => {
                    let at = instruction.memory_address(&path.machine);
                    path.touched |= at.is_some_and(|at| at.origin == segment.origin);
                    code.execute(&instruction, &mut path.machine);
                    path.address = instruction.next_address();
                }
                Flow::Jump(Some(target)) => path.address = target,
                Flow::Conditional(Some(target)) if path.touched => {
                    let sides = [instruction.next_address(), target];
                    let mut versions =
                        sides.into_iter().filter_map(|side| pushes(code, path.machine.clone(), side, block));
                    if let Some(version) = versions.next() {
                        sites.push(judge_free(&path.machine, &instruction, block, version));
                    }
                    break;
                }
                Flow::Conditional(Some(target)) if path.forks > 0 => {
                    path.forks -= 1;
                    let (machine, steps, forks) = (path.machine.clone(), path.steps, path.forks);
                    paths.push(Path { machine, address: target, steps, forks, touched: false });
                    path.address = instruction.next_address();
                }
                _ => break,
            }
        }
    }
}

/// Executes up to and with the mask: the machine, the block, its segment, and where it goes on.
fn masked<'data, C: Code<'data>>(
    code: &mut C,
    start: u64,
    mask: u64,
) -> Option<(Machine, Value, Value, u64)> {
    let mut machine = Machine::default();
    let mut address = start;
    for _ in 0..=LOOK_BACK {
        let instruction = code.at(address)?;
        if instruction.flow() == Flow::Next {
            code.execute(&instruction, &mut machine);
        }
        if address == mask {
            let found =
                machine.registers().find_map(|(_, value)| match machine.origins().definition(value) {
                    Definition::Masked { of, mask } if mask == SEGMENT_MASK && value.offset == 0 => {
                        Some((of, value))
                    }
                    _ => None,
                });
            let (block, segment) = found?;
            return Some((machine, block, segment, instruction.next_address()));
        }
        address = instruction.next_address();
    }
    None
}

/// Whose page's list some path from here puts `block` onto.
fn pushes<'data, C: Code<'data>>(
    code: &mut C,
    machine: Machine,
    address: u64,
    block: Value,
) -> Option<MimallocVersion> {
    let mut paths =
        vec![Path { machine, address, steps: STEPS_TO_PUSH, forks: FORKS_TO_PUSH, touched: true }];
    while let Some(mut path) = paths.pop() {
        let before = path.machine.stores().len();
        while path.steps > 0 {
            path.steps -= 1;
            let Some(instruction) = code.at(path.address) else { break };
            match instruction.flow() {
                Flow::Next => {
                    code.execute(&instruction, &mut path.machine);
                    path.address = instruction.next_address();
                    if let Some(Operation::Push { block: pushed, pool }) = completed(&path.machine, before)
                        && pushed == block
                        && let Some(version) = pushed_to(&path.machine, pool.plus(FREE_BLOCK))
                    {
                        return Some(version);
                    }
                }
                Flow::Jump(Some(target)) => path.address = target,
                Flow::Conditional(Some(target)) if path.forks > 0 => {
                    path.forks -= 1;
                    let (machine, steps, forks) = (path.machine.clone(), path.steps, path.forks);
                    paths.push(Path { machine, address: target, steps, forks, touched: true });
                    path.address = instruction.next_address();
                }
                _ => break,
            }
        }
    }
    None
}

/// The version whose `local_free` this list is: its counter must have gone down by one.
fn pushed_to(machine: &Machine, list: Value) -> Option<MimallocVersion> {
    let is_of = |version: &MimallocVersion| {
        has_changed(machine, counter(*version, list.plus(-i64::from(version.layout().local_free))), -1)
    };
    MimallocVersion::ALL.into_iter().find(is_of)
}

fn judge_free(
    machine: &Machine,
    branch: &impl Instruction,
    block: Value,
    version: MimallocVersion,
) -> PageSite {
    let verdict = match find_operand(machine, block) {
        _ if !branch.is_emulated_branch() => Verdict::NotEmulated,
        Some(block) => Verdict::Proven(PointKind::Push { block }),
        None => Verdict::OutOfReach,
    };
    PageSite { branch: branch.address(), verdict, version }
}
