//! A profile in OpenTelemetry's protocol for profiles, as it is posted to `/v1development/profiles`.
//!
//! One resource for each process, and in it one profile for each kind of value, as the protocol has one kind a profile. What is not known is left out: a zero would be a wrong
//! figure. Pure: values in, a message out. It must not know HTTP, nor who asks.

mod dictionary;
mod proto;

use std::time::{Duration, SystemTime};

use prost::Message;

use self::{
    dictionary::Dictionary,
    proto::{
        AnyValue, ExportProfilesServiceRequest, ExportProfilesServiceResponse, InstrumentationScope,
        KeyValue, Profile as ProfileMessage, Resource, ResourceProfiles, Sample as SampleMessage,
        ScopeProfiles, Value, ValueType,
    },
};
use super::{labels::Labels, minute::Minute};
use crate::{
    profile::{Domain, FrameId, Metric, Profile, Sample, Unit},
    serve::state::Kind,
};

/// Where it is posted to, after the address of the receiver.
pub const PATH: &str = "/v1development/profiles";
/// Of what is posted.
pub const CONTENT_TYPE: &str = "application/x-protobuf";
/// Kinds of values, in the order in which they are sent; what viewers show first comes first.
const TYPES: [(Metric, Unit); 4] = [
    (Metric::Live, Unit::Bytes),
    (Metric::Live, Unit::Count),
    (Metric::Allocated, Unit::Bytes),
    (Metric::Allocated, Unit::Count),
];

/// What a receiver did not take of a request that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Profiles.
    pub profiles: u64,
    /// Why, in its words.
    pub why: String,
}

/// The request that tells of a minute; `None`: there is nothing to tell. `labels` are those of its processes, in their order.
pub fn request(minute: &Minute, labels: &[Labels]) -> Option<Vec<u8>> {
    let message = message(minute, labels);
    (!message.resource_profiles.is_empty()).then(|| message.encode_to_vec())
}

/// What an answer says was not taken; `None`: all was, or it says nothing that can be understood.
pub fn rejected(answer: &[u8]) -> Option<Rejected> {
    let answer = ExportProfilesServiceResponse::decode(answer).ok()?.partial_success?;
    let profiles = u64::try_from(answer.rejected_profiles).ok().filter(|number| *number > 0)?;
    Some(Rejected { profiles, why: answer.error_message })
}

fn message(minute: &Minute, labels: &[Labels]) -> ExportProfilesServiceRequest {
    let locations = vec![None; minute.profile.frames.len()];
    let mut builder = Builder { minute, dictionary: Dictionary::default(), locations, next_id: minute.id };
    let by_process = by_process(&minute.profile);
    let mut resource_profiles = Vec::new();
    for (index, samples) in by_process.into_iter().enumerate() {
        let profiles = builder.profiles(&samples);
        if !profiles.is_empty() {
            let labels = labels.get(index).cloned().unwrap_or_default();
            resource_profiles.push(builder.resource(index, &labels, profiles));
        }
    }
    ExportProfilesServiceRequest { resource_profiles, dictionary: Some(builder.dictionary.into_message()) }
}

/// The samples of each process; those that point to none are in no list.
fn by_process(profile: &Profile) -> Vec<Vec<&Sample>> {
    let mut lists = vec![Vec::new(); profile.processes.len()];
    for sample in &profile.samples {
        if let Some(list) = lists.get_mut(sample.process.0 as usize) {
            list.push(sample);
        }
    }
    lists
}

struct Builder<'a> {
    minute: &'a Minute,
    dictionary: Dictionary,
    /// By frame, once it has been asked for: each is in many stacks.
    locations: Vec<Option<i32>>,
    /// Ids of profiles: the same for the same minute, so that a receiver knows one that it has already.
    next_id: u128,
}

