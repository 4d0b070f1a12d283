//! Samples summed up into rows: by line, function, file, module, stack, process or thread.
//!
//! Tables, JSON and CSV all print these rows. It must not know any of them. Rows borrow from the profile.

use std::{cmp::Ordering, collections::HashMap, fmt, str::FromStr};

use super::{OutputError, module::module, text};
use crate::profile::{
    Amount, ErrorSum, Frame, FrameId, FrameKind, Metric, Process, ProcessIndex, Profile, Residence, Sample,
    Stack, Unit,
};

/// What rows are made of: the words of `--by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// Source line of the innermost Python frame.
    #[default]
    Line,
    /// Function of the innermost Python frame.
    Function,
    /// File of the innermost Python frame.
    File,
    /// Module of the innermost Python frame.
    Module,
    /// Whole stack.
    Stack,
    /// Type of the object.
    Type,
    /// Process.
    Process,
    /// Thread.
    Thread,
}

impl By {
    /// Every grouping, in the order of the command line's contract.
    pub const ALL: [Self; 8] = [
        Self::Line,
        Self::Function,
        Self::File,
        Self::Module,
        Self::Stack,
        Self::Type,
        Self::Process,
        Self::Thread,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Function => "function",
            Self::File => "file",
            Self::Module => "module",
            Self::Stack => "stack",
            Self::Type => "type",
            Self::Process => "process",
            Self::Thread => "thread",
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for By {
    type Err = OutputError;

    fn from_str(name: &str) -> Result<Self, OutputError> {
        let found = Self::ALL.into_iter().find(|by| by.name() == name);
        found.ok_or_else(|| OutputError::UnknownGrouping { name: name.to_owned() })
    }
}

/// What a row stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// A line of a function.
    Line {
        /// The source file.
        file: &'a str,
        /// 1-based; 0 where unknown.
        line: u32,
        /// The function.
        function: &'a str,
    },
    /// A function.
    Function {
        /// The source file.
        file: &'a str,
        /// The function.
        function: &'a str,
    },
    /// A source file.
    File(&'a str),
    /// A dotted module, guessed from the file.
    Module(String),
    /// No Python frame was running; the text says why.
    NoPython(&'a str),
    /// A stack, innermost first.
    Stack(&'a Stack),
    /// A process.
    Process(ProcessIndex),
    /// A thread of a process.
    Thread(ProcessIndex, u32),
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// What it stands for.
    pub key: Key<'a>,
    /// How much of the metric.
    pub amount: Amount,
    /// Half the width of the 95 % interval of its bytes; `None`: not known.
    pub bytes_error: Option<u64>,
}

/// Adds up samples of one row.
#[derive(Default)]
struct Sum {
    amount: Amount,
    error: ErrorSum,
}

/// All rows of a profile, the biggest first.
#[derive(Debug)]
pub struct Report<'a> {
    /// The profile that rows refer to.
    pub profile: &'a Profile,
    /// What was summed up.
    pub metric: Metric,
    /// What rows are sorted by.
    pub unit: Unit,
    /// What rows are.
    pub by: By,
    /// The sum of all rows.
    pub total: Amount,
    /// Rows that are not zero.
    pub rows: Vec<Row<'a>>,
}

/// Sums up the samples of a profile.
///
/// # Errors
/// When the profile does not know what is asked for (types, for now).
pub fn aggregate(profile: &Profile, by: By, metric: Metric, unit: Unit) -> Result<Report<'_>, OutputError> {
    if by == By::Type {
        return Err(OutputError::NoTypes);
    }
    let mut sums = HashMap::<Key<'_>, Sum>::new();
    for sample in &profile.samples {
        let amount = sample.amount(metric);
        if amount != Amount::default() {
            let sum = sums.entry(key(profile, sample, by)).or_default();
            sum.amount = sum.amount.plus(amount);
            sum.error.add(sample.error(metric), amount.bytes);
        }
    }
    let is_exact = is_exact(profile, metric);
    let row = |(key, sum): (_, Sum)| {
        let bytes_error = if is_exact { Some(0) } else { sum.error.half_width() };
        Row { key, amount: sum.amount, bytes_error }
    };
    let mut rows: Vec<Row<'_>> = sums.into_iter().map(row).collect();
    rows.sort_unstable_by(|one, other| {
        let size = |row: &Row<'_>| (unit.of(row.amount), row.amount.bytes, row.amount.count);
        // Ties are broken by name, so that the same profile always gives the same text.
        size(other).cmp(&size(one)).then_with(|| one.key.compare(&other.key, profile))
    });
    Ok(Report { profile, metric, unit, by, total: profile.total(metric), rows })
}

/// Whether nothing in the rows is an estimate: what was thinned out is scaled up in all metrics but `allocated`.
fn is_exact(profile: &Profile, metric: Metric) -> bool {
    let recording = &profile.recording;
    let thinned = recording.losses.thinned > 0 && metric != Metric::Allocated;
    // What the kernel's page table has corrected is what lives in the end, of processes that could be compared.
    let is_compared = |process: &Process| matches!(process.residence, Some(Residence::Compared { .. }));
    let is_corrected = || metric == Metric::Live && profile.processes.iter().all(is_compared);
    let mode_is_exact = match &*recording.mode {
        "exact" => true,
        // Everything fitted the budget.
        "budget" => recording.windows.is_none(),
        "growth" => is_corrected(),
        _ => false,
    };
    mode_is_exact && !thinned
}

/// The row that a sample belongs to.
pub(super) fn key<'a>(profile: &'a Profile, sample: &'a Sample, by: By) -> Key<'a> {
    match by {
        By::Stack => Key::Stack(&sample.stack),
        By::Process => Key::Process(sample.process),
        By::Thread => Key::Thread(sample.process, sample.thread),
        By::Line | By::Function | By::File | By::Module | By::Type => frame_key(profile, &sample.stack, by),
    }
}

/// The innermost Python frame owns the memory; without one, the innermost reason why there is none.
fn frame_key<'a>(profile: &'a Profile, stack: &Stack, by: By) -> Key<'a> {
    let frames = || stack.iter().filter_map(|id| frame(profile, id));
    let Some(frame) = frames().find(|frame| frame.kind == FrameKind::Python) else {
        let marker = frames().find(|frame| frame.kind == FrameKind::Marker);
        return Key::NoPython(marker.map_or("no Python frame was running", |marker| &marker.function));
    };
    let (file, line, function) = (frame.file.as_deref().unwrap_or(""), frame.line, &*frame.function);
    match by {
        By::Function => Key::Function { file, function },
        By::File => Key::File(file),
        By::Module => Key::Module(module(file)),
        _ => Key::Line { file, line, function },
    }
}

