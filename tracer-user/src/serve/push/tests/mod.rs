//! Pushing to receivers on loopback: that all arrives, and what becomes of it where they are away, busy, broken or odd.

mod arrival;
pub mod profiles;
mod secure;
mod server;
mod trouble;

use std::time::SystemTime;

use super::*;
use server::{Act, Server, accept};

/// Quick enough for tests.
fn settings() -> Settings {
    Settings {
        waits: Waits {
            first: Duration::from_millis(20),
            longest: Duration::from_millis(100),
            longest_asked: Duration::from_secs(3),
        },
        request_timeout: Some(Duration::from_secs(5)),
        ..Settings::default()
    }
}

fn otlp(url: String) -> Settings {
    Settings { otlp: Some(url), ..settings() }
}

fn start(settings: &Settings) -> Push {
    let folder = tempfile::tempdir().unwrap();
    let given = [("service.name".to_owned(), "shop".to_owned()), ("team".to_owned(), "blue".to_owned())];
    Push::start(settings, Labeller::gather(folder.path(), [], &given)).unwrap()
}

fn span() -> Span {
    let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    Span { from, to: from + Duration::from_secs(60) }
}

fn offer(push: &Push, profile: Profile) {
    push.offer(Kind::Allocations, span(), Arc::new(profile));
}

/// Waits until it is so, for a time that no machine needs.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Each that was offered to a place is somewhere.
#[track_caller]
fn assert_accounted(counts: &Counts, offered: u64) {
    assert_eq!(counts.sent + counts.lost() + counts.waiting, offered, "{counts:?}");
}
