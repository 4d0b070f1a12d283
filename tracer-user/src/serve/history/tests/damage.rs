//! Files that are not what was written: cut, changed, replaced.

use std::fs;
use std::path::Path;

use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::{
    BASE_SECONDS, KIND, UNLIMITED, append, bit, copy, ever, files, minute, open, span, time, totals,
};
use crate::serve::history::{History, HistoryError};

/// Two hours and two minutes: six minutes, of which the first four are in hours.
fn example() -> TempDir {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    for (number, minutes) in (0..).zip([0, 1, 60, 61, 120, 121]) {
        history.append(KIND, span(BASE_SECONDS + minutes * 60, 60), &minute(number)).unwrap();
    }
    folder
}

/// The bits that are in a file of the example.
fn bits(name: &str) -> u64 {
    let numbers = name.strip_suffix(".pb.gz").unwrap().rsplit('_').next().unwrap();
    let (first, last) = numbers.split_once('-').unwrap();
    let number = |text: &str| text.parse::<u32>().unwrap();
    bit(number(last) + 1) - bit(number(first))
}

/// Opens, asks, merges, appends: each answer is that of the files that are whole.
fn check(folder: &Path, known: &[u64]) {
    let history = open(folder);
    let (found, _) = totals(&history, KIND, ever());
    assert!(known.contains(&found), "{found:#b} is none of {known:?}");
    history.compact(time(BASE_SECONDS + 1_000_000)).unwrap();
    assert_eq!(totals(&history, KIND, ever()).0, found);
    history.append(KIND, span(BASE_SECONDS + 1_000_000, 60), &minute(40)).unwrap();
    assert_eq!(totals(&history, KIND, ever()).0, found | bit(40));
    drop(history);
    assert_eq!(totals(&open(folder), KIND, ever()).0, found | bit(40));
}

#[test]
fn the_example_is_what_it_is_said_to_be() {
    let folder = example();
    let names = files(folder.path());
    assert_eq!(names.iter().map(|name| bits(name)).collect::<Vec<_>>(), [0b11, 0b1100, 1 << 4, 1 << 5]);
    assert!(names[0].contains("/hour/") && names[3].contains("/minute/"));
    check(folder.path(), &[0b11_1111]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_set_aside_and_the_others_count(
        which: prop::sample::Index, at: prop::sample::Index, bytes in vec(any::<u8>(), 0..200), how in 0..4_u8
    ) {
        let folder = example();
        let names = files(folder.path());
        let name = &names[which.index(names.len())];
        let path = folder.path().join(name);
        let mut contents = fs::read(&path).unwrap();
        let at = at.index(contents.len());
        match how {
            0 => contents = bytes,
            1 => contents.truncate(at),
            2 => contents.iter_mut().skip(at).zip(bytes).for_each(|(byte, other)| *byte ^= other),
            _ => contents.splice(at..at, bytes).for_each(drop),
        }
        fs::write(&path, &contents).unwrap();
        // Some bytes of gzip's head mean nothing: then it is as it was.
        let all = 0b11_1111;
        check(folder.path(), &[all, all & !bits(name)]);
        let is_aside = fs::exists(folder.path().join(format!("{name}.broken"))).unwrap();
        let history = open(folder.path());
        prop_assert_eq!(history.counts().broken, u64::from(is_aside));
        prop_assert_eq!(totals(&history, KIND, ever()).0, if is_aside { all & !bits(name) } else { all } | bit(40));
    }

    #[test]
    fn any_name_may_lie_about(name in "[-_.0-9A-Za-z]{1,40}", contents in vec(any::<u8>(), 0..50), level in 0..4_usize) {
        let folder = example();
        let level = ["minute", "hour", "day", "."][level];
        let path = folder.path().join(KIND.name()).join(level).join(&name);
        if !fs::exists(&path).unwrap() {
            fs::write(&path, &contents).unwrap();
            check(folder.path(), &[0b11_1111]);
            prop_assert_eq!(fs::read(&path).unwrap(), contents, "it is not ours");
        }
    }
}

#[test]
fn a_file_that_somebody_removed_is_missed_and_counted() {
    let folder = example();
    let history = open(folder.path());
    let names = files(folder.path());
    fs::remove_file(folder.path().join(&names[0])).unwrap();
    fs::remove_file(folder.path().join(&names[2])).unwrap();
    assert_eq!(totals(&history, KIND, ever()).0, 0b10_1100);
    assert_eq!((history.counts().broken, history.counts().files), (2, 2));
    fs::remove_file(folder.path().join(&names[3])).unwrap();
    history.compact(time(BASE_SECONDS + 1_000_000)).unwrap();
    assert_eq!(totals(&history, KIND, ever()).0, 0b1100);
}

/// What a crash leaves between the writing of a merged file and the removal of its parts; here the merged file is no profile.
#[test]
fn parts_count_where_the_whole_cannot_be_read() {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    append(&history, 0..3);
    let before = copy(folder.path());
    history.compact(time(BASE_SECONDS + 3600)).unwrap();
    drop(history);
    let names = files(folder.path());
    assert_eq!(names.len(), 1);
    let hour = fs::read(folder.path().join(&names[0])).unwrap();
    for length in [0, hour.len() / 2, hour.len() - 1, hour.len()] {
        let both = copy(before.path());
        let path = both.path().join(&names[0]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &hour[..length]).unwrap();
        check(both.path(), &[0b111]);
        let is_whole = length == hour.len();
        assert_eq!(fs::exists(format!("{}.broken", path.display())).unwrap(), !is_whole);
    }
}

#[test]
fn only_the_newest_of_those_that_are_no_profiles_are_kept() {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    append(&history, 0..12);
    let names = files(folder.path());
    for name in &names[..11] {
        fs::write(folder.path().join(name), "no profile").unwrap();
        // One after the other, so that it is known which is the newest.
        totals(&history, KIND, ever());
    }
    let aside =
        || files(folder.path()).into_iter().filter(|name| name.ends_with(".broken")).collect::<Vec<_>>();
    let expected: Vec<String> = names[3..11].iter().map(|name| format!("{name}.broken")).collect();
    assert_eq!(aside(), expected);
    assert_eq!(history.counts().broken, 11);
    assert_eq!(totals(&history, KIND, ever()).0, bit(11));
    drop(history);
    let history = open(folder.path());
    assert_eq!(history.counts().broken, 8);
    // Their numbers are not given again.
    history.append(KIND, span(BASE_SECONDS, 1), &minute(13)).unwrap();
    assert_eq!(aside(), expected);
}

#[test]
fn what_was_being_written_goes() {
    let folder = example();
    for place in ["allocations/minute/.alloctrace-x", "resident/day/.alloctrace-y", "incidents/.alloctrace-z"]
    {
        fs::write(folder.path().join(place), "half").unwrap();
    }
    let history = open(folder.path());
    assert_eq!(files(folder.path()).len(), 4);
    assert_eq!(totals(&history, KIND, ever()).0, 0b11_1111);
}

#[test]
fn only_one_may_have_a_folder() {
    let folder = TempDir::new().unwrap();
    let history = open(folder.path());
    let error = History::open(folder.path(), UNLIMITED).unwrap_err();
    assert!(matches!(error, HistoryError::InUse { .. }));
    let text = error.to_string();
    assert!(
        text.contains(folder.path().to_str().unwrap()) && text.ends_with("choose another folder"),
        "{text}"
    );
    drop(history);
    open(folder.path());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = History::open(&file.join("history"), UNLIMITED).unwrap_err();
    assert!(error.to_string().starts_with("failed to make the folder `"), "{error}");
}
