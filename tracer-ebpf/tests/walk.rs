//! The Python walk over made-up memory, for every shape of layout; recorded memory is walked by `tracer-user/tests/walk.rs`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use tracer_ebpf::abi::{Layout, MAX_FRAMES, end};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::memory::{CONSTANT_WORDS, Memory, WIDE_BYTES, Wide};
use tracer_ebpf::tables::Generations;
use tracer_ebpf::walk::{
    Identity, Start, Visited, Visitor, innermost, locked_thread_state, own_thread_state, thread_state, walk,
    walk_part,
};

/// Words by address; what is not there cannot be read.
#[derive(Debug, Default)]
struct Image(BTreeMap<u64, u64>);

impl Image {
    fn set(&mut self, address: u64, word: u64) {
        self.0.insert(address, word);
    }
}

impl Memory for Image {
    fn read_wide(&self, address: u64, into: &mut Wide) -> bool {
        let words: Option<Vec<u64>> = (0..u64::from(WIDE_BYTES) / 8)
            .map(|word| self.read_word(address.wrapping_add(word * 8)))
            .collect();
        let Some(words) = words else { return false };
        into[..words.len()].copy_from_slice(&words);
        true
    }

    fn read_constants(&self, address: u64) -> [u64; CONSTANT_WORDS] {
        std::array::from_fn(|word| self.word_or_zero(address + word as u64 * 8))
    }

    fn read_word(&self, address: u64) -> Option<u64> {
        self.0.get(&address).copied()
    }

    fn word_or_zero(&self, address: u64) -> u64 {
        self.read_word(address).unwrap_or(0)
    }

    fn half_or_zero(&self, address: u64) -> u32 {
        self.word_or_zero(address) as u32
    }
}

/// The shapes that interpreters have; the numbers are those of one version each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// 3.9: frame objects, an instruction index.
    FrameObjects,
    /// 3.11: a `_PyCFrame` leads to the frames, an owner that skips none.
    Cframe,
    /// 3.12: the same, and C frames are to be skipped.
    CframeAndOwner,
    /// 3.13: frames straight from the thread state, C frames to be skipped.
    Owner,
}

const SHAPES: [Shape; 4] = [Shape::FrameObjects, Shape::Cframe, Shape::CframeAndOwner, Shape::Owner];

const THREAD_STATE_POINTER: u64 = 0x9000;
const THREAD_STATE: u64 = 0x10_0000;
const CFRAME: u64 = 0x20_0000;
const FRAMES: u64 = 0x7f00_0000_0000;
const CODES: u64 = 0x7e00_0000_0000;
const NONE: u64 = 0;

impl Shape {
    fn layout(self) -> Layout {
        let common =
            Layout { thread_state_pointer: THREAD_STATE_POINTER, thread_ident: 152, ..Layout::default() };
        let after_3_11 = Layout {
            instruction_base: u64::MAX,
            frame_start: -16,
            code_word: 2,
            previous_word: 3,
            instruction_word: 9,
            owner_word: 10,
            owner_shift: 48,
            owner_skip_from: 3,
            ..common
        };
        match self {
            Self::FrameObjects => Layout {
                thread_frame: 24,
                frame_start: 24,
                previous_word: 0,
                code_word: 1,
                instruction_word: 10,
                owner_skip_from: 256,
                ..common
            },
            Self::Cframe => Layout {
                thread_frame: 56,
                has_cframe: 1,
                cframe_frame: 8,
                frame_start: -16,
                code_word: 6,
                previous_word: 8,
                instruction_word: 9,
                owner_word: 10,
                owner_shift: 40,
                owner_skip_from: 256,
                instruction_base: u64::MAX,
                ..common
            },
            Self::CframeAndOwner => Layout { thread_frame: 56, has_cframe: 1, ..after_3_11 },
            Self::Owner => Layout { thread_frame: 72, ..after_3_11 },
        }
    }

    fn has_owner(self) -> bool {
        self != Self::FrameObjects
    }

    fn skips(self) -> bool {
        matches!(self, Self::CframeAndOwner | Self::Owner)
    }
}

/// A frame to be made up.
#[derive(Debug, Clone, Copy)]
struct Frame {
    code: u64,
    instruction: u32,
    owner: u8,
}

