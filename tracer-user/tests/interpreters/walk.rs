//! The kernel half's walk of a live interpreter's memory, against what that interpreter says of its own stack.
//!
//! With `ALLOCTRACE_BLESS=1` what was read is kept, for `tests/walk.rs` to walk again where no interpreter is.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::{env, fs};

use alloctrace::discover;
use alloctrace::discover::memory::{ProcessMemory, ReadMemory as _};
use anyhow::{Context as _, Result, ensure};
use tracer_ebpf::memory::{CONSTANT_WORDS, Memory, WIDE_BYTES, WIDE_WORDS, Wide};

use crate::image::{Image, folder};
use crate::support::{Interpreter, Target};

#[derive(serde::Deserialize)]
struct Report {
    thread: u64,
    frames: Vec<(u64, u32)>,
}

pub fn check(interpreter: &Interpreter) -> Result<()> {
    let mut target = Target::start(interpreter, "walked.py", &[], Stdio::inherit())?;
    let report: Report = serde_json::from_str(&target.line()?)?;
    let pid = target.child.id();
    target.wait_until('T')?;
    let found = discover::Target::inspect(Path::new("/proc"), pid)?.interpreter;
    let memory = target.memory()?;
    let pointer = found
        .layout
        .thread_state_pointer(found.runtime, |address| memory.read_u64(address).ok())
        .context("no main interpreter")?;
    let Report { thread, frames } = report;
    let mut image = Image { minor: found.version.minor, pointer, thread, frames, words: BTreeMap::new() };
    let frame_start = image.layout()?.0.frame_start;
    let recorder = Recorder { memory, frame_start, words: RefCell::default() };
    image.check(&recorder)?;
    image.words = recorder.words.into_inner();
    ensure!(Image::parse(&image.to_text())? == image, "a recording reads back as another one");
    image.check(&image)?;
    if env::var_os("ALLOCTRACE_BLESS").is_some() {
        fs::create_dir_all(folder())?;
        fs::write(folder().join(format!("{}.txt", interpreter.label)), image.to_text())?;
    }
    Ok(())
}

/// Reads, and keeps what it has read: of a frame its first words, whatever part of it the walk asks for.
struct Recorder {
    memory: ProcessMemory,
    frame_start: i32,
    words: RefCell<BTreeMap<u64, u64>>,
}

impl Memory for Recorder {
    fn read_constants(&self, address: u64) -> [u64; CONSTANT_WORDS] {
        std::array::from_fn(|word| self.word_or_zero(address + 8 * word as u64))
    }

    fn read_wide(&self, address: u64, into: &mut Wide) -> bool {
        let frame = address.wrapping_add_signed(-i64::from(self.frame_start));
        for index in 0..WIDE_WORDS as u64 {
            self.read_word(frame + 8 * index);
        }
        let words = into.iter_mut().take(WIDE_BYTES / 8).zip(0..);
        words
            .map(|(word, index)| self.read_word(address + 8 * index).map(|read| *word = read))
            .all(|read| read.is_some())
    }

    fn read_word(&self, address: u64) -> Option<u64> {
        let word = self.memory.read_u64(address).ok()?;
        self.words.borrow_mut().insert(address, word);
        Some(word)
    }

    fn word_or_zero(&self, address: u64) -> u64 {
        self.read_word(address).unwrap_or(0)
    }

    fn half_or_zero(&self, address: u64) -> u32 {
        self.word_or_zero(address) as u32
    }
}
