//! A [`Profile`] as pprof, gzip-compressed: the form on disk, which `go tool pprof` and its kin open unchanged.
//!
//! Nothing is lost. What pprof has no field for travels in two ways that other tools ignore: how it was recorded and
//! the processes are JSON in a comment, and a frame's kind is the mapping of its location. It must not know files;
//! [`decode`] is in `read.rs`.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use prost::Message;
use rustc_hash::FxHashMap;

use super::{
    Amount, Coverage, Domain, Frame, FrameKind, Metric, Process, Profile, Recording, Sample, Unit, labels,
    proto,
};

pub use super::read::decode;

/// The start of the comment that holds the metadata; the JSON follows.
pub(super) const METADATA_PREFIX: &str = "alloctrace-profile-v1 ";
/// The same without the version, to recognise a file of a later one.
pub(super) const METADATA_STEM: &str = "alloctrace-profile-v";
/// The order of sample types in our files: objects, then space.
pub(super) const METRICS: [Metric; 4] = [Metric::Allocated, Metric::Live, Metric::Peak, Metric::Temporary];
/// Mapping ids are positions here plus one. Names in brackets are what pprof never tries to open.
pub(super) const KINDS: [(FrameKind, &str); 3] = [
    (FrameKind::Python, "python"),
    (FrameKind::Native, "[native]"),
    (FrameKind::Marker, "[no-python-frame]"),
];

/// Tags of the outermost message's fields; see `proto.rs`.
const SAMPLE_TAG: u32 = 2;
const LOCATION_TAG: u32 = 4;

/// What pprof has no field for.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Metadata {
    pub recording: Recording,
    pub processes: Vec<Process>,
}

/// Why a profile could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The metadata has no JSON form.
    #[error("cannot encode the profile's metadata; please report this")]
    Metadata(#[source] serde_json::Error),
    /// Compression failed.
    #[error("cannot compress the profile")]
    Compress(#[source] std::io::Error),
}

/// The whole profile as the bytes of a `.pb.gz` file.
///
/// # Errors
/// [`EncodeError`]; no profile that alloctrace recorded is known to cause one.
pub fn encode(profile: &Profile) -> Result<Vec<u8>, EncodeError> {
    encode_as(profile, &profile.recording)
}

/// The same, with something else said of how and when it was recorded.
///
/// # Errors
/// As [`encode`].
pub fn encode_as(profile: &Profile, recording: &Recording) -> Result<Vec<u8>, EncodeError> {
    // Level 6 and no time stamp: the same profile is the same file.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let mut encoder = Encoder::default();
    // Field by field, which is what the outermost message is on the wire: with all samples in one message, the tracer's
    // memory would double here (30 MB more for 100,000 stacks).
    let mut write = |bytes: &[u8]| gzip.write_all(bytes).map_err(EncodeError::Compress);
    let mut field = Vec::new();
    for sample in &profile.samples {
        field.clear();
        encode_field(SAMPLE_TAG, &encoder.sample(sample, &profile.processes), &mut field);
        write(&field)?;
    }
    for (id, frame) in (1..).zip(&profile.frames) {
        field.clear();
        encode_field(LOCATION_TAG, &encoder.location(id, frame), &mut field);
        write(&field)?;
    }
    write(&encoder.rest(profile, recording)?.encode_to_vec())?;
    gzip.finish().map_err(EncodeError::Compress)
}

/// One field of the outermost message.
fn encode_field(tag: u32, message: &impl Message, buffer: &mut Vec<u8>) {
    prost::encoding::message::encode(tag, message, buffer);
}

/// pprof's name of a metric in a unit, such as `inuse_space`.
pub(super) fn sample_type_name(metric: Metric, unit: Unit) -> String {
    let stem = match metric {
        Metric::Allocated => "alloc",
        Metric::Live => "inuse",
        Metric::Peak => "peak",
        Metric::Temporary => "temporary",
        // No value of a sample but a label of it.
        Metric::Retained => "retained",
    };
    let ending = match unit {
        Unit::Count => "objects",
        Unit::Bytes => "space",
    };
    format!("{stem}_{ending}")
}

/// The label's text for a domain.
pub(super) fn domain_name(domain: Domain) -> &'static str {
    match domain {
        Domain::Pymalloc => "pymalloc",
        Domain::Malloc => "malloc",
        Domain::Resident => "resident",
    }
}

/// Interns strings and functions while the message grows.
struct Encoder {
    strings: Vec<String>,
    string_indices: FxHashMap<String, i64>,
    functions: Vec<proto::Function>,
    function_ids: FxHashMap<(i64, i64, u32), u64>,
    /// Index of a second empty string, for files whose name is empty rather than absent (index 0).
    empty_file: Option<i64>,
}

impl Default for Encoder {
    fn default() -> Self {
        // The format demands that string 0 is the empty one.
        Self {
            strings: vec![String::new()],
            string_indices: FxHashMap::from_iter([(String::new(), 0)]),
            functions: Vec::new(),
            function_ids: FxHashMap::default(),
            empty_file: None,
        }
    }
}