fn python(number: usize) -> Frame {
    Frame { code: CODES + number as u64 * 0x200, instruction: 184 + 2 * number as u32, owner: 0 }
}

fn address_of(number: usize) -> u64 {
    FRAMES + number as u64 * 0x100
}

/// A thread with these frames, innermost first; the last one's caller is `outermost`.
fn image(shape: Shape, frames: &[Frame], outermost: u64) -> Image {
    let layout = shape.layout();
    let mut image = Image::default();
    let first = if frames.is_empty() { NONE } else { address_of(0) };
    image.set(THREAD_STATE_POINTER, THREAD_STATE);
    if layout.has_cframe == 0 {
        image.set(THREAD_STATE + u64::from(layout.thread_frame), first);
    } else {
        image.set(THREAD_STATE + u64::from(layout.thread_frame), CFRAME);
        image.set(CFRAME + u64::from(layout.cframe_frame), first);
    }
    for (number, frame) in frames.iter().enumerate() {
        let previous = if number + 1 == frames.len() { outermost } else { address_of(number + 1) };
        set_frame(&mut image, &layout, number, *frame, previous, shape.has_owner());
    }
    image
}

fn set_frame(
    image: &mut Image,
    layout: &Layout,
    number: usize,
    frame: Frame,
    previous: u64,
    has_owner: bool,
) {
    let start = address_of(number).wrapping_add_signed(layout.frame_start.into());
    // Every other word is noise that must not matter.
    for word in 0..u64::from(WIDE_BYTES) / 8 {
        image.set(start + word * 8, 0xdead_beef_0000_0000 | word);
    }
    let mut set = |word: u32, value: u64| image.set(start + u64::from(word) * 8, value);
    set(layout.code_word, frame.code);
    set(layout.previous_word, previous);
    // The upper half belongs to another field where the instruction is an index.
    let base = if layout.instruction_base == 0 { 0xffff_ffff_0000_0000 } else { frame.code };
    set(layout.instruction_word, base.wrapping_add(frame.instruction.into()));
    if has_owner {
        let noise = !(0xff << layout.owner_shift);
        set(layout.owner_word, noise | u64::from(frame.owner) << layout.owner_shift);
    }
}

/// Keeps what it sees, up to a number of frames.
#[derive(Debug, Default)]
struct Seen {
    frames: Vec<Visited>,
    stop_after: Option<usize>,
}

