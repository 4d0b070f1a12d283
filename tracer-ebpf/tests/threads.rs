//! Free-threaded interpreters over made-up memory: whose state a thread's is, and copies of instructions.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use tracer_ebpf::abi::Layout;
use tracer_ebpf::memory::{CONSTANT_WORDS, Memory, WIDE_BYTES, Wide};
use tracer_ebpf::threads::{RUNS, STATES, is_still_own, search};
use tracer_ebpf::walk::{Start, Visited, Visitor, walk};

/// Words by address; what is not there cannot be read.
#[derive(Debug, Default)]
struct Image(BTreeMap<u64, u64>);

impl Memory for Image {
    fn read_wide(&self, address: u64, into: &mut Wide) -> bool {
        let words = (0..u64::from(WIDE_BYTES) / 8).map(|word| self.read_word(address + word * 8));
        let Some(words) = words.collect::<Option<Vec<u64>>>() else { return false };
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

const HEAD: u64 = 0x9000;

fn layout() -> Layout {
    Layout { thread_state_pointer: HEAD, thread_ident: 152, thread_next: 8, ..Layout::default() }
}

fn state(number: u64) -> u64 {
    0x10_0000 + number * 0x400
}

fn ident(number: u64) -> u64 {
    0x7f00_0000_0000 + number * 0x1_0000
}

/// A list of these threads, the first at its head.
fn list(threads: &[u64]) -> Image {
    let mut image = Image::default();
    let mut link = HEAD;
    let mut before = 0;
    for number in threads {
        let state = state(*number);
        image.0.insert(link, state);
        image.0.insert(state, before);
        image.0.insert(state + 152, ident(*number));
        (link, before) = (state + 8, state);
    }
    image.0.insert(link, 0);
    image
}

/// As the kernel half does it: run after run.
fn find(image: &Image, own: u64) -> Option<u64> {
    let mut from = 0;
    for _ in 0..RUNS {
        let searched = search(image, &layout(), from, own);
        if searched.state != 0 {
            return Some(searched.state);
        }
        if searched.next == 0 {
            return None;
        }
        from = searched.next;
    }
    None
}

#[test]
fn every_thread_finds_its_own() {
    let threads: Vec<u64> = (0..STATES as u64 * RUNS).collect();
    let image = list(&threads);
    for number in threads {
        assert_eq!(find(&image, ident(number)), Some(state(number)));
        assert!(is_still_own(&image, &layout(), state(number), ident(number)));
    }
    assert_eq!(find(&image, ident(100_000)), None);
    assert_eq!(find(&image, 0), None, "a thread whose own mark cannot be read");
}

#[test]
fn past_the_limit_a_thread_is_not_found() {
    let threads: Vec<u64> = (0..=STATES as u64 * RUNS).collect();
    assert_eq!(find(&list(&threads), ident(STATES as u64 * RUNS)), None);
}

#[test]
fn a_list_in_a_circle_ends() {
    let mut image = list(&[1, 2]);
    image.0.insert(state(2) + 8, state(1));
    assert_eq!(find(&image, ident(3)), None);
}

/// Freed memory keeps its words: what it says of itself is not enough.
#[test]
fn a_state_that_has_left_the_list_is_nobodys() {
    let mut image = list(&[1, 2, 3]);
    image.0.insert(state(1) + 8, state(3));
    image.0.insert(state(3), state(1));
    assert!(!is_still_own(&image, &layout(), state(2), ident(2)));
    assert!(is_still_own(&image, &layout(), state(3), ident(3)));
    image.0.insert(HEAD, state(3));
    image.0.insert(state(3), 0);
    assert!(!is_still_own(&image, &layout(), state(1), ident(1)));
    assert!(!is_still_own(&image, &layout(), 0, ident(1)));
}

#[derive(Default)]
struct Seen(Vec<Visited>);

impl Visitor for Seen {
    fn visit(&mut self, frame: Visited) -> ControlFlow<()> {
        self.0.push(frame);
        ControlFlow::Continue(())
    }
}

/// A frame of 3.14: code at +0, previous at +8, instruction at +56, index of the copy at +72, owner at +78.
const FRAME: u64 = 0x7000;
const CODE: u64 = 0x5_0000;
const START: u64 = 240;

fn instruction_of(index: u64, instruction: u64, copies: &[u64]) -> u32 {
    let layout = Layout {
        instruction_base: u64::MAX,
        frame_start: -8,
        code_word: 1,
        previous_word: 2,
        instruction_word: 8,
        owner_word: 10,
        owner_shift: 48,
        owner_skip_from: 3,
        code_copies: 224,
        copy_mask: u32::MAX,
        copy_word: 10,
        code_start: START as u32,
        ..layout()
    };
    let mut image = Image::default();
    for word in 0..11 {
        image.0.insert(FRAME - 8 + word * 8, 0);
    }
    image.0.insert(FRAME, CODE | 1);
    image.0.insert(FRAME + 56, instruction);
    image.0.insert(FRAME + 72, index | 7 << 32);
    image.0.insert(CODE + 224, 0x6_0000);
    image.0.insert(0x6_0000, copies.len() as u64);
    for (copy, number) in copies.iter().zip(0..) {
        image.0.insert(0x6_0008 + number * 8, *copy);
    }
    let mut seen = Seen::default();
    walk(&image, &layout, Start { frame: FRAME, reason: 0 }, &mut seen);
    assert_eq!(seen.0[0].code, CODE);
    seen.0[0].instruction
}

proptest! {
    /// Whichever copy runs, the instruction counts from where it would be in the code object.
    #[test]
    fn copies_are_seen_as_the_code_object(index in 0_u64..4, distance in 0_u64..10_000) {
        let copies = [CODE + START, 0x80_0000, 0x70_0000, 0x90_0000];
        let at = copies[index as usize] + distance;
        prop_assert_eq!(u64::from(instruction_of(index, at, &copies)), START + distance);
    }
}
