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

/// Bytes a second: `12.3 KiB/s`; with a sign where it is below zero.
pub fn rate(bytes_per_second: i64) -> String {
    let sign = if bytes_per_second < 0 { "-" } else { "" };
    let mut value = bytes_per_second.unsigned_abs() as f64;
    if value < 1024.0 {
        return format!("{sign}{value:.0} B/s");
    }
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    format!("{sign}{value:.1} {unit}/s")
}

/// An amount of a metric that is bytes a second.
pub fn flow(bytes_per_second: u64) -> String {
    rate(i64::try_from(bytes_per_second).unwrap_or(i64::MAX))
}

/// Half the width of an interval against its value, rounded up: `± 3.2 %`; `?` where it is not known.
pub fn error(error: Option<u64>, value: u64) -> String {
    let Some(error) = error else { return "?".to_owned() };
    let percent = percent(error, value);
    if percent < 10.0 {
        format!("± {:.1} %", (percent * 10.0).ceil() / 10.0)
    } else {
        format!("± {:.0} %", percent.ceil())
    }
}

/// A share of a million as percent, rounded down, so that 100 % means all of it.
pub fn likelihood(millionths: u32) -> String {
    format!("{}.{} %", millionths / 10_000, millionths / 1000 % 10)
}

/// A time as long as a person counts it: `12.3 s`, `5.0 min`, `2.5 h`.
pub fn age(milliseconds: u64) -> String {
    let seconds = milliseconds as f64 / 1e3;
    match seconds {
        ..120.0 => format!("{seconds:.1} s"),
        ..7200.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_signs_and_units() {
        for (number, expected) in [
            (0, "0 B/s"),
            (-1023, "-1023 B/s"),
            (12_595, "12.3 KiB/s"),
            (-3 << 20, "-3.0 MiB/s"),
            (i64::MIN, "-8.0 EiB/s"),
        ] {
            assert_eq!(rate(number), expected);
        }
        assert_eq!(flow(u64::MAX), "8.0 EiB/s");
    }

    #[test]
    fn errors_are_rounded_up_and_likelihoods_down() {
        assert_eq!(error(Some(0), 7), "± 0.0 %");
        assert_eq!(error(Some(1001), 100_000), "± 1.1 %");
        assert_eq!(error(Some(10_001), 100_000), "± 11 %");
        assert_eq!(error(None, 7), "?");
        assert_eq!(likelihood(999_999), "99.9 %");
        assert_eq!(likelihood(1_000_000), "100.0 %");
    }

    #[test]
    fn ages_are_counted_as_people_do() {
        assert_eq!(
            [age(0), age(12_345), age(300_000), age(9_000_000)],
            ["0.0 s", "12.3 s", "5.0 min", "2.5 h"]
        );
    }
}