impl Builder<'_> {
    /// One for each kind of value that is known and of which there is any.
    fn profiles(&mut self, samples: &[&Sample]) -> Vec<ProfileMessage> {
        let is_known = |(metric, _): &(Metric, Unit)| self.minute.profile.knows(*metric);
        let types: Vec<(Metric, Unit)> = TYPES.into_iter().filter(is_known).collect();
        let mut columns = vec![Vec::new(); types.len()];
        for sample in samples {
            let values = types.iter().map(|(metric, unit)| unit.of(sample.amount(*metric)));
            let values: Vec<(usize, u64)> = values.enumerate().filter(|(_, value)| *value > 0).collect();
            if values.is_empty() {
                continue;
            }
            let message = self.sample(sample);
            for (column, value) in values {
                let values = vec![i64::try_from(value).unwrap_or(i64::MAX)];
                columns[column].push(SampleMessage { values, ..message.clone() });
            }
        }
        let filled = types.into_iter().zip(columns).filter(|(_, samples)| !samples.is_empty());
        filled.map(|((metric, unit), samples)| self.profile(metric, unit, samples)).collect()
    }

    fn profile(&mut self, metric: Metric, unit: Unit, samples: Vec<SampleMessage>) -> ProfileMessage {
        let (name, unit_name) = (type_name(self.minute.kind, metric, unit), unit.name());
        let span = self.minute.span;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        ProfileMessage {
            sample_type: Some(self.value_type(&name, unit_name)),
            samples,
            time_unix_nano: nanoseconds(span.from.duration_since(SystemTime::UNIX_EPOCH).ok()),
            duration_nano: nanoseconds(span.to.duration_since(span.from).ok()),
            period_type: Some(self.value_type("space", "bytes")),
            period: 1,
            profile_id: self.next_id.to_be_bytes().to_vec(),
        }
    }

    /// A sample without its value.
    fn sample(&mut self, sample: &Sample) -> SampleMessage {
        let locations = sample.stack.iter().map(|frame| self.location(frame)).collect();
        let thread = Value::Number(i64::from(sample.thread));
        let domain = Value::Text(domain_name(sample.domain).to_owned());
        SampleMessage {
            stack_index: self.dictionary.stack(locations),
            attribute_indices: vec![
                self.dictionary.attribute("thread.id", thread),
                self.dictionary.attribute("alloctrace.allocator", domain),
            ],
            values: Vec::new(),
        }
    }

    /// A frame that is not there has no name; the index of "none" keeps the depth.
    fn location(&mut self, frame: FrameId) -> i32 {
        let place = frame.0 as usize;
        let Some(known) = self.locations.get_mut(place) else { return 0 };
        if let Some(index) = *known {
            return index;
        }
        let frame = self.minute.profile.frames.get_index(place);
        let index = frame.map_or(0, |frame| self.dictionary.location(frame));
        *known = Some(index);
        index
    }

    fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType { type_strindex: self.dictionary.string(name), unit_strindex: self.dictionary.string(unit) }
    }

    fn resource(&self, index: usize, labels: &Labels, profiles: Vec<ProfileMessage>) -> ResourceProfiles {
        let text = |key: &str, text: &str| attribute(key, Value::Text(text.to_owned()));
        let mut attributes: Vec<KeyValue> = Vec::new();
        if let Some(process) = self.minute.profile.processes.get(index) {
            attributes.push(attribute("process.pid", Value::Number(i64::from(process.pid))));
            attributes.push(text("process.runtime.name", "cpython"));
            attributes.push(text("process.runtime.version", &process.interpreter));
        }
        // A key may be there once only; what was given counts more.
        attributes.retain(|attribute| !labels.contains_key(&attribute.key));
        attributes.extend(labels.iter().map(|(key, value)| text(key, value)));
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        ResourceProfiles {
            resource: Some(Resource { attributes }),
            scope_profiles: vec![ScopeProfiles { scope: Some(scope), profiles }],
        }
    }
}

/// As pprof's heap profiles are called, since that is what receivers know; resident memory by names of its own, or sums would count it twice.
fn type_name(kind: Kind, metric: Metric, unit: Unit) -> String {
    let prefix = match kind {
        Kind::Allocations => "",
        Kind::Resident => "resident_",
    };
    let stem = if metric == Metric::Live { "inuse" } else { "alloc" };
    let ending = if unit == Unit::Bytes { "space" } else { "objects" };
    format!("{prefix}{stem}_{ending}")
}

fn domain_name(domain: Domain) -> &'static str {
    match domain {
        Domain::Pymalloc => "pymalloc",
        Domain::Malloc => "malloc",
        Domain::Resident => "resident",
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: AnyValue::of(value) }
}

/// 0 where a clock went backwards, or before 1970.
fn nanoseconds(time: Option<Duration>) -> u64 {
    u64::try_from(time.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
