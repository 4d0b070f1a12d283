//! Names that are made to break a format break none.

use std::io::Write;

use alloctrace::{
    output::{
        OutputError,
        aggregate::{By, aggregate},
        csv, flamegraph, folded, json, speedscope,
        table::{self, Layout},
        text::is_invisible,
    },
    profile::{Metric, Unit},
};
use quick_xml::{Reader, events::Event};

use crate::fixture;

fn text_of(produce: impl FnOnce(&mut dyn Write) -> Result<(), OutputError>) -> String {
    let mut bytes = Vec::new();
    produce(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// No character that a terminal obeys, or that hides or reorders text.
#[track_caller]
fn assert_harmless(text: &str) {
    let found = text.chars().find(|character| *character != '\n' && is_invisible(*character));
    assert_eq!(found, None, "in {text}");
}

#[test]
fn folded_lines_split_into_the_frames_they_were_made_of() {
    let profile = fixture::hostile();
    let text = text_of(|writer| folded::write(&profile, Metric::Peak, Unit::Bytes, writer));
    assert_harmless(&text);
    let mut total = 0;
    for line in text.lines() {
        let (stack, value) = line.rsplit_once(' ').unwrap();
        total += value.parse::<u64>().unwrap();
        assert!((2..=3).contains(&stack.split(';').count()), "{line}");
        assert!(stack.split(';').all(|frame| !frame.is_empty() && frame == frame.trim()), "{line}");
        assert!(!line.starts_with('#'), "{line}");
        let last = stack.rsplit(' ').next().unwrap();
        assert!(last.parse::<f64>().is_err(), "would be read as two values: {line}");
    }
    assert_eq!(total, profile.total(Metric::Peak).bytes);
}

#[test]
fn flame_graphs_are_well_formed_and_hold_every_frame() {
    let profile = fixture::hostile();
    for unit in Unit::ALL {
        let options = flamegraph::Options { metric: Metric::Peak, unit, inverted: false };
        let svg = text_of(|writer| flamegraph::write(&profile, options, writer));
        let titles = titles(&svg);
        assert!(titles.iter().all(|title| title.ends_with("%)")), "{titles:?}");
        // Root, two processes, and each name as Python frame twice, native frame and marker.
        assert_eq!(titles.len(), 3 + 4 * fixture::hostile_names().len() - 1, "{titles:?}");
        let whole = format!(
            "all ({}, 100%)",
            match unit {
                Unit::Bytes => "1.00 MiB",
                Unit::Count => "520 blocks",
            }
        );
        assert!(titles.contains(&whole), "{titles:?}");
    }
}

#[test]
fn differential_flame_graphs_are_well_formed() {
    let (profile, base) = (fixture::hostile(), fixture::example());
    let options = flamegraph::Options { metric: Metric::Peak, unit: Unit::Bytes, inverted: true };
    let svg = text_of(|writer| flamegraph::write_difference(&profile, &base, options, writer));
    assert!(!titles(&svg).is_empty());
}

/// The hover texts of a flame graph; panics unless it is well-formed and harmless.
#[track_caller]
fn titles(svg: &str) -> Vec<String> {
    assert_harmless(svg);
    let mut reader = Reader::from_str(svg);
    let (mut titles, mut inside, mut scripts) = (Vec::new(), false, 0);
    loop {
        match reader.read_event().unwrap() {
            Event::Eof => break,
            Event::Start(start) => {
                inside = start.name().as_ref() == b"title";
                scripts += usize::from(start.name().as_ref() == b"script");
                if inside {
                    titles.push(String::new());
                }
            }
            Event::End(_) => inside = false,
            Event::Text(text) if inside => titles.last_mut().unwrap().push_str(&text.decode().unwrap()),
            _ => {}
        }
    }
    assert_eq!(scripts, 1, "only the viewer's own");
    titles
}

#[test]
fn json_keeps_names_and_hides_nothing_from_terminals() {
    let profile = fixture::hostile();
    for by in By::ALL.into_iter().filter(|by| *by != By::Type) {
        let report = aggregate(&profile, by, Metric::Peak, Unit::Bytes).unwrap();
        let text = text_of(|writer| json::write(&report, None, writer));
        assert_harmless(&text);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rows = document["rows"].as_array().unwrap();
        let sum: u64 = rows.iter().map(|row| row["bytes"].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), document["total"]["bytes"].as_u64(), "{by}");
        assert_eq!(rows.len(), report.rows.len());
        if by == By::Function {
            for name in fixture::hostile_names() {
                assert!(rows.iter().any(|row| row["function"] == *name), "{name}");
            }
        }
    }
}

#[test]
fn csv_rows_have_the_header_s_columns() {
    let profile = fixture::hostile();
    for by in By::ALL.into_iter().filter(|by| *by != By::Type) {
        let report = aggregate(&profile, by, Metric::Peak, Unit::Bytes).unwrap();
        let text = text_of(|writer| csv::write(&report, None, writer));
        assert_harmless(&text);
        let columns = fields(text.lines().next().unwrap());
        assert_eq!(text.lines().count(), report.rows.len() + 1);
        assert!(text.lines().all(|line| fields(line) == columns), "{by}: {text}");
    }
}

/// Number of fields of a CSV line.
fn fields(line: &str) -> usize {
    let mut quoted = false;
    let separators = line.chars().filter(|character| {
        quoted ^= *character == '"';
        *character == ',' && !quoted
    });
    separators.count() + 1
}

#[test]
fn tables_fit_their_width() {
    let profile = fixture::hostile();
    for by in By::ALL.into_iter().filter(|by| *by != By::Type) {
        let report = aggregate(&profile, by, Metric::Peak, Unit::Bytes).unwrap();
        let layout = Layout { top: 1000, width: Some(100) };
        let text = text_of(|writer| table::write(&report, layout, writer));
        assert_harmless(&text);
        let too_wide = text.lines().skip(4).find(|line| line.chars().count() > 100);
        assert_eq!(too_wide, None);
    }
}

/// What the schema demands: types, one weight a sample, frames that exist, and an end that is the sum.
#[test]
fn speedscope_files_are_valid() {
    for profile in [fixture::hostile(), fixture::example()] {
        let text = text_of(|writer| speedscope::write(&profile, Metric::Peak, Unit::Bytes, writer));
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(file["$schema"], "https://www.speedscope.app/file-format-schema.json");
        assert_eq!(file["activeProfileIndex"], 1);
        let frames = file["shared"]["frames"].as_array().unwrap();
        assert!(frames.iter().all(|frame| frame["name"].is_string()));
        assert!(frames.iter().all(|frame| frame.get("line").is_none_or(serde_json::Value::is_u64)));
        let profiles = file["profiles"].as_array().unwrap();
        let known: Vec<Metric> = Metric::ALL.into_iter().filter(|metric| profile.knows(*metric)).collect();
        assert_eq!(profiles.len(), known.len());
        for (metric, one) in known.into_iter().zip(profiles) {
            assert_eq!((&one["type"], &one["unit"]), (&"sampled".into(), &"bytes".into()));
            assert_eq!((&one["name"], &one["startValue"]), (&metric.name().into(), &0.into()));
            let (samples, weights) = (one["samples"].as_array().unwrap(), one["weights"].as_array().unwrap());
            assert_eq!(samples.len(), weights.len());
            let sum: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
            assert_eq!((one["endValue"].as_u64(), sum), (Some(sum), profile.total(metric).bytes));
            let indices = samples.iter().flat_map(|stack| stack.as_array().unwrap());
            assert!(indices.into_iter().all(|index| index.as_u64().unwrap() < frames.len() as u64));
        }
    }
}
