//! Processes that really end at any moment, and disks that are really full.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use super::{BASE_SECONDS, KIND, MOST_MINUTES, bit, ever, files, minute, open, span, time, totals};
use crate::serve::history::HistoryError;

/// Where a child works.
const FOLDER: &str = "ALLOCTRACE_TEST_FOLDER";
/// How the disk of a child is made full.
const FULL_BY: &str = "ALLOCTRACE_TEST_FULL_BY";

/// Runs one of the tests below that are ignored, in a process of its own.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("serve::history::tests::child::{test}");
    command.args(["--exact", &name, "--ignored", "--nocapture"]).env(FOLDER, folder);
    command
}

fn folder_of_child() -> PathBuf {
    std::env::var_os(FOLDER).expect("started by another test").into()
}

#[test]
#[ignore = "a child of another test"]
fn appends_until_it_is_killed() {
    let history = open(&folder_of_child());
    let first = totals(&history, KIND, ever()).0.count_ones();
    for number in first..MOST_MINUTES {
        // Six to an hour.
        let from = BASE_SECONDS + u64::from(number) * 600;
        history.append(KIND, span(from, 600), &minute(number)).unwrap();
        println!("kept {number}");
    }
}

/// Kills in the middle of something after which everything must be there.
const KILLS: u32 = 20;

/// After `kill -9` at random moments, everything of which it was said that it is kept is there, once.
#[test]
fn what_was_kept_outlives_kill() {
    let (mut folder, mut known, mut kills) = (TempDir::new().unwrap(), 0, 0);
    // How long a child may live, which depends on the machine: until it has kept some and not all.
    let mut most_microseconds = 20_000;
    for round in 0..500 {
        let mut child =
            child("appends_until_it_is_killed", folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..most_microseconds)));
        child.kill().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let said = output.lines().filter_map(|line| line.unwrap().strip_prefix("kept ")?.parse::<u32>().ok());
        let said = said.fold(known, |known, number| known | bit(number));
        let is_killed = child.wait().unwrap().signal() == Some(9);
        let found = found_after_kill(folder.path(), said, round);
        match (is_killed, found == known) {
            (true, true) => most_microseconds += most_microseconds / 4,
            (true, false) => kills += 1,
            (false, _) => most_microseconds = most_microseconds / 2 + 1000,
        }
        known = found;
        if kills >= KILLS {
            return;
        }
        if known == bit(MOST_MINUTES) - 1 {
            (folder, known) = (TempDir::new().unwrap(), 0);
        }
    }
    panic!("killed only {kills} times in the middle of something");
}

/// What is there; it must be what was said, and at most one minute more.
#[track_caller]
fn found_after_kill(folder: &Path, said: u64, round: u32) -> u64 {
    let history = open(folder);
    let (found, _) = totals(&history, KIND, ever());
    assert_eq!(found & said, said, "round {round}");
    assert!((found + 1).is_power_of_two(), "{found:#b}");
    assert!((found & !said).count_ones() <= 1, "{found:#b} {said:#b}");
    assert_eq!(history.counts().broken, 0);
    assert!(files(folder).iter().all(|name| name.ends_with(".pb.gz")));
    found
}

#[test]
#[ignore = "a child of another test"]
fn writes_to_a_full_disk() {
    let folder = folder_of_child();
    let by = std::env::var(FULL_BY).unwrap();
    let filler = folder.join("filler");
    let unlimited = getrlimit(Resource::Fsize);
    let set_full = |is_full: bool| match (by.as_str(), is_full) {
        ("limit", true) => setrlimit(Resource::Fsize, Rlimit { current: Some(100), ..unlimited }).unwrap(),
        ("limit", false) => setrlimit(Resource::Fsize, unlimited).unwrap(),
        (_, true) => drop(fs::write(&filler, vec![1; 16 << 20]).unwrap_err()),
        (_, false) => fs::remove_file(&filler).unwrap(),
    };
    let history = open(&folder.join("history"));
    let append = |number: u32, hour: u64| {
        history.append(KIND, span(BASE_SECONDS + 3600 * hour + u64::from(number), 1), &minute(number))
    };
    let whole = || {
        let names = files(&folder.join("history"));
        names.into_iter().all(|name| name.ends_with(".pb.gz"))
    };
    (0..3).for_each(|number| append(number, 0).unwrap());
    for _ in 0..3 {
        set_full(true);
        let Err(HistoryError::File { source, .. }) = append(3, 1) else { panic!("the disk is not full") };
        let expected = if by == "limit" { libc::EFBIG } else { libc::ENOSPC };
        assert_eq!(source.raw_os_error(), Some(expected));
        history.compact(time(BASE_SECONDS + 3600)).unwrap_err();
        history.keep_incident("oom", &minute(1), None).unwrap_err();
        assert!(whole());
        assert_eq!(totals(&history, KIND, ever()).0, 0b111);
        set_full(false);
    }
    append(3, 1).unwrap();
    history.compact(time(BASE_SECONDS + 7200)).unwrap();
    assert_eq!(totals(&history, KIND, ever()).0, 0b1111);
    assert!(whole() && history.counts().merged == 3);
    println!("survived");
}

#[track_caller]
fn assert_survived(mut command: Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("survived"), "{text}\n{errors}");
}

#[test]
fn a_file_that_may_not_grow_is_not_kept_in_part() {
    let folder = TempDir::new().unwrap();
    let test = child("writes_to_a_full_disk", folder.path());
    // The signal ends who writes too much; ignored, the write fails.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(test.get_program()).args(test.get_args());
    command.env(FOLDER, folder.path()).env(FULL_BY, "limit");
    assert_survived(command);
}

/// A file system of its own, which goes with the child. Without the right to mount one, the test above has to do.
#[test]
fn a_full_disk_is_survived() {
    let folder = TempDir::new().unwrap();
    let mount = "mount -t tmpfs -o size=256k none \"$0\" || exit 77; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", mount]).arg(folder.path());
    let test = child("writes_to_a_full_disk", folder.path());
    command.arg(test.get_program()).args(test.get_args()).env(FOLDER, folder.path()).env(FULL_BY, "disk");
    let may_mount = Command::new("unshare")
        .args(["--mount", "sh", "-c", &mount.replace("exec \"$@\"", "true")])
        .arg(folder.path())
        .status();
    if may_mount.is_ok_and(|status| status.success()) {
        assert_survived(command);
    } else {
        eprintln!("no file system of its own: the disk is not filled");
    }
}
