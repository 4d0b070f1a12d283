//! Folded stacks: one line a stack, `process;frame;frame;... VALUE`, outermost first; also what flame graphs are
//! drawn from.
//!
//! It must not know files. Frame text is that of `text.rs` with `;` replaced, so a line always splits into its frames.

use std::{collections::BTreeMap, io::Write};

use super::{OutputError, text};
use crate::profile::{Metric, Profile, Sample, Unit};

/// Most bytes of folded text. A file of a megabyte can stand for terabytes of it: long names in deep stacks.
const MAX_TEXT_BYTES: usize = 512 << 20;

/// Writes the folded stacks of one metric.
///
/// # Errors
/// When writing fails, or the text would be too large to be of use.
pub fn write(
    profile: &Profile,
    metric: Metric,
    unit: Unit,
    writer: &mut dyn Write,
) -> Result<(), OutputError> {
    for (stack, value) in stacks(profile, metric, unit, Root::CommandAndPid)? {
        writeln!(writer, "{stack} {value}").map_err(OutputError::Write)?;
    }
    Ok(())
}

/// How the outermost frame names the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    /// `python main.py [4711]`.
    CommandAndPid,
    /// `python main.py`: to compare recordings, whose pids differ.
    Command,
}

/// Every stack as text with its value, sorted; equal texts are one.
pub(super) fn stacks(
    profile: &Profile,
    metric: Metric,
    unit: Unit,
    root: Root,
) -> Result<BTreeMap<String, u64>, OutputError> {
    let frames: Vec<String> = profile.frames.iter().map(|frame| escape_frame(&text::frame(frame))).collect();
    let roots: Vec<String> =
        profile.processes.iter().map(|process| escape_root(&root.text(process))).collect();
    let mut stacks = BTreeMap::<String, u64>::new();
    let mut text_bytes = 0;
    for sample in &profile.samples {
        let value = unit.of(sample.amount(metric));
        if value == 0 {
            continue;
        }
        let line = line(sample, &roots, &frames);
        text_bytes += line.len();
        if text_bytes > MAX_TEXT_BYTES {
            return Err(OutputError::TooLarge { limit_mebibytes: MAX_TEXT_BYTES >> 20 });
        }
        let sum = stacks.entry(line).or_default();
        *sum = sum.saturating_add(value);
    }
    Ok(stacks)
}

fn line(sample: &Sample, roots: &[String], frames: &[String]) -> String {
    let mut line = roots.get(sample.process.0 as usize).cloned().unwrap_or_default();
    for frame in sample.stack.to_vec().iter().rev() {
        line.push(';');
        line.push_str(frames.get(frame.0 as usize).map_or("", String::as_str));
    }
    line
}

impl Root {
    pub(super) fn text(self, process: &crate::profile::Process) -> String {
        match self {
            Self::CommandAndPid => text::process(process),
            Self::Command => text::command(process),
        }
    }
}

/// The text of a process that cannot be taken for two frames or a comment by what reads folded stacks.
pub(super) fn escape_root(text: &str) -> String {
    let text = text.trim().replace(';', ",");
    if text.starts_with('#') { format!("\\{text}") } else { text }
}

/// The text of a frame that cannot be taken for two frames or a value by what reads folded stacks.
pub(super) fn escape_frame(text: &str) -> String {
    let text = text.trim().replace(';', ",");
    // "task 12" would end in a second value, as in a difference of two profiles.
    match text.rsplit_once(' ') {
        Some((name, last)) if last.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            format!("{name}_{last}")
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::{escape_frame, escape_root};

    #[test]
    fn escaped_text_is_one_frame_and_no_value() {
        assert_eq!(escape_frame("f (a.py:3)"), "f (a.py:3)");
        assert_eq!(escape_frame("a;b"), "a,b");
        assert_eq!(escape_frame("task 12"), "task_12");
        assert_eq!(escape_frame("task 1.5 "), "task_1.5");
        assert_eq!(escape_root("# note;"), "\\# note,");
        assert_eq!(escape_root("worker --jobs 4"), "worker --jobs 4");
    }
}
