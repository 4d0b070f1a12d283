//! The samples of a pprof file: stacks, labels and values into [`Sample`]s, no two with the same key.
//!
//! It must not know how frames are decoded. Everything it reads is hostile (see `read.rs`).

use std::collections::HashMap;

use indexmap::{IndexMap, map::Entry};

use super::{
    Domain, Estimated, Frame, FrameId, FrameKind, Metric, Part, Process, ProcessIndex, Profile, Recording,
    Sample, Stack, Unit, Values, labels::Found, places::Places, pprof::domain_name, proto, read::ReadError,
    wire::Fields,
};

/// Most frames over all stacks.
const MAX_STACK_ENTRIES: usize = 1 << 26;
/// Largest sum of one value over all samples: 36 petabytes. Sums, differences and shares of such still fit 64 bits.
const MAX_TOTAL: u64 = 1 << 55;

/// What samples differ in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub process: ProcessIndex,
    pub thread: u32,
    pub domain: Domain,
    pub stack: Stack,
}

/// What is known of it.
struct Measured {
    values: Values,
    estimated: Option<Box<Estimated>>,
}

/// Collects samples; those with the same key become one.
pub(super) struct Samples<'a> {
    fields: &'a Fields<'a>,
    columns: Vec<Option<(Metric, Unit)>>,
    places: Places,
    processes: Vec<Process>,
    /// `None` for our own files, whose samples name their process by its index; else by pid.
    foreign: Option<HashMap<u32, ProcessIndex>>,
    stacks: IndexMap<Key, Measured>,
    totals: Vec<u64>,
    stack_entries: usize,
}

/// The labels of one sample that mean something to us.
#[derive(Default)]
struct Labels {
    pid: u32,
    process: u32,
    thread: u32,
    domain: Option<Domain>,
    estimates: Found,
}

impl<'a> Samples<'a> {
    /// `processes` is `None` for foreign files.
    pub fn new(
        fields: &'a Fields<'a>,
        columns: Vec<Option<(Metric, Unit)>>,
        places: Places,
        processes: Option<Vec<Process>>,
    ) -> Self {
        let foreign = processes.is_none().then(HashMap::new);
        let totals = vec![0; columns.len()];
        let (processes, stacks) = (processes.unwrap_or_default(), IndexMap::new());
        Self { fields, columns, places, processes, foreign, stacks, totals, stack_entries: 0 }
    }

    /// Adds one sample.
    pub fn add(&mut self, sample: &proto::Sample) -> Result<(), ReadError> {
        let values = self.values(&sample.value)?;
        let stack = self.stack(&sample.location_id)?;
        let labels = self.labels(&sample.label)?;
        let process = self.process(&labels)?;
        let domain = labels.domain.unwrap_or(Domain::Malloc);
        // Of another tool's files, whoever wrote such labels: we do not know what they mean there.
        let estimated = labels.estimates.estimated().filter(|_| self.foreign.is_none());
        let key = Key { process, thread: labels.thread, domain, stack };
        match self.stacks.entry(key) {
            Entry::Occupied(mut entry) => entry.get_mut().add(&Measured { values, estimated }),
            Entry::Vacant(entry) => {
                entry.insert(Measured { values, estimated });
            }
        }
        Ok(())
    }

    /// Everything collected.
    pub fn into_profile(self, recording: Recording) -> Profile {
        let sample = |(key, Measured { values, estimated })| {
            let Key { process, thread, domain, stack } = key;
            Sample { process, thread, domain, stack, values, estimated }
        };
        let samples = self.stacks.into_iter().map(sample).collect();
        Profile { recording, processes: self.processes, frames: self.places.frames, samples }
    }

    fn values(&mut self, numbers: &[i64]) -> Result<Values, ReadError> {
        // Sample types beyond those that were looked at are checked for nothing and shown nowhere.
        let expected = self.fields.sample_types.len();
        if numbers.len() != expected {
            return Err(ReadError::ValueCount { found: numbers.len(), expected });
        }
        let mut values = Values::default();
        for ((column, &number), total) in self.columns.iter().zip(numbers).zip(&mut self.totals) {
            let Some((metric, unit)) = *column else { continue };
            let number = u64::try_from(number).map_err(|_| ReadError::Negative { value: number })?;
            *total = total.saturating_add(number);
            if *total > MAX_TOTAL {
                return Err(ReadError::Overflow);
            }
            let Some(amount) = metric.of_mut(&mut values) else { continue };
            match unit {
                Unit::Bytes => amount.bytes = number,
                Unit::Count => amount.count = number,
            }
        }
        Ok(values)
    }

    fn stack(&mut self, locations: &[u64]) -> Result<Stack, ReadError> {
        let mut stack = Vec::with_capacity(locations.len());
        for &id in locations {
            let frames = self.places.expand(id)?;
            self.stack_entries += frames.len();
            if self.stack_entries > MAX_STACK_ENTRIES {
                return Err(ReadError::TooMany { what: "frames over all stacks", limit: MAX_STACK_ENTRIES });
            }
            stack.extend_from_slice(frames);
        }
        if stack.is_empty() {
            stack.push(self.no_frame());
        }
        Ok(stack.into_iter().collect())
    }

    /// A stack is never empty; this stands in one that was.
    fn no_frame(&mut self) -> FrameId {
        let function = "no stack recorded".to_owned();
        let frame = Frame { kind: FrameKind::Marker, function, file: None, line: 0, first_line: 0 };
        FrameId(self.places.frames.insert_full(frame).0 as u32)
    }

    fn labels(&self, labels: &[proto::Label]) -> Result<Labels, ReadError> {
        let mut found = Labels::default();
        for label in labels {
            let number = u32::try_from(label.num).unwrap_or(0);
            match &*self.fields.string(label.key)? {
                "pid" => found.pid = number,
                "process" => found.process = number,
                "thread" => found.thread = number,
                "domain" => found.domain = self.domain(label.str)?,
                key => found.estimates.take(key, label.num),
            }
        }
        Ok(found)
    }

    fn domain(&self, index: i64) -> Result<Option<Domain>, ReadError> {
        let name = self.fields.string(index)?;
        Ok([Domain::Pymalloc, Domain::Malloc, Domain::Resident]
            .into_iter()
            .find(|domain| domain_name(*domain) == name))
    }

    fn process(&mut self, labels: &Labels) -> Result<ProcessIndex, ReadError> {
        let Some(known) = &mut self.foreign else {
            let exists = (labels.process as usize) < self.processes.len();
            let dangling = ReadError::Dangling { what: "process", index: i64::from(labels.process) };
            return exists.then_some(ProcessIndex(labels.process)).ok_or(dangling);
        };
        Ok(*known.entry(labels.pid).or_insert_with(|| {
            let command = "unknown command".to_owned();
            let interpreter = "unknown".to_owned();
            self.processes.push(Process { pid: labels.pid, command, interpreter, ..Process::default() });
            ProcessIndex(self.processes.len() as u32 - 1)
        }))
    }
}

impl Measured {
    fn add(&mut self, other: &Self) {
        self.estimated = Estimated::join(self.part(), other.part());
        self.values = self.values.plus(other.values);
    }

    fn part(&self) -> Part<'_> {
        Part { values: &self.values, estimated: self.estimated.as_deref() }
    }
}