/// The frame of an id; `None` cannot happen in a profile that keeps its promises.
pub fn frame(profile: &Profile, id: FrameId) -> Option<&Frame> {
    profile.frames.get_index(id.0 as usize)
}

/// The text of every frame, for [`stack_text`]: frames are few, stacks are many.
pub fn frame_texts(profile: &Profile) -> Vec<String> {
    profile.frames.iter().map(text::frame).collect()
}

/// The frames of a stack, given innermost first, as text, outermost first.
pub fn stack_text(texts: &[String], stack: Vec<FrameId>) -> impl Iterator<Item = &str> {
    stack.into_iter().rev().filter_map(|id| texts.get(id.0 as usize)).map(String::as_str)
}

impl Key<'_> {
    /// The order of rows of the same size: by name.
    pub(super) fn compare(&self, other: &Self, profile: &Profile) -> Ordering {
        if let (Key::Stack(one), Key::Stack(other)) = (self, other) {
            let (one, other) = (one.to_vec(), other.to_vec());
            let names = |stack: &[FrameId], id: usize| {
                let frame = frame(profile, stack[id])?;
                Some((frame.file.as_deref().unwrap_or(""), &*frame.function, frame.line))
            };
            let differs = (0..one.len().min(other.len()))
                .map(|depth| names(&one, one.len() - 1 - depth).cmp(&names(&other, other.len() - 1 - depth)))
                .find(|order| order.is_ne());
            // A stack comes before those that it is the outer part of; a comparison by ids here would not be transitive with the one
            // by names above.
            return differs.unwrap_or_else(|| one.len().cmp(&other.len()).then_with(|| one.cmp(&other)));
        }
        self.name().cmp(&other.name())
    }

    fn name(&self) -> (&str, u32, u32, &str) {
        match self {
            Key::Line { file, line, function } => (file, *line, 0, function),
            Key::Function { file, function } => (file, 0, 0, function),
            Key::File(file) => (file, 0, 0, ""),
            Key::Module(module) => (module, 0, 0, ""),
            Key::NoPython(reason) => ("", 0, 0, reason),
            Key::Process(process) => ("", process.0, 0, ""),
            Key::Thread(process, thread) => ("", process.0, *thread, ""),
            Key::Stack(_) => ("", 0, 0, ""),
        }
    }
}