impl Encoder {
    /// The outermost message without samples and locations: to be made last, for the functions and strings that they named.
    fn rest(mut self, profile: &Profile, recording: &Recording) -> Result<proto::Profile, EncodeError> {
        let sample_type = METRICS
            .into_iter()
            .flat_map(|metric| [(metric, Unit::Count), (metric, Unit::Bytes)])
            .map(|(metric, unit)| self.value_type(&sample_type_name(metric, unit), unit.name()))
            .collect();
        // What is no value of samples cannot be what tools show first.
        let default = Some(profile.default_metric()).filter(|metric| METRICS.contains(metric));
        let default_name = sample_type_name(default.unwrap_or(Metric::Allocated), Unit::Bytes);
        let default_sample_type = self.string(&default_name);
        let mapping = (1..).zip(KINDS).map(|(id, (_, name))| self.mapping(id, name)).collect();
        let comment = vec![self.metadata(profile, recording)?];
        let period_type = Some(self.value_type("space", Unit::Bytes.name()));
        Ok(proto::Profile {
            sample_type,
            sample: Vec::new(),
            mapping,
            location: Vec::new(),
            function: self.functions,
            string_table: self.strings,
            time_nanos: signed(recording.start_nanoseconds),
            duration_nanos: signed(recording.duration_nanoseconds),
            period_type,
            period: 1,
            comment,
            default_sample_type,
        })
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.string_indices.get(text) {
            return index;
        }
        let index = signed(self.strings.len() as u64);
        self.strings.push(text.to_owned());
        self.string_indices.insert(text.to_owned(), index);
        index
    }

    fn file(&mut self, file: Option<&str>) -> i64 {
        match file {
            None => 0,
            Some("") => *self.empty_file.get_or_insert_with(|| {
                self.strings.push(String::new());
                signed(self.strings.len() as u64 - 1)
            }),
            Some(file) => self.string(file),
        }
    }

    fn value_type(&mut self, name: &str, unit: &str) -> proto::ValueType {
        proto::ValueType { r#type: self.string(name), unit: self.string(unit) }
    }

    /// Every `has_` is set, so that no tool looks for symbols.
    fn mapping(&mut self, id: u64, name: &str) -> proto::Mapping {
        let filename = self.string(name);
        proto::Mapping {
            id,
            filename,
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
        }
    }

    /// Ids are positions plus one, so that decoding finds the frames in their order again.
    fn location(&mut self, id: u64, frame: &Frame) -> proto::Location {
        let name = self.string(&frame.function);
        let filename = self.file(frame.file.as_deref());
        let next_id = self.functions.len() as u64 + 1;
        let function_id = *self.function_ids.entry((name, filename, frame.first_line)).or_insert(next_id);
        if function_id == next_id {
            let start_line = i64::from(frame.first_line);
            // No system name: with one that is the name, pprof strips `<module>` as if it were a C++ template.
            let function = proto::Function { id: next_id, name, system_name: 0, filename, start_line };
            self.functions.push(function);
        }
        let mapping_id = (1..).zip(KINDS).find(|(_, (kind, _))| *kind == frame.kind).map_or(0, |(id, _)| id);
        let line = vec![proto::Line { function_id, line: i64::from(frame.line) }];
        proto::Location { id, mapping_id, address: 0, line }
    }

    fn sample(&mut self, sample: &Sample, processes: &[Process]) -> proto::Sample {
        let value = METRICS
            .into_iter()
            .filter_map(|metric| metric.of(&sample.values))
            .flat_map(|Amount { bytes, count }| [signed(count), signed(bytes)])
            .collect();
        let pid = processes.get(sample.process.0 as usize).map_or(0, |process| process.pid);
        // `process` tells two incarnations of a pid apart (exec, pid reuse).
        let mut label = [("pid", pid), ("process", sample.process.0), ("thread", sample.thread)]
            .map(|(key, num)| proto::Label {
                key: self.string(key),
                num: i64::from(num),
                ..proto::Label::default()
            })
            .to_vec();
        let domain = self.string(domain_name(sample.domain));
        label.push(proto::Label { key: self.string("domain"), str: domain, ..proto::Label::default() });
        for (key, num, unit) in sample.estimated.as_deref().into_iter().flat_map(labels::of) {
            let (key, num_unit) = (self.string(key), self.string(unit));
            label.push(proto::Label { key, str: 0, num, num_unit });
        }
        let location_id = sample.stack.iter().map(|frame| u64::from(frame.0) + 1).collect();
        proto::Sample { location_id, value, label }
    }

    fn metadata(&mut self, profile: &Profile, recording: &Recording) -> Result<i64, EncodeError> {
        let recording = with_finite_numbers(recording.clone());
        let metadata = Metadata { recording, processes: profile.processes.clone() };
        let json = serde_json::to_string(&metadata).map_err(EncodeError::Metadata)?;
        Ok(self.string(&format!("{METADATA_PREFIX}{json}")))
    }
}

/// JSON has no NaN; a share of nothing (0/0) must not make the file unreadable.
fn with_finite_numbers(mut recording: Recording) -> Recording {
    if let Coverage::Measured { allocations, frees, uncertainty, .. } = recording.coverage
        && !(allocations.is_finite() && frees.is_finite() && uncertainty.is_finite())
    {
        recording.coverage = Coverage::Unmeasured { unmeasured: "nothing to measure against".to_owned() };
    }
    recording.cost.target_percent = recording.cost.target_percent.filter(|percent| percent.is_finite());
    for number in [&mut recording.seen_fraction, &mut recording.cost.tracer_cpu_percent] {
        *number = if number.is_finite() { *number } else { 0.0 };
    }
    recording
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
