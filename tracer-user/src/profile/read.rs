//! pprof bytes back into a [`Profile`]: our own files without loss, foreign ones as far as they speak of memory.
//!
//! The bytes are hostile: every index is checked, every sum bounded, and work and memory stay in proportion to
//! limits stated in `wire.rs`, `places.rs` and `samples.rs`. It must not know files or formats other than pprof.

use super::{
    Coverage, Metric, Profile, Recording, Unit,
    places::Places,
    pprof::{METADATA_PREFIX, METADATA_STEM, METRICS, Metadata, sample_type_name},
    proto,
    samples::Samples,
    wire::{self, Fields},
};

/// Most sample types that are looked at; there are eight of ours.
const MAX_SAMPLE_TYPES: usize = 64;
/// The mode of a profile that another tool wrote.
pub const FOREIGN_MODE: &str = "foreign";

/// Why a file is no profile that can be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No bytes at all.
    #[error("the file is empty: was the recording killed? record it again")]
    Empty,
    /// The end is missing.
    #[error("the file is truncated: copy it again, or record it again")]
    Truncated,
    /// The gzip layer is damaged.
    #[error("the gzip layer is damaged (copy the file again, or record it again)")]
    Gzip(#[source] std::io::Error),
    /// The protobuf layer is damaged, or the file is something else.
    #[error("not a pprof profile, or a damaged one (expected a .pb.gz file that `alloctrace record` wrote)")]
    Wire(#[source] prost::DecodeError),
    /// Something else altogether.
    #[error("not a pprof profile: expected a .pb.gz file that `alloctrace record` wrote")]
    NotPprof,
    /// Too large once decompressed.
    #[error("more than {limit_mebibytes} MiB once decompressed: record a shorter time or fewer processes")]
    TooLarge {
        /// The limit.
        limit_mebibytes: u64,
    },
    /// Too many of something.
    #[error(
        "more than {limit} {what}: damaged, or too large to show; record a shorter time or fewer processes"
    )]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// An index points nowhere.
    #[error("the file is damaged: {what} {index} does not exist; record it again")]
    Dangling {
        /// What it should point to.
        what: &'static str,
        /// The index or id.
        index: i64,
    },
    /// A sample has another number of values than there are sample types.
    #[error("the file is damaged: a sample has {found} values for {expected} sample types; record it again")]
    ValueCount {
        /// Number in the sample.
        found: usize,
        /// Number of sample types.
        expected: usize,
    },
    /// A value below zero, as in a difference of two profiles.
    #[error("a sample holds {value}: negative values (a difference of profiles) cannot be shown")]
    Negative {
        /// The value.
        value: i64,
    },
    /// Sums that cannot be true.
    #[error("the file is damaged: its values add up to more than any memory; record it again")]
    Overflow,
    /// A profile of something else.
    #[error(
        "holds no memory values but {found}: expected sample types such as `inuse_space` or `alloc_space`"
    )]
    NotMemory {
        /// The sample types found.
        found: String,
    },
    /// The metadata comment is not what it should be.
    #[error("the metadata is damaged (record it again)")]
    Metadata(#[source] serde_json::Error),
    /// The metadata is of a version that this program does not know.
    #[error("written by a newer alloctrace: open it with that version, or a later one")]
    Newer,
}

/// Reads a profile from the bytes of a file.
///
/// # Errors
/// [`ReadError`], whatever the bytes are.
pub fn decode(file: &[u8]) -> Result<Profile, ReadError> {
    let data = wire::decompress(file)?;
    let fields = wire::split(&data)?;
    let columns = columns(&fields)?;
    let metadata = metadata(&fields)?;
    let places = Places::read(&fields, metadata.is_some())?;
    let (recording, processes) = match metadata {
        Some(metadata) => (metadata.recording, Some(metadata.processes)),
        None => (foreign_recording(&fields), None),
    };
    let mut samples = Samples::new(&fields, columns, places, processes);
    for bytes in &fields.samples {
        samples.add(&wire::message(bytes)?)?;
    }
    Ok(samples.into_profile(recording))
}

/// What each value of a sample is; `None` for values that we have no place for.
fn columns(fields: &Fields<'_>) -> Result<Vec<Option<(Metric, Unit)>>, ReadError> {
    let mut columns = Vec::new();
    let mut names = Vec::new();
    for bytes in fields.sample_types.iter().take(MAX_SAMPLE_TYPES) {
        let value_type: proto::ValueType = wire::message(bytes)?;
        let name = fields.string(value_type.r#type)?.into_owned();
        let column = column(&name, &fields.string(value_type.unit)?);
        // The first of two with one meaning counts: adding both would double the bytes.
        columns.push(column.filter(|column| !columns.contains(&Some(*column))));
        names.push(format!("`{name}`"));
    }
    if columns.iter().all(Option::is_none) {
        let found = if names.is_empty() { "no sample types".to_owned() } else { names.join(", ") };
        return Err(ReadError::NotMemory { found });
    }
    Ok(columns)
}

fn column(name: &str, unit: &str) -> Option<(Metric, Unit)> {
    let unit = Unit::ALL.into_iter().find(|known| known.name() == unit)?;
    // The oldest heap profiles have `objects` and `space`: what was in use.
    let generic = matches!((name, unit), ("space", Unit::Bytes) | ("objects", Unit::Count));
    let named = METRICS.into_iter().find(|metric| sample_type_name(*metric, unit) == name);
    named.or(generic.then_some(Metric::Live)).map(|metric| (metric, unit))
}

/// Our metadata, where exactly one comment holds it (several: another tool merged profiles).
fn metadata(fields: &Fields<'_>) -> Result<Option<Metadata>, ReadError> {
    let mut found = Vec::new();
    for &index in &fields.comments {
        let comment = fields.string(index)?;
        if comment.starts_with(METADATA_STEM) {
            found.push(comment);
        }
    }
    let [comment] = found.as_slice() else { return Ok(None) };
    let json = comment.strip_prefix(METADATA_PREFIX).ok_or(ReadError::Newer)?;
    serde_json::from_str(json).map(Some).map_err(ReadError::Metadata)
}

fn foreign_recording(fields: &Fields<'_>) -> Recording {
    let preferred = fields.string(fields.default_sample_type).unwrap_or_default();
    let metric = column(&preferred, Unit::Bytes.name()).map_or(Metric::Live, |(metric, _)| metric);
    Recording {
        mode: FOREIGN_MODE.to_owned(),
        seen_fraction: 0.0,
        start_nanoseconds: fields.time_nanoseconds,
        duration_nanoseconds: fields.duration_nanoseconds,
        default_metric: metric.name().to_owned(),
        live_bytes_error: 0,
        windows: None,
        coverage: Coverage::Unmeasured { unmeasured: "not recorded by alloctrace".to_owned() },
        losses: super::Losses::default(),
        cost: super::Cost::default(),
        events: 0,
    }
}
