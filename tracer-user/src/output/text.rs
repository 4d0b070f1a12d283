//! Text for people: names made harmless, frames as one line, bytes and counts in human units.
//!
//! Names come from traced programs and from files, so they are hostile: a function may be called anything that
//! Python accepts. Every format takes its names from here. It must not know any format's own quoting.

use std::{borrow::Cow, fmt::Write};

use crate::profile::{Frame, FrameKind, Process};

/// Longest frame text in characters; longer ones lose their middle.
const FRAME_TEXT_CHARACTERS: usize = 512;
/// Longest command line in characters.
const COMMAND_CHARACTERS: usize = 120;

/// `name` with everything that is not a visible character spelled out, as Python does: `\n`, `\x1b`, `\u202e`.
///
/// That covers terminal escapes, line breaks, and characters that reorder or hide text. A backslash stays as it is.
pub fn visible(name: &str) -> Cow<'_, str> {
    if !name.chars().any(is_invisible) {
        return Cow::Borrowed(name);
    }
    let mut text = String::with_capacity(name.len() + 16);
    for character in name.chars() {
        match character {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            _ if is_invisible(character) => push_escape(&mut text, character),
            _ => text.push(character),
        }
    }
    Cow::Owned(text)
}

/// Control and format characters, line separators, and what XML forbids.
pub fn is_invisible(character: char) -> bool {
    // Nearly every character of nearly every name.
    if matches!(character, ' '..='~') {
        return false;
    }
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
        // The last two code points of every plane are no characters.
        || u32::from(character) & 0xfffe == 0xfffe
}

fn push_escape(text: &mut String, character: char) {
    let code = u32::from(character);
    // Writing to a string cannot fail.
    let _ = match code {
        0..=0xff => write!(text, "\\x{code:02x}"),
        0x100..=0xffff => write!(text, "\\u{code:04x}"),
        _ => write!(text, "\\U{code:08x}"),
    };
}

/// At most `limit` characters, the middle cut out where there are more.
pub fn shorten(text: &str, limit: usize) -> Cow<'_, str> {
    // Bytes bound characters from above, so most names are never counted.
    if text.len() <= limit || text.chars().count() <= limit {
        return Cow::Borrowed(text);
    }
    let tail = limit / 3;
    let head = limit.saturating_sub(tail + 1);
    let mut start: Vec<char> = text.chars().rev().take(tail).collect();
    start.reverse();
    Cow::Owned(text.chars().take(head).chain(['…']).chain(start).collect())
}

/// Something to see where a name is empty or blank.
fn named(name: &str) -> &str {
    if name.trim().is_empty() { "<unnamed>" } else { name }
}

/// A frame as one visible line: `function (file.py:line)`, `symbol [module]`, or a marker's reason.
pub fn frame(frame: &Frame) -> String {
    let function = named(&frame.function);
    let base = frame.file.as_deref().map(base_name);
    let text = match (frame.kind, base) {
        (FrameKind::Marker, _) | (_, None) => function.to_owned(),
        (FrameKind::Native, Some(module)) => format!("{function} [{module}]"),
        (FrameKind::Python, Some(file)) if frame.line == 0 => format!("{function} ({file})"),
        (FrameKind::Python, Some(file)) => format!("{function} ({file}:{})", frame.line),
    };
    shorten(&visible(&text), FRAME_TEXT_CHARACTERS).into_owned()
}

/// A process as one visible line: its command, shortened.
pub fn command(process: &Process) -> String {
    shorten(&visible(named(&process.command)), COMMAND_CHARACTERS).into_owned()
}

/// A process as the root of its stacks: `command [pid]`.
pub fn process(process: &Process) -> String {
    format!("{} [{}]", command(process), process.pid)
}

/// The last component of a path; names that are no paths (`<frozen importlib._bootstrap>`) stay whole.
pub fn base_name(file: &str) -> &str {
    if file.starts_with('<') {
        return file;
    }
    file.rsplit('/').find(|part| !part.is_empty()).unwrap_or(file)
}

/// Bytes in binary units: `6.58 MiB`.
pub fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A number with its thousands apart: `10,050`.
pub fn count(count: u64) -> String {
    indicatif::HumanCount(count).to_string()
}

/// A number of blocks: `10,050 blocks`.
pub fn blocks(number: u64) -> String {
    format!("{} {}", count(number), if number == 1 { "block" } else { "blocks" })
}

/// `part` of `whole` in percent.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}
