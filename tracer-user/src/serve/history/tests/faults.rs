//! Any step may fail: then the folder is as it was, and what comes later is not harmed.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{BASE_SECONDS, KIND, UNLIMITED, bit, ever, files, live, minute, open, span, time, totals};
use crate::serve::history::{History, HistoryError};

/// A history of which one step may be made to fail.
struct Faulty {
    folder: TempDir,
    history: History,
    /// Steps until the one that fails; 0: none does.
    left: Arc<AtomicUsize>,
    failed: Arc<Mutex<Option<&'static str>>>,
}

impl Faulty {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (left, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
        let (hook_left, hook_failed) = (left.clone(), failed.clone());
        let before = move |what: &'static str| {
            let is_due = hook_left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) == Ok(1);
            if is_due {
                *hook_failed.lock().unwrap() = Some(what);
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            Ok(())
        };
        let history = History::open_with(folder.path(), UNLIMITED, Some(Box::new(before))).unwrap();
        Self { folder, history, left, failed }
    }

    /// Does something of which a step fails; `None`: it has fewer steps.
    fn fail<T>(&self, step: usize, act: impl FnOnce(&History) -> T) -> Option<(&'static str, T)> {
        self.left.store(step, SeqCst);
        let result = act(&self.history);
        self.left.store(0, SeqCst);
        self.failed.lock().unwrap().take().map(|what| (what, result))
    }

    fn append(&self, number: u32, hour: u64) -> Result<(), HistoryError> {
        let from = BASE_SECONDS + hour * 3600 + u64::from(number);
        self.history.append(KIND, span(from, 1), &minute(number))
    }

    #[track_caller]
    fn assert_has(&self, minutes: std::ops::Range<u32>) {
        let expected = (bit(minutes.end) - bit(minutes.start), live(minutes.end - 1));
        assert_eq!(totals(&self.history, KIND, ever()), expected);
    }
}

#[test]
fn an_append_that_fails_leaves_everything_as_it_was() {
    let mut steps = Vec::new();
    for step in 1..100 {
        let faulty = Faulty::new();
        (0..3).for_each(|number| faulty.append(number, 0).unwrap());
        let (before, counts) = (files(faulty.folder.path()), faulty.history.counts());
        let Some((what, result)) = faulty.fail(step, |_| faulty.append(3, 0)) else { break };
        steps.push(what);
        let error = result.unwrap_err();
        assert!(error.to_string().starts_with("failed to "), "{error}");
        assert_eq!(files(faulty.folder.path()), before, "after {what}");
        assert_eq!(faulty.history.counts(), counts);
        faulty.assert_has(0..3);
        faulty.append(3, 0).unwrap();
        faulty.assert_has(0..4);
        let Faulty { folder, history, .. } = faulty;
        drop(history);
        assert_eq!(totals(&open(folder.path()), KIND, ever()).0, bit(4) - 1);
    }
    assert_eq!(steps, ["create a file", "write", "sync", "move", "sync a folder"]);
}

#[test]
fn a_merge_that_fails_loses_nothing_and_is_tried_again() {
    for step in 1..100 {
        let faulty = Faulty::new();
        (0..3).for_each(|number| faulty.append(number, 0).unwrap());
        let now = time(BASE_SECONDS + 48 * 3600);
        let Some((what, result)) = faulty.fail(step, |history| history.compact(now)) else {
            assert!(step > 10, "a merge and its rise have more steps");
            return;
        };
        // What cannot be removed is in the merged file; it is nobody's fault but is tried again.
        assert_eq!(result.is_err(), what != "remove", "{what}");
        assert_eq!(faulty.history.counts().failed_merges, u64::from(result.is_err()));
        faulty.assert_has(0..3);
        faulty.history.compact(now).unwrap();
        faulty.assert_has(0..3);
        let names = files(faulty.folder.path());
        assert_eq!(names.len(), 1, "{names:?} after {what}");
        assert!(names[0].starts_with("allocations/day/"));
        let Faulty { folder, history, .. } = faulty;
        drop(history);
        assert_eq!(totals(&open(folder.path()), KIND, ever()).0, bit(3) - 1);
    }
    panic!("it never ended");
}

#[test]
fn a_minute_is_kept_when_the_merge_after_it_fails() {
    let faulty = Faulty::new();
    (0..3).for_each(|number| faulty.append(number, 0).unwrap());
    let (what, result) = faulty.fail(7, |_| faulty.append(3, 1)).unwrap();
    assert_eq!(what, "write");
    result.unwrap();
    faulty.assert_has(0..4);
    assert_eq!(faulty.history.counts().failed_merges, 1);
    // Not at each minute: a full disk is not written to in vain all the time.
    (4..13).for_each(|number| faulty.append(number, 1).unwrap());
    assert_eq!(faulty.history.counts().merged, 0);
    faulty.append(13, 1).unwrap();
    assert_eq!(faulty.history.counts().merged, 3);
    faulty.assert_has(0..14);
}

#[test]
fn an_incident_that_cannot_be_written_leaves_no_half_of_a_file() {
    for step in 1..100 {
        let faulty = Faulty::new();
        let keep = |history: &History| history.keep_incident("oom", &minute(1), Some(b"<svg/>"));
        let Some((what, result)) = faulty.fail(step, keep) else { return };
        result.unwrap_err();
        for incident in faulty.history.incidents().unwrap() {
            assert_eq!(incident.flame_graph, None, "after {what}");
            crate::profile::pprof::decode(&std::fs::read(incident.profile).unwrap()).unwrap();
        }
        assert!(files(faulty.folder.path()).len() <= 1);
        keep(&faulty.history).unwrap();
    }
    panic!("it never ended");
}
