//! Small programs for the finder: an assembler, and the plainest ELF file that holds what it assembled.

#![expect(clippy::expect_used, reason = "a helper of tests fails as tests do")]

use alloctrace::plan::{InterpreterPlan, PlanError, PointKind, plan_interpreter};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel};

/// Address and file offset of the first instruction.
const BASE: u64 = 0x1000;

/// A program being written.
pub struct Program {
    assembler: CodeAssembler,
    /// Labels in front of the instructions that should carry probes.
    probes: Vec<CodeLabel>,
}

impl Program {
    /// Writes one instruction.
    pub fn op(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        write(&mut self.assembler).expect("the assembler refused an instruction of the test");
    }

    /// A label to jump to.
    pub fn label(&mut self) -> CodeLabel {
        self.assembler.create_label()
    }

    /// Puts a label here.
    pub fn place(&mut self, label: &mut CodeLabel) {
        self.assembler.set_label(label).expect("one label in one place");
        // Keeps two labels apart: the assembler allows one for each instruction.
        self.op(CodeAssembler::nop);
    }

    /// The next instruction should carry a probe.
    pub fn mark(&mut self) {
        let mut here = self.label();
        self.assembler.set_label(&mut here).expect("one label in one place");
        self.probes.push(here);
    }

    /// Writes the branch that should carry the probe; its other side is a return.
    pub fn probe(&mut self) {
        let mut side = self.probe_label();
        self.op(CodeAssembler::ret);
        self.place(&mut side);
    }

    /// Writes the branch that should carry the probe; its other side begins where the label is put.
    pub fn probe_label(&mut self) -> CodeLabel {
        let side = self.label();
        self.mark();
        self.op(|assembler| assembler.je(side));
        side
    }
}

/// What the finder said about a program.
pub struct Found {
    /// The plan.
    pub plan: InterpreterPlan,
    /// File offsets of the instructions that should carry probes.
    pub probes: Vec<u64>,
}

impl Found {
    /// The kinds, by offset.
    pub fn kinds(&self) -> Vec<PointKind> {
        self.plan.plan.points.iter().map(|point| point.kind).collect()
    }

    /// The offsets.
    pub fn offsets(&self) -> Vec<u64> {
        self.plan.plan.points.iter().map(|point| point.offset.0).collect()
    }
}

/// Assembles a program that ends in a return and searches it.
pub fn find(write: impl FnOnce(&mut Program)) -> Found {
    find_with(plan_interpreter, write)
}

/// The same by another finder.
pub fn find_with(
    plan: impl FnOnce(&[u8]) -> Result<InterpreterPlan, PlanError>,
    write: impl FnOnce(&mut Program),
) -> Found {
    let mut program =
        Program { assembler: CodeAssembler::new(64).expect("64 bits are a width"), probes: Vec::new() };
    program.op(CodeAssembler::ret);
    write(&mut program);
    program.op(CodeAssembler::ret);
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result =
        program.assembler.assemble_options(BASE, options).expect("the program of the test assembles");
    let probes = program.probes.iter().map(|label| result.label_ip(label).expect("marked label")).collect();
    let plan = plan(&elf(&result.inner.code_buffer)).expect("the test's own file is sound");
    Found { plan, probes }
}

/// An ELF64 file for x86-64 with one executable segment and nothing else.
pub fn elf(code: &[u8]) -> Vec<u8> {
    elf_for(62, code)
}

/// The build id of every file that [`elf`] makes.
pub const BUILD_ID: [u8; 20] = *b"twenty bytes of test";

/// As [`elf`], for any `e_machine`.
pub fn elf_for(machine: u16, code: &[u8]) -> Vec<u8> {
    const NOTE: u64 = 0x200;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(3u16.to_le_bytes()); // e_type: ET_DYN
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes()); // e_version
    file.extend([0u64, 64, 0].map(u64::to_le_bytes).concat()); // e_entry, e_phoff, e_shoff
    file.extend(0u32.to_le_bytes()); // e_flags
    file.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat()); // sizes and counts
    file.extend([1u32, 5].map(u32::to_le_bytes).concat()); // PT_LOAD, readable and executable
    let length = code.len() as u64;
    file.extend([BASE, BASE, BASE, length, length, BASE].map(u64::to_le_bytes).concat());
    file.extend([4u32, 4].map(u32::to_le_bytes).concat()); // PT_NOTE, readable
    file.extend([NOTE, NOTE, NOTE, 36, 36, 4].map(u64::to_le_bytes).concat());
    file.resize(usize::try_from(NOTE).expect("small"), 0);
    file.extend([4u32, 20, 3].map(u32::to_le_bytes).concat()); // lengths of name and id, NT_GNU_BUILD_ID
    file.extend(b"GNU\0");
    file.extend(BUILD_ID);
    file.resize(usize::try_from(BASE).expect("small"), 0);
    file.extend(code);
    file
}
