//! Stage 7: from a [`Profile`] to bytes, one file a format, each a pure function.
//!
//! It must not know how a profile was recorded or who asks; only [`write`] and [`check_writable`] touch files.

pub mod aggregate;
pub mod csv;
mod destination;
pub mod flamegraph;
pub mod folded;
pub mod json;
pub mod leaks;
mod memory;
pub mod module;
pub mod speedscope;
pub mod summary;
pub mod table;
pub mod text;

use std::{io, path::Path, path::PathBuf};

use crate::profile::{Metric, Profile, Unit, pprof};

/// Why output could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The path's ending names no format.
    #[error("cannot tell the format of `{}`: end it in one of {}", path.display(), Format::known_endings())]
    UnknownEnding {
        /// The path.
        path: PathBuf,
    },
    /// The word names no grouping.
    #[error("unknown grouping `{name}`: use one of {}", aggregate::By::ALL.map(aggregate::By::name).join(", "))]
    UnknownGrouping {
        /// The word.
        name: String,
    },
    /// Types were asked for.
    #[error("the profile was recorded without types: use --by line or --by function")]
    NoTypes,
    /// Leaks were asked for.
    #[error("{why}")]
    NoGrowth {
        /// What does not know growth, and what to do.
        why: String,
    },
    /// A flame graph of nothing.
    #[error("nothing to draw: the profile holds no {metric} memory; choose another --metric")]
    NothingToDraw {
        /// The metric.
        metric: Metric,
    },
    /// Folded text beyond reason.
    #[error("more than {limit_mebibytes} MiB of stacks: record a shorter time or fewer processes")]
    TooLarge {
        /// The limit.
        limit_mebibytes: usize,
    },
    /// The path is a folder.
    #[error("`{}` is a folder: name a file in it", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// The path is a socket.
    #[error("`{}` is a socket: name a file or a pipe", path.display())]
    Socket {
        /// The path.
        path: PathBuf,
    },
    /// A file cannot be opened or replaced.
    #[error("cannot write `{}` (choose another output)", path.display())]
    Create {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No file can be made in the folder.
    #[error("cannot create a file in `{}` (choose another folder for the output)", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing failed midway.
    #[error("cannot write the output")]
    Write(#[source] io::Error),
    /// The profile has no pprof form.
    #[error(transparent)]
    Encode(#[from] pprof::EncodeError),
}

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// gzip-compressed pprof: the form that loses nothing.
    Pprof,
    /// A flame graph.
    Svg,
    /// Folded stacks.
    Folded,
    /// The report by line, as JSON.
    Json,
    /// speedscope's JSON.
    Speedscope,
}

impl Format {
    /// Endings and their formats. The longer of two that fit comes first.
    const ENDINGS: [(&'static str, Self); 5] = [
        (".pb.gz", Self::Pprof),
        (".svg", Self::Svg),
        (".folded", Self::Folded),
        (".speedscope.json", Self::Speedscope),
        (".json", Self::Json),
    ];

    /// The format that a path's ending names.
    ///
    /// # Errors
    /// When it names none.
    pub fn of(path: &Path) -> Result<Self, OutputError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let found = Self::ENDINGS.into_iter().find(|(ending, _)| name.ends_with(ending));
        found.map(|(_, format)| format).ok_or_else(|| OutputError::UnknownEnding { path: path.to_owned() })
    }

    fn known_endings() -> String {
        Self::ENDINGS.map(|(ending, _)| ending).join(", ")
    }
}

/// What formats that hold one metric show.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The metric.
    pub metric: Metric,
    /// Bytes or blocks.
    pub unit: Unit,
}

/// Writes the profile to `path` in the format that its ending names: whole or not at all.
///
/// `-` and `/dev/stdout` are standard output, but their endings name no format (see [`write_as`]).
///
/// # Errors
/// [`OutputError`].
pub fn write(profile: &Profile, path: &Path, options: Options) -> Result<(), OutputError> {
    write_as(profile, Format::of(path)?, path, options)
}

/// Writes the profile to `path` in a format of the caller's choice: whole or not at all.
///
/// # Errors
/// [`OutputError`].
pub fn write_as(profile: &Profile, format: Format, path: &Path, options: Options) -> Result<(), OutputError> {
    let Options { metric, unit } = options;
    produce(path, |writer| match format {
        Format::Pprof => writer.write_all(&pprof::encode(profile)?).map_err(OutputError::Write),
        Format::Svg => {
            flamegraph::write(profile, flamegraph::Options { metric, unit, inverted: false }, writer)
        }
        Format::Folded => folded::write(profile, metric, unit, writer),
        Format::Json => {
            let report = aggregate::aggregate(profile, aggregate::By::Line, metric, unit)?;
            json::write(&report, None, writer)
        }
        Format::Speedscope => speedscope::write(profile, metric, unit, writer),
    })
}

/// Writes to `path` what `produce` produces: whole or not at all.
///
/// # Errors
/// Those of `produce`, and [`OutputError`]s of the file.
pub fn produce(
    path: &Path,
    produce: impl FnOnce(&mut dyn io::Write) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    destination::write(path, produce)
}

/// Finds an output that is impossible before anything is recorded; leaves no file behind.
///
/// # Errors
/// What [`write`] would say of the path.
pub fn check_writable(path: &Path) -> Result<(), OutputError> {
    destination::check(path)
}
