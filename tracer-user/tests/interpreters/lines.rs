//! Every instruction of many standard library modules: our line against the interpreter's own `PyCode_Addr2Line`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use alloctrace::{
    discover::layout::{InstructionKind, InstructionStore, InterpreterLayout},
    profile::ProcessIndex,
    resolve::{
        CodeDefinition, Limits, RawFrame, RawString, Resolver,
        lines::{Line, LineFormat, LineUnknown, Table, normalise},
    },
};
use anyhow::{Context as _, Result, ensure};

use crate::support::{Interpreter, program};

#[derive(serde::Deserialize)]
struct OracleCode {
    name: OracleString,
    qualified_name: Option<OracleString>,
    file: OracleString,
    first_line: i32,
    line_table: String,
    runs: Vec<(i64, u32)>,
}

#[derive(serde::Deserialize)]
struct OracleString {
    state: u32,
    length: u64,
    bytes: String,
    text: String,
}

#[expect(clippy::print_stdout, reason = "the number of compared offsets is the point of the test")]
pub fn check(interpreter: &Interpreter) -> Result<()> {
    let string = interpreter.layout.string;
    let offsets = [string.state, string.ascii_data, string.compact_data].map(|offset| offset.to_string());
    let mut child = Command::new(&interpreter.python)
        .args(["-I", "-W", "ignore"])
        .arg(program("line_oracle.py"))
        .args(offsets)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("no stdout")?);
    let (mut codes, mut instructions) = (0, 0);
    for line in output.lines() {
        let oracle: OracleCode = serde_json::from_str(&line?)?;
        check_names(&oracle, &interpreter.layout)?;
        instructions += check_lines(&oracle, &interpreter.layout)?;
        codes += 1;
    }
    ensure!(child.wait()?.success(), "the oracle failed");
    ensure!(codes > 1000 && instructions > 100_000, "only {codes} codes, {instructions} instructions");
    println!("{}: {instructions} instructions of {codes} code objects agree", interpreter.label);
    Ok(())
}

fn check_lines(oracle: &OracleCode, layout: &InterpreterLayout) -> Result<u32> {
    let bytes = unhex(&oracle.line_table)?;
    let table = Table { bytes: &bytes, complete: true, first_line: oracle.first_line };
    let mut unit = 0;
    for (expected, units) in &oracle.runs {
        for _ in 0..*units {
            let line = LineFormat::of(layout).line(table, normalise(raw_instruction(unit, layout), layout));
            let number = match line {
                Line::Known(number) => i64::from(number),
                Line::Unknown(LineUnknown::Artificial) => -1,
                Line::Unknown(other) => anyhow::bail!("{other:?} in {}", oracle.name.text),
            };
            ensure!(number == *expected, "{} unit {unit}: {line:?}, not {expected}", oracle.name.text);
            unit += 1;
        }
    }
    Ok(unit)
}

/// What a frame at this unit would hold.
fn raw_instruction(unit: u32, layout: &InterpreterLayout) -> u32 {
    match (layout.frame.instruction_kind, layout.code.instructions) {
        (InstructionKind::LastUnit, _) => unit,
        (InstructionKind::Pointer, InstructionStore::Inline { start, .. }) => start + 2 * unit,
        _ => 2 * unit,
    }
}

fn check_names(oracle: &OracleCode, layout: &InterpreterLayout) -> Result<()> {
    let definition = CodeDefinition {
        name: oracle.name.raw()?,
        qualified_name: oracle.qualified_name.as_ref().map(OracleString::raw).transpose()?,
        file: oracle.file.raw()?,
        first_line: oracle.first_line,
        first_traceable: 0,
        line_table: unhex(&oracle.line_table)?,
        line_table_complete: true,
    };
    let process = ProcessIndex(0);
    let mut resolver = Resolver::new(Limits::default());
    resolver.add_process(process, *layout);
    resolver.define(process, 1, 2, &definition);
    let raw = RawFrame { code: 1, instruction: raw_instruction(0, layout), fingerprint: 2 };
    let ids = resolver.resolve(process, &[raw]);
    let frame = resolver.frames().get_index(ids[0].0 as usize).context("no frame")?;
    let function = oracle.qualified_name.as_ref().unwrap_or(&oracle.name);
    ensure!(frame.function == function.text, "{} is not {}", frame.function, function.text);
    ensure!(frame.file.as_ref() == Some(&oracle.file.text), "{:?} is not {}", frame.file, oracle.file.text);
    Ok(())
}

impl OracleString {
    fn raw(&self) -> Result<RawString> {
        Ok(RawString { state: self.state, length: self.length, bytes: unhex(&self.bytes)? })
    }
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    pairs.iter().map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}
