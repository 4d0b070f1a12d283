//! Memory of a stopped interpreter, as far as a walk reads it, with the stack that the interpreter itself has reported.
//!
//! Kept as text: one item a line, numbers in hexadecimal. Shared by the test that records and the one that walks recordings.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use alloctrace::attach::kernel_layout;
use alloctrace::discover::layout::{InstructionKind, InstructionStore, InterpreterLayout, layout};
use alloctrace::discover::target::Version;
use alloctrace::discover::{Interpreter, MappedFile, Target};
use anyhow::{Context as _, Result, bail, ensure};
use tracer_ebpf::abi::{Layout, end};
use tracer_ebpf::memory::{CONSTANT_WORDS, Memory, WIDE_BYTES, Wide};
use tracer_ebpf::walk::{Visited, Visitor, innermost, locked_thread_state, thread_state, walk};

/// A recording.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Minor version.
    pub minor: u8,
    /// Address of the pointer to the running thread's state.
    pub pointer: u64,
    /// `pthread_self` of that thread.
    pub thread: u64,
    /// Code address and `f_lasti` as Python says it, innermost first.
    pub frames: Vec<(u64, u32)>,
    /// Words by address.
    pub words: BTreeMap<u64, u64>,
}

/// Where recordings are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/walk")
}

impl Image {
    pub fn to_text(&self) -> String {
        let mut text =
            String::from("# rewritten by: ALLOCTRACE_BLESS=1 cargo test --test interpreters walk\n");
        let _ =
            writeln!(text, "minor {:x}\npointer {:x}\nthread {:x}", self.minor, self.pointer, self.thread);
        for (code, instruction) in &self.frames {
            let _ = writeln!(text, "frame {code:x} {instruction:x}");
        }
        let mut next = None;
        for (address, word) in &self.words {
            if next != Some(*address) {
                let _ = write!(text, "{}words {address:x}", if next.is_some() { "\n" } else { "" });
            }
            let _ = write!(text, " {word:x}");
            next = Some(address + 8);
        }
        text + "\n"
    }

    pub fn parse(text: &str) -> Result<Self> {
        let mut image = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            image.parse_line(line).with_context(|| format!("in the line `{line}`"))?;
        }
        Ok(image)
    }

    fn parse_line(&mut self, line: &str) -> Result<()> {
        let mut fields = line.split(' ');
        let name = fields.next();
        let numbers: Vec<u64> =
            fields.map(|field| u64::from_str_radix(field, 16)).collect::<Result<_, _>>()?;
        match (name, numbers.as_slice()) {
            (Some("minor"), [minor]) => self.minor = u8::try_from(*minor)?,
            (Some("pointer"), [pointer]) => self.pointer = *pointer,
            (Some("thread"), [thread]) => self.thread = *thread,
            (Some("frame"), [code, instruction]) => self.frames.push((*code, u32::try_from(*instruction)?)),
            (Some("words"), [address, words @ ..]) => {
                self.words.extend(words.iter().zip(0..).map(|(word, index)| (address + 8 * index, *word)));
            }
            _ => bail!("unknown item"),
        }
        Ok(())
    }

    /// What the kernel half would be told about the process that was recorded.
    pub fn layout(&self) -> Result<(Layout, InterpreterLayout)> {
        let row = *layout(3, self.minor).context("no such version")?;
        let file = MappedFile { path: PathBuf::new(), name: String::new(), bias: 0 };
        let version = Version { major: 3, minor: self.minor, micro: None };
        let interpreter = Interpreter { file, version, layout: row, runtime: 0 };
        let target =
            Target { pid: 1, command: String::new(), interpreter, c_library: None, thread_self_distance: 0 };
        Ok((kernel_layout(&target, self.pointer, 0), row))
    }

    /// Walks `memory` as the kernel half does and compares with what Python has reported.
    pub fn check(&self, memory: &impl Memory) -> Result<()> {
        let (layout, row) = self.layout()?;
        let state = locked_thread_state(memory, &layout, 0);
        ensure!(state.is_ok(), "no thread state: {state:?}");
        ensure!(state == thread_state(memory, &layout, 0, self.thread), "not the state of the thread");
        let foreign = thread_state(memory, &layout, 0, self.thread + 8);
        ensure!(foreign == Err(end::FOREIGN_THREAD), "another thread's state was taken: {foreign:?}");
        let mut seen = Seen::default();
        let start = innermost(memory, &layout, state.unwrap_or_default());
        let end = walk(memory, &layout, start, &mut seen);
        let walked: Vec<_> = seen.0.iter().map(|frame| (frame.code, last_instruction(&row, frame))).collect();
        ensure!(end == end::COMPLETE, "ended with {end} after {walked:x?}");
        ensure!(walked == self.frames, "walked {walked:x?}\nreported {:x?}", self.frames);
        ensure!(walked.len() > 20, "too few frames");
        Ok(())
    }
}

/// `f_lasti` as Python says it.
fn last_instruction(row: &InterpreterLayout, frame: &Visited) -> u32 {
    match (row.frame.instruction_kind, row.code.instructions) {
        (InstructionKind::LastUnit, _) => frame.instruction * 2,
        (InstructionKind::Pointer, InstructionStore::Inline { start, .. }) => {
            frame.instruction.wrapping_sub(start)
        }
        _ => frame.instruction,
    }
}

#[derive(Debug, Default)]
struct Seen(Vec<Visited>);

impl Visitor for Seen {
    fn visit(&mut self, frame: Visited) -> std::ops::ControlFlow<()> {
        if frame.is_python != 0 {
            self.0.push(frame);
        }
        std::ops::ControlFlow::Continue(())
    }
}

impl Memory for Image {
    fn read_constants(&self, address: u64) -> [u64; CONSTANT_WORDS] {
        std::array::from_fn(|word| self.word_or_zero(address + 8 * word as u64))
    }

    fn read_wide(&self, address: u64, into: &mut Wide) -> bool {
        let words = into.iter_mut().take(WIDE_BYTES as usize / 8).zip(0..);
        words
            .map(|(word, index)| self.read_word(address + 8 * index).map(|read| *word = read))
            .all(|read| read.is_some())
    }

    fn read_word(&self, address: u64) -> Option<u64> {
        self.words.get(&address).copied()
    }

    fn word_or_zero(&self, address: u64) -> u64 {
        self.read_word(address).unwrap_or(0)
    }

    fn half_or_zero(&self, address: u64) -> u32 {
        self.word_or_zero(address) as u32
    }
}
