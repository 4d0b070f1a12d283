//! Bytes that are no profile, or a damaged or malicious one: always an error with a reason, never a panic.

use std::io::{Read, Write, sink};

use alloctrace::{
    output::{
        aggregate::{By, aggregate},
        json,
        leaks::leaks,
        summary,
        table::{self, Layout},
    },
    profile::{
        Estimated, FOREIGN_MODE, FrameKind, Growth, Metric, Profile, ReadError, Unit,
        pprof::{decode, encode},
    },
};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use proptest::prelude::*;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::fixture;

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A profile as uncompressed protobuf.
fn plain(profile: &Profile) -> Vec<u8> {
    let mut data = Vec::new();
    GzDecoder::new(&*encode(profile).unwrap()).read_to_end(&mut data).unwrap();
    data
}

/// A field that holds bytes.
fn field(tag: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

/// A message of numbers.
fn numbers(fields: &[(u32, i64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(tag, value) in fields {
        encode_key(tag, WireType::Varint, &mut bytes);
        encode_varint(value.cast_unsigned(), &mut bytes);
    }
    bytes
}

/// A profile of another tool: sample types, strings and whatever `more` adds. Strings 1 to 4 are
/// `inuse_space`, `bytes`, `main.go` and `main`.
fn foreign(more: &[Vec<u8>]) -> Vec<u8> {
    let strings = ["", "inuse_space", "bytes", "main.go", "main"];
    let strings = strings.iter().flat_map(|string| field(6, string.as_bytes()));
    field(1, &numbers(&[(1, 1), (2, 2)])).into_iter().chain(strings).chain(more.concat()).collect()
}

#[track_caller]
fn error(bytes: &[u8]) -> String {
    decode(bytes).unwrap_err().to_string()
}

#[test]
fn nothing_at_all() {
    assert!(matches!(decode(b""), Err(ReadError::Empty)));
    assert!(matches!(decode(&gzip(b"")), Err(ReadError::NotMemory { .. })));
}

#[test]
fn every_truncation_is_an_error() {
    let file = encode(&fixture::example()).unwrap();
    for length in 2..file.len() {
        assert!(decode(&file[..length]).is_err(), "first {length} bytes");
    }
    assert!(matches!(decode(&file[..file.len() / 2]), Err(ReadError::Truncated)));
    let plain = plain(&fixture::example());
    for length in 0..plain.len() {
        // What is cut between two messages may still be a smaller profile.
        let _ = decode(&plain[..length]);
    }
}

#[test]
fn other_files() {
    assert!(error(b"#!/bin/sh\necho hello\n").contains("not a pprof profile"));
    assert!(error(&gzip(b"{\"schema\": 1}")).contains("pprof profile"));
    let mut flipped = encode(&fixture::example()).unwrap();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    assert!(error(&flipped).contains("damaged"), "{}", error(&flipped));
}

#[test]
fn a_decompression_bomb_is_refused() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..600 {
        encoder.write_all(&zeros).unwrap();
    }
    assert!(error(&encoder.finish().unwrap()).contains("more than 512 MiB once decompressed"));
}

#[test]
fn too_many_entries_are_refused() {
    let samples = field(2, b"").repeat((1 << 22) + 1);
    assert!(error(&samples).contains("more than 4194304 samples"));
    let strings = field(6, b"").repeat((1 << 22) + 1);
    assert!(error(&strings).contains("more than 4194304 strings"));
    let huge = field(2, &vec![0; 1 << 21]);
    assert!(error(&foreign(&[huge])).contains("bytes in one message"));
}

/// One long name, shared by very many frames, would become terabytes.
#[test]
fn shared_names_do_not_multiply() {
    let mut more = vec![field(6, &vec![b'x'; 1 << 20])];
    for id in 1..1000 {
        more.push(field(5, &numbers(&[(1, id), (2, 5), (5, id)])));
        more.push(field(4, &[numbers(&[(1, id)]), field(4, &numbers(&[(1, id)]))].concat()));
    }
    assert!(error(&foreign(&more)).contains("bytes of names"));
}

/// One location of many inlined functions, named by very many stack entries.
#[test]
fn inlined_frames_do_not_multiply() {
    let lines = field(4, &numbers(&[(1, 1)])).repeat(10_000);
    let location = field(4, &[numbers(&[(1, 1)]), lines].concat());
    let function = field(5, &numbers(&[(1, 1), (2, 4)]));
    let stack = field(1, &vec![1; 10_000]);
    let sample = field(2, &[stack, field(2, &[1])].concat());
    assert!(error(&foreign(&[function, location, sample])).contains("frames over all stacks"));
}

#[test]
fn indices_that_point_nowhere() {
    let sample = |location, values: &[u8]| field(2, &[field(1, &[location]), field(2, values)].concat());
    assert!(error(&foreign(&[sample(9, &[1])])).contains("location 9 does not exist"));
    assert!(error(&foreign(&[sample(9, &[1, 2])])).contains("2 values for 1 sample types"));
    let bad_function = field(4, &[numbers(&[(1, 1)]), field(4, &numbers(&[(1, 7)]))].concat());
    assert!(error(&foreign(&[bad_function])).contains("function 7 does not exist"));
    let bad_name = field(5, &numbers(&[(1, 1), (2, 77)]));
    let uses_it = field(4, &[numbers(&[(1, 1)]), field(4, &numbers(&[(1, 1)]))].concat());
    assert!(error(&foreign(&[bad_name, uses_it])).contains("string 77 does not exist"));
    let bad_comment = numbers(&[(13, -5)]);
    assert!(error(&foreign(&[bad_comment])).contains("string -5 does not exist"));
}

#[test]
fn values_that_cannot_be() {
    let sample = |value: i64| field(2, &numbers(&[(2, value)]));
    assert!(error(&foreign(&[sample(-1)])).contains("holds -1"));
    assert!(error(&foreign(&[sample(i64::MAX)])).contains("more than any memory"));
    let half = sample(1 << 54);
    assert!(error(&foreign(&[half.clone(), half.clone(), half])).contains("more than any memory"));
}

#[test]
fn profiles_of_something_else() {
    let types =
        [field(1, &numbers(&[(1, 1), (2, 2)])), field(6, b""), field(6, b"cpu"), field(6, b"nanoseconds")];
    assert!(error(&types.concat()).contains("holds no memory values but `cpu`"));
}

#[test]
fn metadata_that_is_damaged_or_newer() {
    let comment = |text: &str| [field(6, text.as_bytes()), numbers(&[(13, 5)])].concat();
    assert!(error(&foreign(&[comment("alloctrace-profile-v1 {")])).contains("metadata"));
    assert!(error(&foreign(&[comment("alloctrace-profile-v2 {}")])).contains("newer alloctrace"));
    assert!(decode(&foreign(&[comment("some other tool's comment")])).is_ok());
}

fn foreign_example() -> Profile {
    let go = field(5, &numbers(&[(1, 1), (2, 4), (4, 3), (5, 10)]));
    let line = field(4, &numbers(&[(1, 1), (2, 12)]));
    let symbolised = field(4, &[numbers(&[(1, 1)]), line].concat());
    let bare = field(4, &numbers(&[(1, 2), (3, 0xbeef)]));
    let sample = |stack: &[u8], value| field(2, &[field(1, stack), numbers(&[(2, value)])].concat());
    decode(&gzip(&foreign(&[go, symbolised, bare, sample(&[1, 2], 30), sample(&[], 4), sample(&[1, 2], 12)])))
        .unwrap()
}

#[test]
fn profiles_of_other_tools_open() {
    let profile = foreign_example();
    assert_eq!(profile.recording.mode, FOREIGN_MODE);
    assert_eq!(profile.default_metric(), Metric::Live);
    assert_eq!(profile.total(Metric::Live).bytes, 46);
    assert_eq!(profile.samples.len(), 2, "equal stacks are one sample");
    let frames: Vec<_> =
        profile.frames.iter().map(|frame| (frame.kind, &*frame.function, frame.line)).collect();
    assert_eq!(
        frames,
        [
            (FrameKind::Native, "main", 12),
            (FrameKind::Native, "0xbeef", 0),
            (FrameKind::Marker, "no stack recorded", 0)
        ]
    );
    // Written by us, it is one of ours.
    assert_eq!(decode(&encode(&profile).unwrap()).unwrap(), profile);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = decode(&gzip(&bytes));
        let _ = decode(&foreign(&[bytes]));
    }

    #[test]
    fn changed_bytes_never_panic(
        is_budget in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut data = plain(&if is_budget { fixture::budget() } else { fixture::example() });
        for (index, byte) in changes {
            let position = index.index(data.len());
            data[position] = byte;
        }
        if let Ok(profile) = decode(&data) {
            show_everything(&profile);
        }
    }
}

/// What opens can be shown.
fn show_everything(profile: &Profile) {
    let layout = Layout { top: 100, width: None };
    for by in By::ALL {
        for metric in [Metric::Peak, Metric::Live, Metric::Retained] {
            if let Ok(report) = aggregate(profile, by, metric, Unit::Bytes) {
                json::write(&report, None, &mut sink()).unwrap();
                table::write(&report, layout, &mut sink()).unwrap();
            }
        }
        if let Ok(leaks) = leaks(profile, by) {
            json::write_leaks(&leaks, None, &mut sink()).unwrap();
            table::write_leaks(&leaks, layout, &mut sink()).unwrap();
        }
    }
    summary::lines(profile);
}

/// Figures at the ends of what 64 bits hold: sums saturate, and what cannot be true is not believed.
#[test]
fn estimates_beyond_reason_are_no_panic() {
    let mut profile = fixture::budget();
    for (number, sample) in profile.samples.iter_mut().enumerate() {
        let sign = if number % 2 == 0 { i64::MIN } else { i64::MAX };
        let growth = Growth { bytes_per_second: sign, at_least: sign, likelihood_ppm: u32::MAX };
        let most = Some(u64::MAX);
        sample.estimated = Some(Box::new(Estimated {
            allocated_bytes_error: most,
            live_bytes_error: most,
            retained_bytes_per_second: most,
            retained_error: most,
            age_milliseconds: most,
            growth: Some(growth),
        }));
    }
    show_everything(&profile);
    let read = decode(&encode(&profile).unwrap()).unwrap();
    assert!(read.samples.iter().all(|sample| sample.estimated.as_deref() == Some(&Estimated::default())));
}

/// Samples of a file written before there were estimates have none, and nor has one whose labels another tool dropped.
#[test]
fn a_budget_recording_without_estimates_has_no_errors() {
    let mut profile = fixture::budget();
    profile.samples.iter_mut().for_each(|sample| sample.estimated = None);
    let read = decode(&encode(&profile).unwrap()).unwrap();
    assert_eq!(read, profile);
    let report = aggregate(&read, By::Line, Metric::Live, Unit::Bytes).unwrap();
    assert!(report.rows.iter().all(|row| row.bytes_error.is_none()));
}
