//! The stack of a target that stands still, walked by the layout table alone, against the stack that it printed itself.

use std::process::Stdio;

use alloctrace::{
    discover::{
        layout::{FrameSource, InstructionKind, InterpreterLayout},
        memory::{ProcessMemory, ReadMemory as _},
    },
    profile::ProcessIndex,
    resolve::{CodeDefinition, Limits, RawFrame, RawString, Resolver},
};
use anyhow::{Context as _, Result, ensure};

use crate::support::{Interpreter, Target};

#[derive(serde::Deserialize)]
struct Report {
    thread: u64,
    stack: Vec<(String, String, u32, u32)>,
}

pub fn check(interpreter: &Interpreter) -> Result<()> {
    let mut target = Target::start(interpreter, "nested.py", &[], Stdio::inherit())?;
    let report: Report = serde_json::from_str(&target.line()?)?;
    target.wait_until('S')?;
    let walker = Walker { memory: target.memory()?, layout: interpreter.layout };
    let runtime = target.symbol("_PyRuntime")?;
    let thread_state = walker.thread_state(runtime, report.thread)?;
    let process = ProcessIndex(0);
    let mut resolver = Resolver::new(Limits::default());
    resolver.add_process(process, interpreter.layout);
    let stack = walker.stack(thread_state)?;
    for raw in &stack {
        resolver.define(process, raw.code, raw.fingerprint, &walker.definition(raw.code)?);
    }
    let ids = resolver.resolve(process, &stack);
    let walked: Vec<_> = ids
        .iter()
        .filter_map(|id| resolver.frames().get_index(id.0 as usize))
        .map(|f| (f.function.clone(), f.file.clone().unwrap_or_default(), f.line, f.first_line))
        .collect();
    ensure!(walked == report.stack, "walked {walked:#?}\nprinted {:#?}", report.stack);
    ensure!(report.stack.len() >= 8 && resolver.counts().unresolved() == 0, "{:?}", resolver.counts());
    Ok(())
}

struct Walker {
    memory: ProcessMemory,
    layout: InterpreterLayout,
}

impl Walker {
    fn pointer(&self, base: u64, offset: u32) -> Result<u64> {
        self.memory.read_u64(base + u64::from(offset)).with_context(|| format!("at {base:#x}+{offset}"))
    }

    fn int(&self, base: u64, offset: u32) -> Result<u32> {
        let mut bytes = [0; 4];
        self.memory.read(base + u64::from(offset), &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The state of the thread that holds the GIL, found in three ways that must agree.
    fn thread_state(&self, runtime: u64, thread: u64) -> Result<u64> {
        let InterpreterLayout { runtime: offsets, thread_state, .. } = self.layout;
        let address = self
            .layout
            .thread_state_pointer(runtime, |address| self.memory.read_u64(address).ok())
            .context("no main interpreter")?;
        let fixed = runtime + u64::from(offsets.thread_state_pointer_offset);
        ensure!(address == fixed, "by interpreter +{}, by table {offsets:?}", address - runtime);
        let current = self.memory.read_u64(address)?;
        let interpreter = self.pointer(runtime, offsets.interpreters_head)?;
        ensure!(interpreter == self.pointer(runtime, offsets.interpreters_main)?, "one interpreter runs");
        ensure!(current == self.pointer(interpreter, offsets.threads_head)?, "one thread runs");
        ensure!(interpreter == self.pointer(current, thread_state.interpreter)?, "not its interpreter");
        ensure!(0 == self.pointer(current, thread_state.next)?, "one thread runs");
        ensure!(thread == self.pointer(current, thread_state.thread_id)?, "not the main thread");
        Ok(current)
    }

    fn stack(&self, thread_state: u64) -> Result<Vec<RawFrame>> {
        let layout = self.layout.frame;
        let mut frame = match self.layout.thread_state.frame {
            FrameSource::Direct(offset) => self.pointer(thread_state, offset)?,
            FrameSource::Cframe { cframe, current_frame } => {
                self.pointer(self.pointer(thread_state, cframe)?, current_frame)?
            }
        };
        let mut stack = Vec::new();
        while frame != 0 && stack.len() < 200 {
            if !self.is_skipped(frame)? {
                let code = self.pointer(frame, layout.code)?;
                let instruction = match layout.instruction_kind {
                    InstructionKind::Pointer => {
                        u32::try_from(self.pointer(frame, layout.instruction)? - code)?
                    }
                    _ => self.int(frame, layout.instruction)?,
                };
                stack.push(RawFrame { code, instruction, fingerprint: 0 });
            }
            frame = self.pointer(frame, layout.previous)?;
        }
        Ok(stack)
    }

    fn is_skipped(&self, frame: u64) -> Result<bool> {
        let layout = self.layout.frame;
        let (Some(offset), Some(skipped)) = (layout.owner, layout.skipped_owner) else { return Ok(false) };
        let mut owner = [0];
        self.memory.read(frame + u64::from(offset), &mut owner)?;
        Ok(owner[0] >= skipped)
    }

    fn definition(&self, code: u64) -> Result<CodeDefinition> {
        let layout = self.layout.code;
        let table = self.pointer(code, layout.line_table)?;
        let size = self.pointer(table, self.layout.bytes.size)?;
        let mut line_table = vec![0; usize::try_from(size)?];
        self.memory.read(table + u64::from(self.layout.bytes.data), &mut line_table)?;
        Ok(CodeDefinition {
            name: self.string(self.pointer(code, layout.name)?)?,
            qualified_name: layout
                .qualified_name
                .map(|offset| self.string(self.pointer(code, offset)?))
                .transpose()?,
            file: self.string(self.pointer(code, layout.file)?)?,
            first_line: self.int(code, layout.first_line)?.cast_signed(),
            first_traceable: layout.first_traceable.map_or(Ok(0), |offset| self.int(code, offset))?,
            line_table,
            line_table_complete: true,
        })
    }

    fn string(&self, address: u64) -> Result<RawString> {
        let layout = self.layout.string;
        let state = self.int(address, layout.state)?;
        let length = self.pointer(address, layout.length)?;
        let is_ascii = state >> layout.state_bits.ascii & 1 == 1;
        let data = if is_ascii { layout.ascii_data } else { layout.compact_data };
        let kind = state >> layout.state_bits.kind_shift & 7;
        let mut bytes = vec![0; usize::try_from(length)? * kind as usize];
        self.memory.read(address + u64::from(data), &mut bytes)?;
        Ok(RawString { state, length, bytes })
    }
}
