//! The kernel half's walk of recorded memory of every supported interpreter, with the layouts that are in use.
//!
//! `tests/interpreters/walk.rs` records; a version without a recording is a failure.
#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers of tests")]

#[path = "interpreters/image.rs"]
mod image;

use std::fs;

use alloctrace::discover::layout::rows;
use image::{Image, folder};

fn recordings() -> Vec<(String, Image)> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.display().to_string(), read(&fs::read_to_string(path).unwrap()))).collect()
}

/// A file that was edited by hand would not come out as it went in.
fn read(text: &str) -> Image {
    let image = Image::parse(text).unwrap();
    assert_eq!(image.to_text(), text);
    image
}

#[test]
fn every_version_is_recorded() {
    let recordings = recordings();
    for row in rows() {
        assert!(
            recordings.iter().any(|(_, image)| image.minor == row.minor),
            "no recording of 3.{}",
            row.minor
        );
    }
}

#[test]
fn recorded_stacks_are_walked() {
    for (name, image) in recordings() {
        image.check(&image).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

/// A word that is missing may end the walk early, but then the walk says so.
#[test]
fn memory_with_holes_never_looks_complete() {
    for (name, image) in recordings() {
        let mut marked = 0;
        for address in image.words.keys() {
            let mut damaged = image.clone();
            damaged.words.remove(address);
            if let Err(error) = damaged.check(&damaged) {
                assert!(!error.to_string().starts_with("walked"), "{name} without {address:#x}: {error:#}");
                marked += 1;
            }
        }
        assert!(marked >= image.frames.len(), "{name}: {marked} holes noticed");
    }
}