impl Visitor for Seen {
    fn visit(&mut self, frame: Visited) -> ControlFlow<()> {
        if frame.is_python == 0 {
            return ControlFlow::Continue(());
        }
        self.frames.push(frame);
        if self.stop_after == Some(self.frames.len()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn walk_all(shape: Shape, image: &Image) -> (Vec<Visited>, u32) {
    let layout = shape.layout();
    let start = innermost(image, &layout, THREAD_STATE);
    let mut seen = Seen::default();
    let end = walk(image, &layout, start, &mut seen);
    (seen.frames, end)
}

/// What a walk should show of these frames.
fn expected(frames: &[Frame], is_shown: impl Fn(&Frame) -> bool) -> Vec<Visited> {
    let all = frames.iter().enumerate().filter(|(_, frame)| is_shown(frame));
    all.map(|(_, frame)| Visited { code: frame.code & !1, instruction: frame.instruction, is_python: 1 })
        .collect()
}

#[test]
fn every_shape_is_walked() {
    for shape in SHAPES {
        let frames: Vec<Frame> = (0..10).map(python).collect();
        let (seen, end) = walk_all(shape, &image(shape, &frames, NONE));
        assert_eq!((seen, end), (expected(&frames, |_| true), end::COMPLETE), "{shape:?}");
    }
}

#[test]
fn frames_of_c_code_are_skipped_where_there_are_any() {
    for shape in SHAPES {
        let owners = [0, 3, 1, 4, 2, 0, 255, 3];
        let frames: Vec<Frame> = owners
            .iter()
            .enumerate()
            .map(|(number, owner)| Frame { owner: *owner, ..python(number) })
            .collect();
        let (seen, end) = walk_all(shape, &image(shape, &frames, NONE));
        let shown = expected(&frames, |frame| !shape.skips() || frame.owner < 3);
        assert_eq!((seen, end), (shown, end::COMPLETE), "{shape:?}");
    }
}

#[test]
fn a_frame_without_code_is_skipped_and_tags_are_removed() {
    for shape in SHAPES {
        let mut frames: Vec<Frame> = (0..4).map(python).collect();
        frames[1].code = 0;
        let (seen, end) = walk_all(shape, &image(shape, &frames, NONE));
        assert_eq!((seen, end), (expected(&frames, |frame| frame.code != 0), end::COMPLETE), "{shape:?}");
    }
    let layout = Shape::Owner.layout();
    let mut tagged = image(Shape::Owner, &[python(0)], NONE);
    tagged.set(address_of(0), python(0).code | 1);
    let (seen, _) = walk_all(Shape::Owner, &tagged);
    assert_eq!(seen, expected(&[python(0)], |_| true), "{layout:?}");
}

#[test]
fn the_depth_limit_is_marked() {
    for shape in SHAPES {
        for (depth, marked) in
            [(MAX_FRAMES - 1, end::COMPLETE), (MAX_FRAMES, end::COMPLETE), (MAX_FRAMES + 1, end::TRUNCATED)]
        {
            let frames: Vec<Frame> = (0..depth).map(python).collect();
            let (seen, end) = walk_all(shape, &image(shape, &frames, NONE));
            let shown = expected(&frames[..depth.min(MAX_FRAMES)], |_| true);
            assert_eq!((seen, end), (shown, marked), "{shape:?} of {depth} frames");
        }
    }
}

#[test]
fn a_cycle_ends() {
    for shape in SHAPES {
        for back_to in 0..5 {
            let frames: Vec<Frame> = (0..5).map(python).collect();
            let (seen, end) = walk_all(shape, &image(shape, &frames, address_of(back_to)));
            assert_eq!((seen.len(), end), (MAX_FRAMES, end::TRUNCATED), "{shape:?} back to {back_to}");
        }
    }
}

#[test]
fn an_unreadable_frame_is_marked() {
    for shape in SHAPES {
        let frames: Vec<Frame> = (0..6).map(python).collect();
        for outermost in [1, 0xffff_ffff_ffff_fff8, 0x1234_5678] {
            let (seen, end) = walk_all(shape, &image(shape, &frames, outermost));
            assert_eq!(
                (seen, end),
                (expected(&frames, |_| true), end::FAILED_READ),
                "{shape:?} to {outermost:#x}"
            );
        }
        // One word at the end of the frame is missing: a page that is not there.
        let layout = shape.layout();
        let mut broken = image(shape, &frames, NONE);
        let end = address_of(3).wrapping_add_signed(i64::from(layout.frame_start) + i64::from(WIDE_BYTES));
        broken.0.remove(&(end - 8));
        let (seen, end) = walk_all(shape, &broken);
        assert_eq!((seen, end), (expected(&frames[..3], |_| true), end::FAILED_READ), "{shape:?}");
    }
}

#[test]
fn a_thread_without_frames_says_why() {
    for shape in SHAPES {
        let layout = shape.layout();
        assert_eq!(walk_all(shape, &image(shape, &[], NONE)), (vec![], end::NO_FRAME), "{shape:?}");
        let start = innermost(&Image::default(), &layout, THREAD_STATE);
        assert_eq!(start, Start { frame: 0, reason: end::FAILED_READ }, "{shape:?}");
        if layout.has_cframe != 0 {
            let mut broken = image(shape, &[python(0)], NONE);
            broken.0.remove(&(CFRAME + u64::from(layout.cframe_frame)));
            assert_eq!(walk_all(shape, &broken), (vec![], end::FAILED_READ), "{shape:?}");
            broken.set(THREAD_STATE + u64::from(layout.thread_frame), NONE);
            assert_eq!(walk_all(shape, &broken), (vec![], end::NO_FRAME), "{shape:?}");
        }
    }
}

#[test]
fn a_visitor_may_stop() {
    let image = image(Shape::Owner, &[python(0), python(1), python(2)], NONE);
    let layout = Shape::Owner.layout();
    let mut seen = Seen { stop_after: Some(2), ..Seen::default() };
    let end = walk(&image, &layout, innermost(&image, &layout, THREAD_STATE), &mut seen);
    assert_eq!((seen.frames.len(), end), (2, end::COMPLETE));
}

fn identity(image: &Image, layout: &Layout) -> u64 {
    identity_after(image, layout, &Generations::new())
}

fn identity_after(image: &Image, layout: &Layout, generations: &Generations) -> u64 {
    let mut identity = Identity { hash: 1, generations, failed_reads: &Cell::default() };
    walk(image, layout, innermost(image, layout, THREAD_STATE), &mut identity);
    identity.hash
}

/// Later code at the address of one that ended is another stack; other stacks stay what they were.
#[test]
fn the_end_of_a_code_object_changes_the_stacks_that_held_it() {
    let frames: Vec<Frame> = (0..4).map(python).collect();
    for shape in SHAPES {
        let (layout, generations) = (shape.layout(), Generations::new());
        let (with, without) = (image(shape, &frames, NONE), image(shape, &frames[1..], NONE));
        let before = [&with, &without].map(|image| identity_after(image, &layout, &generations));
        generations.end(frames[0].code);
        let after = [&with, &without].map(|image| identity_after(image, &layout, &generations));
        assert!(before[0] != after[0] && before[1] == after[1], "{shape:?}");
    }
}

/// Code, place in it, module, order and depth: each makes another stack.
#[test]
fn stacks_that_differ_have_different_identities() {
    for shape in SHAPES {
        let layout = shape.layout();
        let frames: Vec<Frame> = (0..4).map(python).collect();
        let of = |frames: &[Frame]| identity(&image(shape, frames, NONE), &layout);
        let first = of(&frames);
        assert_eq!(first, of(&frames));
        let mut other_line = frames.clone();
        other_line[3].instruction += 2;
        let mut other_code = frames.clone();
        other_code[0].code += 64;
        let mut other_order = frames.clone();
        other_order.swap(1, 2);
        for other in [&other_line, &other_code, &other_order, &frames[..3].to_vec()] {
            assert_ne!(first, of(other), "{shape:?}: {other:?}");
        }
    }
}

const OWN: u64 = 0x7fff_f7d8_0740;
const OTHER: u64 = 0x7fff_f6d8_0640;
const STATE_OF_OTHER: u64 = 0x30_0000;

/// Two threads' states; `current` is where the interpreter's pointer leads.
fn two_threads(current: u64) -> Image {
    let ident = u64::from(Shape::Owner.layout().thread_ident);
    let mut image = Image::default();
    image.set(THREAD_STATE_POINTER, current);
    image.set(THREAD_STATE + ident, OWN);
    image.set(STATE_OF_OTHER + ident, OTHER);
    image
}

#[test]
fn the_state_is_the_running_threads_own() {
    let layout = Shape::Owner.layout();
    let choose = |current, proved, own| thread_state(&two_threads(current), &layout, proved, own);
    let foreign = Err(end::FOREIGN_THREAD);
    // It holds the lock.
    assert_eq!(choose(THREAD_STATE, 0, OWN), Ok(THREAD_STATE));
    assert_eq!(choose(THREAD_STATE, THREAD_STATE, OWN), Ok(THREAD_STATE));
    // Another thread does: only what was proved before will do, as long as it is still so marked.
    assert_eq!(choose(STATE_OF_OTHER, 0, OWN), foreign);
    assert_eq!(choose(STATE_OF_OTHER, THREAD_STATE, OWN), Ok(THREAD_STATE));
    assert_eq!(choose(THREAD_STATE, STATE_OF_OTHER, OWN), Ok(THREAD_STATE));
    // Nobody does (3.11 and before say so).
    assert_eq!(choose(0, THREAD_STATE, OWN), Ok(THREAD_STATE));
    assert_eq!(choose(0, 0, OWN), Err(end::NO_THREAD_STATE));
    // A thread that Python does not know, and one that has no `pthread_self` yet.
    assert_eq!(choose(THREAD_STATE, 0, 0x1111), foreign);
    assert_eq!(choose(STATE_OF_OTHER, 0, 0), foreign);
    assert_eq!(choose(0, THREAD_STATE, 0), foreign);
    // A state that was freed, or that is another thread's by now.
    assert_eq!(choose(0, 0x66_0000, OWN), foreign);
    assert_eq!(choose(0, STATE_OF_OTHER, OWN), foreign);
}

/// Interpreters with a lock each: the thread's own word decides, whoever holds the main interpreter's lock.
#[test]
fn a_threads_own_word_comes_first() {
    let slot = -24_i64;
    let layout = Layout { thread_slot: slot, ..Shape::Owner.layout() };
    let mut image = two_threads(STATE_OF_OTHER);
    assert_eq!(own_thread_state(&image, &layout, OWN), 0, "memory that is not there");
    image.set(OWN.wrapping_add_signed(slot), 0);
    assert_eq!(own_thread_state(&image, &layout, OWN), 0, "a thread that is detached");
    image.set(OWN.wrapping_add_signed(slot), 0x44_0000);
    assert_eq!(own_thread_state(&image, &layout, OWN), 0x44_0000);
    assert_eq!(own_thread_state(&image, &layout, 0), 0, "a thread without a pointer");
    assert_eq!(own_thread_state(&image, &Shape::Owner.layout(), OWN), 0, "a place that is not known");
}

#[test]
fn a_thread_state_that_cannot_be_told_has_a_reason() {
    let layout = Shape::Owner.layout();
    let nothing = Image::default();
    let none = Layout { thread_state_pointer: 0, ..layout };
    assert_eq!(thread_state(&two_threads(THREAD_STATE), &none, 0, OWN), Err(end::NO_INTERPRETER));
    assert_eq!(thread_state(&nothing, &layout, 0, OWN), Err(end::NO_THREAD_STATE));
    // A page that was never touched.
    assert_eq!(locked_thread_state(&nothing, &layout), Err(end::NO_THREAD_STATE));
    assert_eq!(locked_thread_state(&two_threads(0), &layout), Err(end::NO_THREAD_STATE));
    assert_eq!(locked_thread_state(&two_threads(STATE_OF_OTHER), &layout), Ok(STATE_OF_OTHER));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Memory full of nonsense, and a layout that is none: the walk ends, in bounds, whatever it reads.
    #[test]
    fn nonsense_ends(
        words in proptest::collection::vec(0_u64..64, 64),
        indices in proptest::array::uniform5(any::<u32>()),
        start in 0_u64..64,
    ) {
        let image = Image(words.iter().enumerate().map(|(at, word)| (at as u64 * 8, word * 8)).collect());
        let [code_word, previous_word, instruction_word, owner_word, owner_shift] = indices;
        let layout = Layout {
            code_word, previous_word, instruction_word, owner_word, owner_shift,
            owner_skip_from: 3, ..Layout::default()
        };
        let mut seen = Seen::default();
        let end = walk(&image, &layout, Start { frame: start * 8, reason: end::NO_FRAME }, &mut seen);
        prop_assert!(seen.frames.len() <= MAX_FRAMES);
        prop_assert!([end::COMPLETE, end::TRUNCATED, end::FAILED_READ, end::NO_FRAME].contains(&end));
    }
}

/// The kernel half walks deep stacks in parts: they must have the identity, and the end, of the whole.
#[test]
fn parts_make_the_whole() {
    for shape in SHAPES {
        let (layout, generations) = (shape.layout(), Generations::new());
        for depth in [1, 7, 8, 9, 16, 40] {
            let frames: Vec<Frame> = (0..depth).map(python).collect();
            let image = image(shape, &frames, NONE);
            let start = innermost(&image, &layout, THREAD_STATE);
            let (mut frame, mut hash, mut end) = (start.frame, 1, end::COMPLETE);
            for _ in 0..MAX_FRAMES / 8 {
                let mut identity =
                    Identity { hash, generations: &generations, failed_reads: &Cell::default() };
                end = walk_part::<8, _>(&image, &layout, &mut frame, &mut identity);
                hash = identity.hash;
                if frame == 0 {
                    break;
                }
            }
            assert_eq!((hash, end), (identity(&image, &layout), end::COMPLETE), "{shape:?}, {depth} frames");
        }
    }
}
