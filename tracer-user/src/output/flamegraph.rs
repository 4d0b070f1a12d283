//! Flame graphs as SVG, drawn by inferno: one profile, or the difference of two.
//!
//! It must not know files. Colours say what a frame is (Python by module, native, a reason why there is no frame);
//! hovering shows human-readable bytes and the share of the whole.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use inferno::flamegraph::{
    self, Direction, TextTruncateDirection,
    color::{BackgroundColor, Color, PaletteMap, StrokeColor},
};

use super::{
    OutputError,
    folded::{self, Root},
    module::module,
    summary, text,
};
use crate::profile::{Frame, FrameKind, Metric, Profile, Unit};

/// Processes, and outlines.
const GREY: Color = Color { r: 214, g: 218, b: 224 };

/// What to draw.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The metric that widths stand for.
    pub metric: Metric,
    /// Bytes or blocks.
    pub unit: Unit,
    /// Outermost frames at the top (an icicle graph).
    pub inverted: bool,
}

/// Draws one profile.
///
/// # Errors
/// When the profile holds nothing of that metric, or writing fails.
pub fn write(profile: &Profile, options: Options, writer: &mut dyn Write) -> Result<(), OutputError> {
    let stacks = folded::stacks(profile, options.metric, options.unit, Root::CommandAndPid)?;
    let lines: Vec<String> = stacks.iter().map(|(stack, value)| format!("{stack} {value}")).collect();
    let mut palette = palette(profile, Root::CommandAndPid);
    let mut settings = settings(options);
    settings.title = summary::title(profile, options.metric, options.unit);
    settings.subtitle = Some(summary::subtitle(profile));
    settings.palette_map = Some(&mut palette);
    draw(settings, &lines, options, writer)
}

/// Draws `profile` with frames coloured by their growth (red) or shrinkage (blue) since `base`.
///
/// Widths are those of `profile`. Pids are left out, as they differ from one recording to the next.
///
/// # Errors
/// When `profile` holds nothing of that metric, or writing fails.
pub fn write_difference(
    profile: &Profile,
    base: &Profile,
    options: Options,
    writer: &mut dyn Write,
) -> Result<(), OutputError> {
    let mut both = BTreeMap::<String, (u64, u64)>::new();
    for (stack, value) in folded::stacks(base, options.metric, options.unit, Root::Command)? {
        both.entry(stack).or_default().0 = value;
    }
    for (stack, value) in folded::stacks(profile, options.metric, options.unit, Root::Command)? {
        both.entry(stack).or_default().1 = value;
    }
    let line = |(stack, (before, after)): (&String, &(u64, u64))| format!("{stack} {before} {after}");
    let lines: Vec<String> = both.iter().map(line).collect();
    let mut settings = settings(options);
    settings.title = summary::difference_title(profile, base, options.metric, options.unit);
    // Unchanged frames are white: without an outline they would not be seen.
    settings.stroke_color = StrokeColor::Color(GREY);
    settings.subtitle = Some("red: more than in the base, blue: less; width: now".to_owned());
    draw(settings, &lines, options, writer)
}

fn settings(options: Options) -> flamegraph::Options<'static> {
    let mut settings = flamegraph::Options::default();
    settings.bgcolors = Some(BackgroundColor::Flat(Color { r: 255, g: 255, b: 255 }));
    settings.count_name = count_name(options).to_owned();
    settings.name_type = "Frame:".to_owned();
    settings.direction = if options.inverted { Direction::Inverted } else { Direction::Straight };
    settings.font_type = "monospace".to_owned();
    settings.frame_height = 18;
    // A little more than most monospace fonts need, so that shortened text stays inside its box.
    settings.font_width = 0.62;
    settings.min_width = 0.02;
    settings.text_truncate_direction = TextTruncateDirection::Right;
    settings.deterministic = true;
    settings
}

fn count_name(options: Options) -> &'static str {
    match (options.metric, options.unit) {
        (Metric::Retained, _) => "bytes/s",
        (_, Unit::Bytes) => "bytes",
        (_, Unit::Count) => "blocks",
    }
}

fn draw(
    mut settings: flamegraph::Options<'_>,
    lines: &[String],
    options: Options,
    writer: &mut dyn Write,
) -> Result<(), OutputError> {
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut settings, lines.iter().map(String::as_str), &mut svg).map_err(|source| {
        // With lines that are ours and well-formed, only an empty graph is invalid.
        match source.kind() {
            io::ErrorKind::InvalidData => OutputError::NothingToDraw { metric: options.metric },
            _ => OutputError::Write(source),
        }
    })?;
    let svg = String::from_utf8_lossy(&svg);
    humanise(&svg, options, writer).map_err(OutputError::Write)
}

/// Rewrites hover texts from `f (1,234,567 bytes, 5.00%)` to `f (1.18 MiB, 5.00%)`; inferno knows plain numbers only.
fn humanise(svg: &str, options: Options, writer: &mut dyn Write) -> io::Result<()> {
    let marker = format!(" {},", count_name(options));
    let mut rest = svg;
    while let Some((before, title, after)) = next_title(rest) {
        writer.write_all(before.as_bytes())?;
        // The last parenthesis is inferno's; those of names come before it.
        let split = title.rfind('(').map(|start| title.split_at(start + 1));
        let parts = split.and_then(|(name, numbers)| Some((name, numbers.split_once(&marker)?)));
        match parts.and_then(|(name, (number, share))| Some((name, human(number, options)?, share))) {
            Some((name, number, share)) => write!(writer, "{name}{number},{share}")?,
            None => writer.write_all(title.as_bytes())?,
        }
        rest = after;
    }
    writer.write_all(rest.as_bytes())
}

/// Splits at the next `<title>`'s content.
fn next_title(svg: &str) -> Option<(&str, &str, &str)> {
    let start = svg.find("<title>")? + "<title>".len();
    let length = svg[start..].find("</title>")?;
    Some((&svg[..start], &svg[start..start + length], &svg[start + length..]))
}

fn human(number: &str, options: Options) -> Option<String> {
    let number = number.replace(',', "").parse().ok()?;
    Some(summary::human(options.metric, options.unit, number))
}

/// The colour of every frame text.
fn palette(profile: &Profile, root: Root) -> PaletteMap {
    let mut palette = PaletteMap::default();
    palette.insert("", GREY);
    for frame in &profile.frames {
        palette.insert(folded::escape_frame(&text::frame(frame)), color(frame));
    }
    for process in &profile.processes {
        palette.insert(folded::escape_root(&root.text(process)), GREY);
    }
    palette
}

/// Python frames get a warm hue by module, so one package's frames are seen as one; native frames are blue and
/// markers grey. All are light enough for black text.
fn color(frame: &Frame) -> Color {
    let file = frame.file.as_deref().unwrap_or("");
    let function_hash = hash(&frame.function);
    let shade = (function_hash % 24) as u8;
    match frame.kind {
        FrameKind::Marker => Color { r: 190, g: 190, b: 190 },
        FrameKind::Native => Color { r: 132 + shade, g: 176 + shade, b: 226 },
        FrameKind::Python => {
            let module = module(file);
            let package = module.split('.').next().unwrap_or_default();
            // Orange to yellow by package; inside one, only the lightness changes.
            let hue = (hash(package) % 96) as u8;
            Color { r: 232 + shade, g: 130 + hue, b: 66 + hue / 3 + shade }
        }
    }
}

/// FNV-1a: the same colours on every machine and in every version.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
