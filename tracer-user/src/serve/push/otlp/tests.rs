//! What is sent against what OpenTelemetry publishes: decoded by its own types, followed through all tables, and compared with the profile.

use std::collections::{BTreeMap, HashSet};

use opentelemetry_proto::tonic::{
    collector::profiles::v1development::ExportProfilesServiceRequest as Published,
    common::v1::any_value::Value as PublishedValue,
    profiles::v1development::ProfilesDictionary as PublishedDictionary,
};
use proptest::prelude::*;

use super::*;
use crate::{
    profile::Frame,
    serve::{history::Span, push::tests::profiles},
};

fn minute(kind: Kind, profile: Profile) -> Minute {
    let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let span = Span { from, to: from + Duration::from_secs(60) };
    Minute { kind, span, profile: std::sync::Arc::new(profile), id: u128::MAX }
}

fn publish(minute: &Minute) -> Option<Published> {
    let labels = vec![Labels::new(); minute.profile.processes.len()];
    request(minute, &labels).map(|bytes| Published::decode(&bytes[..]).unwrap())
}

/// As an index of ours; below zero it is none of anybody's.
fn at(index: i32) -> usize {
    usize::try_from(index).unwrap()
}

/// Every entry is there once, the first is the empty one, and all that points to another table points into it.
fn check_tables(tables: &PublishedDictionary) {
    let within = |index: i32, length: usize| assert!(at(index) < length, "{index} of {length}");
    let strings = tables.string_table.len();
    assert_eq!(tables.string_table[0], "");
    assert_eq!(tables.mapping_table, [Default::default()]);
    assert_eq!(tables.link_table, [Default::default()]);
    assert_eq!(tables.function_table[0], Default::default());
    assert_eq!(tables.location_table[0], Default::default());
    assert_eq!(tables.stack_table[0], Default::default());
    assert_eq!(tables.attribute_table[0], Default::default());
    for function in &tables.function_table {
        within(function.name_strindex, strings);
        within(function.filename_strindex, strings);
        assert_eq!(function.system_name_strindex, 0);
    }
    for location in &tables.location_table {
        assert_eq!((location.mapping_index, location.address), (0, 0));
        location.lines.iter().for_each(|line| within(line.function_index, tables.function_table.len()));
        location.attribute_indices.iter().for_each(|index| within(*index, tables.attribute_table.len()));
    }
    for stack in &tables.stack_table {
        stack.location_indices.iter().for_each(|index| within(*index, tables.location_table.len()));
    }
    tables.attribute_table.iter().for_each(|attribute| within(attribute.key_strindex, strings));
    assert_eq!(tables.string_table.iter().collect::<HashSet<_>>().len(), strings, "each string once");
    assert_eq!(tables.stack_table.iter().collect::<HashSet<_>>().len(), tables.stack_table.len());
    assert_eq!(tables.function_table.iter().collect::<HashSet<_>>().len(), tables.function_table.len());
}

/// (pid, type, thread, allocator, frames) to value, as a receiver understands it.
type Told = BTreeMap<(i64, String, i64, String, Vec<(String, String, i64, i64, String)>), i64>;

