//! What a cell of the matrix holds, as a line for people and as a file for the table of what works where.

use super::machine::Guest;
use serde_json::{Value, json};
use std::fmt;

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// One test of one guest.
#[derive(Debug, Clone)]
pub struct Cell {
    pub architecture: &'static str,
    /// What `uname -r` says; the series before that is known.
    pub kernel: String,
    /// The preemption that the kernel says it uses; `fixed` where it cannot be chosen.
    pub preemption: String,
    pub test: String,
    pub interpreter: Option<String>,
    /// Shares of allocations and frees that were seen.
    pub coverage: Option<(f64, f64)>,
    /// Share of blocks whose stack is whole.
    pub whole_stacks: Option<f64>,
    pub outcome: Outcome,
}

impl Cell {
    pub fn of(guest: &Guest, test: &str, outcome: Outcome) -> Self {
        Self {
            architecture: guest.architecture.name(),
            kernel: guest.kernel.to_owned(),
            preemption: if guest.full_preemption { "full" } else { "default" }.to_owned(),
            test: test.to_owned(),
            interpreter: None,
            coverage: None,
            whole_stacks: None,
            outcome,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { architecture, kernel, preemption, test, interpreter, .. } = self;
        write!(formatter, "vm {architecture} {kernel} preempt={preemption} {test}")?;
        if let Some(interpreter) = interpreter {
            write!(formatter, " python {interpreter}")?;
        }
        match &self.outcome {
            Outcome::Passed => write!(formatter, ": ok")?,
            Outcome::Failed(reason) => write!(formatter, ": FAILED: {reason}")?,
            Outcome::Skipped(reason) => write!(formatter, ": skipped: {reason}")?,
        }
        if let Some((allocations, frees)) = self.coverage {
            write!(formatter, ", coverage {:.3} % / {:.3} %", allocations * 100.0, frees * 100.0)?;
        }
        Ok(())
    }
}

/// All cells, as a list of objects; what is not known is null.
pub fn json(cells: &[Cell]) -> String {
    let object = |cell: &Cell| {
        let (outcome, reason) = match &cell.outcome {
            Outcome::Passed => ("passed", None),
            Outcome::Failed(reason) => ("failed", Some(reason)),
            Outcome::Skipped(reason) => ("skipped", Some(reason)),
        };
        json!({
            "architecture": cell.architecture, "kernel": cell.kernel, "preempt": cell.preemption,
            "test": cell.test, "interpreter": cell.interpreter, "outcome": outcome, "reason": reason,
            "coverage": cell.coverage.map(|(allocations, frees)| json!({"allocations": allocations, "frees": frees})),
            "complete_stacks": cell.whole_stacks,
        })
    };
    let cells: Vec<Value> = cells.iter().map(object).collect();
    format!("{:#}\n", json!({"schema": 1, "cells": cells}))
}
