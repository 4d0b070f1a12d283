//! A profile as a Go program would give its heap: four values, in Go's order, for whoever scrapes `/debug/pprof`.
//!
//! With a base, values are what has changed since: what lives may then be below zero, as Go's own differences may. Threads and allocators
//! are summed up: scrapers keep every label. Pure; it must not know requests.

use std::io::{self, Write as _};

use flate2::{Compression, write::GzEncoder};
use indexmap::{IndexMap, IndexSet};
use prost::Message as _;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::output::summary;
use crate::profile::{Amount, Frame, FrameId, Metric, Profile, Sample, Stack, proto};

/// Go's sample types, in Go's order.
const TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];
/// The one mapping: all frames are in it, and no tool looks for symbols of it.
const MAPPING_ID: u64 = 1;

/// Which values tools show first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// What lives: `/debug/pprof/heap`.
    InUse,
    /// What was allocated: `/debug/pprof/allocs`.
    Allocated,
}

/// What is encoded.
#[derive(Debug, Clone, Copy)]
pub struct Heap<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// An earlier one of the same recording, to be taken off.
    pub base: Option<&'a Profile>,
    /// Which values tools show first.
    pub first: First,
    /// When it was taken, in nanoseconds since the epoch.
    pub time_nanoseconds: u64,
    /// Of a difference: over how long. Go says 0 of what is no difference.
    pub duration_nanoseconds: u64,
}

/// The bytes of a `.pb.gz` file.
///
/// # Errors
/// If compression fails.
pub fn encode(heap: &Heap<'_>) -> Result<Vec<u8>, io::Error> {
    let mut encoder = Encoder::new();
    encoder.add(heap.profile, 1);
    if let Some(base) = heap.base {
        encoder.add(base, -1);
    }
    let message = encoder.message(heap);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&message.encode_to_vec())?;
    gzip.finish()
}

struct Encoder<'a> {
    strings: IndexSet<String, FxBuildHasher>,
    frames: IndexSet<&'a Frame, FxBuildHasher>,
    /// By process id and stack.
    rows: IndexMap<(u32, Stack), [i64; 4], FxBuildHasher>,
}

impl<'a> Encoder<'a> {
    fn new() -> Self {
        // The format demands that string 0 is the empty one.
        let strings = std::iter::once(String::new()).collect();
        Self { strings, frames: IndexSet::default(), rows: IndexMap::default() }
    }

    fn add(&mut self, profile: &'a Profile, sign: i64) {
        let places: Vec<FrameId> = profile
            .frames
            .iter()
            .map(|frame| FrameId(u32::try_from(self.frames.insert_full(frame).0).unwrap_or(u32::MAX)))
            .collect();
        for sample in &profile.samples {
            let stack: Stack =
                sample.stack.iter().filter_map(|id| places.get(id.0 as usize)).copied().collect();
            let pid = profile.processes.get(sample.process.0 as usize).map_or(0, |process| process.pid);
            let row = self.rows.entry((pid, stack)).or_default();
            for (sum, value) in row.iter_mut().zip(values(sample)) {
                *sum = sum.saturating_add(value.saturating_mul(sign));
            }
        }
    }

    fn message(mut self, heap: &Heap<'_>) -> proto::Profile {
        let sample_type = TYPES.map(|(name, unit)| self.value_type(name, unit)).to_vec();
        let (mut function, mut functions) = (Vec::new(), FxHashMap::default());
        let frames = std::mem::take(&mut self.frames);
        let location = (1..)
            .zip(&frames)
            .map(|(id, frame)| self.location(id, frame, &mut functions, &mut function))
            .collect();
        let rows = std::mem::take(&mut self.rows);
        let sample = rows.into_iter().filter(|(_, values)| *values != [0; 4]);
        let sample = sample.map(|((pid, stack), values)| self.sample(pid, &stack, values)).collect();
        let first = match heap.first {
            First::InUse => "inuse_space",
            First::Allocated => "alloc_space",
        };
        proto::Profile {
            sample_type,
            sample,
            mapping: vec![self.mapping()],
            location,
            function,
            time_nanos: signed(heap.time_nanoseconds),
            duration_nanos: signed(heap.duration_nanoseconds),
            period_type: Some(self.value_type("space", "bytes")),
            period: 1,
            comment: vec![self.string(&comment(heap.profile))],
            default_sample_type: self.string(first),
            // Last: all others have named theirs.
            string_table: self.strings.into_iter().collect(),
        }
    }

    fn string(&mut self, text: &str) -> i64 {
        let place = match self.strings.get_index_of(text) {
            Some(place) => place,
            None => self.strings.insert_full(text.to_owned()).0,
        };
        signed(place as u64)
    }

    fn value_type(&mut self, name: &str, unit: &str) -> proto::ValueType {
        proto::ValueType { r#type: self.string(name), unit: self.string(unit) }
    }

    fn mapping(&mut self) -> proto::Mapping {
        proto::Mapping {
            id: MAPPING_ID,
            filename: self.string("python"),
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
        }
    }

    fn location(
        &mut self,
        id: u64,
        frame: &Frame,
        functions: &mut FxHashMap<(i64, i64, u32), u64>,
        all: &mut Vec<proto::Function>,
    ) -> proto::Location {
        let name = self.string(&frame.function);
        let filename = frame.file.as_deref().map_or(0, |file| self.string(file));
        let function_id = *functions.entry((name, filename, frame.first_line)).or_insert_with(|| {
            let id = all.len() as u64 + 1;
            let start_line = i64::from(frame.first_line);
            // No system name, or pprof takes `<module>` for a C++ template.
            all.push(proto::Function { id, name, system_name: 0, filename, start_line });
            id
        });
        let line = vec![proto::Line { function_id, line: i64::from(frame.line) }];
        proto::Location { id, mapping_id: MAPPING_ID, address: 0, line }
    }

    fn sample(&mut self, pid: u32, stack: &Stack, values: [i64; 4]) -> proto::Sample {
        let label = proto::Label { key: self.string("pid"), num: i64::from(pid), ..proto::Label::default() };
        proto::Sample {
            location_id: stack.iter().map(|frame| u64::from(frame.0) + 1).collect(),
            value: values.to_vec(),
            label: vec![label],
        }
    }
}

fn values(sample: &Sample) -> [i64; 4] {
    let [allocated, live] = [Metric::Allocated, Metric::Live].map(|metric| sample.amount(metric));
    let both = |Amount { bytes, count }: Amount| (signed(count), signed(bytes));
    let ((alloc_objects, alloc_space), (inuse_objects, inuse_space)) = (both(allocated), both(live));
    [alloc_objects, alloc_space, inuse_objects, inuse_space]
}

/// How far the values can be trusted, for `go tool pprof -comments`.
fn comment(profile: &Profile) -> String {
    let live = if profile.knows(Metric::Live) { "" } else { "; inuse values are not known, and are not 0" };
    format!("alloctrace: {}{live}", summary::trust(profile))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