fn text(value: &Option<opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(PublishedValue::StringValue(text)) => text.clone(),
        Some(PublishedValue::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn understand(published: &Published) -> Told {
    let tables = published.dictionary.as_ref().unwrap();
    check_tables(tables);
    let string = |index: i32| tables.string_table[at(index)].clone();
    let attribute = |indices: &[i32], key: &str| {
        let mut found = indices.iter().map(|index| &tables.attribute_table[at(*index)]);
        found.find(|attribute| string(attribute.key_strindex) == key).map(|attribute| text(&attribute.value))
    };
    let frame = |index: &i32| {
        let location = &tables.location_table[at(*index)];
        let line = location.lines[0];
        let function = tables.function_table[at(line.function_index)];
        let kind = attribute(&location.attribute_indices, "profile.frame.type").unwrap_or_default();
        (
            string(function.name_strindex),
            string(function.filename_strindex),
            function.start_line,
            line.line,
            kind,
        )
    };
    let mut told = Told::new();
    let mut ids = HashSet::new();
    for resource in &published.resource_profiles {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let pid = attributes.iter().find(|attribute| attribute.key == "process.pid").unwrap();
        let pid: i64 = text(&pid.value).parse().unwrap();
        for profile in &resource.scope_profiles[0].profiles {
            let sample_type = profile.sample_type.unwrap();
            let unit = string(sample_type.unit_strindex);
            assert_eq!(unit == "bytes", string(sample_type.type_strindex).ends_with("space"));
            assert_eq!(
                (profile.time_unix_nano, profile.duration_nano),
                (1_700_000_000_000_000_000, 60_000_000_000)
            );
            assert_eq!(profile.profile_id.len(), 16);
            assert!(
                profile.profile_id.iter().any(|byte| *byte != 0) && ids.insert(profile.profile_id.clone())
            );
            for sample in &profile.samples {
                let stack = &tables.stack_table[at(sample.stack_index)];
                let frames = stack.location_indices.iter().map(frame).collect();
                let thread = attribute(&sample.attribute_indices, "thread.id").unwrap().parse().unwrap();
                let allocator = attribute(&sample.attribute_indices, "alloctrace.allocator").unwrap();
                assert_eq!(sample.values.len(), 1);
                *told
                    .entry((pid, string(sample_type.type_strindex), thread, allocator, frames))
                    .or_default() += sample.values[0];
            }
        }
    }
    told
}

/// The same, straight from the profile.
fn expect(profile: &Profile) -> Told {
    let frame = |frame: &Frame| {
        let kind = match frame.kind {
            crate::profile::FrameKind::Python => "cpython",
            crate::profile::FrameKind::Native => "native",
            crate::profile::FrameKind::Marker => "",
        };
        let file = frame.file.clone().unwrap_or_default();
        (frame.function.clone(), file, i64::from(frame.first_line), i64::from(frame.line), kind.to_owned())
    };
    let mut told = Told::new();
    for sample in &profile.samples {
        let pid = i64::from(profile.processes[sample.process.0 as usize].pid);
        let frames: Vec<_> = sample.stack.iter().map(|id| frame(&profile.frames[id.0 as usize])).collect();
        let allocator = format!("{:?}", sample.domain).to_lowercase();
        for (name, metric, value) in [
            ("alloc_objects", Metric::Allocated, sample.values.allocated.count),
            ("alloc_space", Metric::Allocated, sample.values.allocated.bytes),
            ("inuse_objects", Metric::Live, sample.values.live.count),
            ("inuse_space", Metric::Live, sample.values.live.bytes),
        ] {
            if value > 0 && profile.knows(metric) {
                let key = (pid, name.to_owned(), i64::from(sample.thread), allocator.clone(), frames.clone());
                *told.entry(key).or_default() += value.cast_signed();
            }
        }
    }
    told
}

proptest! {
    #[test]
    fn a_receiver_understands_what_is_in_the_profile(profile in profiles::profile()) {
        let minute = minute(Kind::Allocations, profile);
        let expected = expect(&minute.profile);
        match publish(&minute) {
            Some(published) => prop_assert_eq!(understand(&published), expected),
            None => prop_assert!(expected.is_empty()),
        }
    }
}

#[test]
fn what_points_nowhere_is_no_panic() {
    let mut profile = profiles::plain(1, 1000);
    profile.samples[0].stack = [FrameId(77), FrameId(1)].into_iter().collect();
    let stray = Sample { process: crate::profile::ProcessIndex(9), ..profile.samples[0].clone() };
    profile.samples.push(stray);
    let published = publish(&minute(Kind::Allocations, profile)).unwrap();
    let tables = published.dictionary.unwrap();
    check_tables(&tables);
    assert_eq!(tables.stack_table[1].location_indices, [0, 1], "the depth is kept");
    assert_eq!(published.resource_profiles.len(), 1);
}

#[test]
fn values_that_do_not_fit_are_the_largest_that_do() {
    let published = publish(&minute(Kind::Resident, profiles::plain(1, u64::MAX))).unwrap();
    let profiles = &published.resource_profiles[0].scope_profiles[0].profiles;
    assert_eq!(profiles[2].samples[0].values, [i64::MAX]);
}

#[test]
fn what_was_given_counts_more_than_what_is_known() {
    let minute = minute(Kind::Allocations, profiles::plain(1, 1000));
    let labels = Labels::from([("process.pid".to_owned(), "mine".to_owned())]);
    let published = Published::decode(&request(&minute, &[labels]).unwrap()[..]).unwrap();
    let attributes = &published.resource_profiles[0].resource.as_ref().unwrap().attributes;
    let found: Vec<String> = attributes
        .iter()
        .filter(|attribute| attribute.key == "process.pid")
        .map(|attribute| text(&attribute.value))
        .collect();
    assert_eq!(found, ["mine"]);
}

#[test]
fn an_answer_that_is_none_says_nothing() {
    assert_eq!(rejected(b""), None);
    assert_eq!(rejected(b"<html>not protobuf</html>"), None);
}
