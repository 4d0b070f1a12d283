//! `/debug/pprof/heap` and `/debug/pprof/allocs`: the profile as `go tool pprof` and scrapers ask a Go program for it.
//!
//! With `seconds`, what has happened in so long from now on. Parameters that are not known are ignored, as Go does: scrapers add their
//! own. It must not know how a profile is encoded.

use std::{sync::Arc, time::Duration};

use axum::{
    extract,
    http::{HeaderValue, Uri, header},
    response::Response,
};
use tokio::time::{Instant, sleep};

use super::{
    Site,
    answer::{Made, Refusal},
    asked::{self, Asked},
    choose, endpoints,
    go_heap::{self, First, Heap},
    moment, view,
};
use crate::profile::{Metric, Profile};
use crate::serve::state::{Kind, Snapshot};

/// The longest that one may watch, in seconds.
const LONGEST_SECONDS: u64 = 300;
/// Beyond half of what was asked for, where no newer snapshot has come: `go tool pprof` gives up after half of it and five seconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often to look for a newer snapshot.
const LOOK: Duration = Duration::from_millis(200);

type Answer = Result<Response, Refusal>;

/// `/debug/pprof/heap`
pub async fn heap(extract::State(site): extract::State<Arc<Site>>, uri: Uri) -> Answer {
    answer(site, &uri, First::InUse).await
}

/// `/debug/pprof/allocs`
pub async fn allocs(extract::State(site): extract::State<Arc<Site>>, uri: Uri) -> Answer {
    answer(site, &uri, First::Allocated).await
}

/// For how long a request wants to watch; of a wrong one, none.
#[must_use]
pub fn watched(uri: &Uri) -> Duration {
    if ![endpoints::HEAP.path, endpoints::ALLOCS.path].contains(&uri.path()) {
        return Duration::ZERO;
    }
    question(uri).map(|(seconds, _)| seconds).unwrap_or_default()
}

/// For how long, and of which processes.
fn question(uri: &Uri) -> Result<(Duration, Vec<u32>), Refusal> {
    let (mut seconds, mut pids) = (0, Vec::new());
    for (name, value) in asked::pairs(uri)? {
        match &*name {
            "seconds" => {
                seconds = value.parse::<u64>().map_err(|_| {
                    Refusal::wrong(format!("seconds: give a whole number up to {LONGEST_SECONDS}"))
                })?;
            }
            "debug" if value != "0" => {
                return Err(Refusal::wrong("debug: only the binary form is known: leave it out"));
            }
            "pid" => pids.push(asked::pid(&value)?),
            _ => {}
        }
    }
    Ok((Duration::from_secs(seconds.min(LONGEST_SECONDS)), pids))
}

async fn answer(site: Arc<Site>, uri: &Uri, first: First) -> Answer {
    let (time, pids) = question(uri)?;
    let before = newest(&site)?;
    let (snapshot, base) = if time.is_zero() { (before, None) } else { watch(&site, before, time).await? };
    site.make(move |site| make(site, &snapshot, base.as_ref(), first, pids)).await
}

fn newest(site: &Site) -> Result<Snapshot, Refusal> {
    let now = site.source().now();
    match now.allocations {
        Some(snapshot) => Ok(snapshot),
        // The view has the words for why.
        None => Err(view::nothing_yet(&now, Kind::Allocations, site.redactor())),
    }
}

/// A snapshot that is newer, if one comes soon.
async fn fresh(site: &Site, before: Snapshot) -> Result<Snapshot, Refusal> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let newest = newest(site)?;
        if newest.taken > before.taken {
            return Ok(newest);
        }
        sleep(LOOK).await;
    }
    Ok(before)
}

/// The snapshot after `time`, and the one from before where they can be compared.
async fn watch(
    site: &Site,
    before: Snapshot,
    time: Duration,
) -> Result<(Snapshot, Option<Snapshot>), Refusal> {
    // Each holds a profile of its own while it waits.
    let _watcher = site.watchers.try_acquire().map_err(|_| {
        Refusal::later("too many are watching already: ask again later, or without `seconds`", time.as_secs())
    })?;
    // What is compared begins now, where recordings can be asked, and not with the snapshot of the last minute.
    let before = if site.source().ask_for_snapshot() { fresh(site, before).await? } else { before };
    let begun = Instant::now();
    sleep(time).await;
    // One from the middle of that time would leave the rest of it out.
    let middle = newest(site)?.taken;
    let least = if site.source().ask_for_snapshot() { middle.max(before.taken) } else { before.taken };
    loop {
        let after = newest(site)?;
        let is_late = begun.elapsed() >= time + PATIENCE;
        if after.taken > least || is_late && after.taken > before.taken {
            let start = |snapshot: &Snapshot| snapshot.profile.recording.start_nanoseconds;
            // A recording that began anew in between has nothing to be taken off.
            let base = (start(&before) == start(&after)).then_some(before);
            return Ok((after, base));
        }
        if begun.elapsed() >= time + time / 2 + PATIENCE {
            let error = format!(
                "nothing is known of the last {} s, for no snapshot came in them: ask for more `seconds`",
                time.as_secs()
            );
            return Err(Refusal::unknown(error));
        }
        sleep(LOOK).await;
    }
}

fn make(
    site: &Site,
    snapshot: &Snapshot,
    base: Option<&Snapshot>,
    first: First,
    pids: Vec<u32>,
) -> Result<Made, Refusal> {
    let asked = Asked { pids, ..Asked::default() };
    let profile = view::of_snapshot(snapshot, &asked, site.redactor())?;
    if first == First::InUse && !profile.knows(Metric::Live) {
        return Err(Refusal::unknown(
            view::unknown(Metric::Live, &profile) + "; /debug/pprof/allocs has those",
        ));
    }
    let earlier = base.map(|base| part(&base.profile, &asked, site));
    let duration = base.and_then(|base| snapshot.taken.duration_since(base.taken).ok()).unwrap_or_default();
    let encoded = go_heap::encode(&Heap {
        profile: &profile,
        base: earlier.as_ref(),
        first,
        time_nanoseconds: moment::nanoseconds(snapshot.taken),
        duration_nanoseconds: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
    });
    let encoded = encoded.map_err(|error| Refusal::fault(&error))?;
    let name = HeaderValue::from_static("attachment; filename=\"profile.pb.gz\"");
    Ok(Made::new("application/octet-stream", encoded).with(header::CONTENT_DISPOSITION, name))
}

/// The same part of the base; a process that was not there yet has nothing to be taken off.
fn part(base: &Profile, asked: &Asked, site: &Site) -> Profile {
    let chosen =
        choose::processes(base, |process| asked.pids.is_empty() || asked.pids.contains(&process.pid));
    site.redactor().map(|redactor| redactor.profile(&chosen)).unwrap_or(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_go_reads_them() {
        let ask = |query: &str| question(&format!("/debug/pprof/heap?{query}").parse().unwrap());
        assert_eq!(ask("").unwrap(), (Duration::ZERO, vec![]));
        let (time, pids) = ask("seconds=30&gc=1&debug=0&pid=7&pid=8&other=x").unwrap();
        assert_eq!((time.as_secs(), pids), (30, vec![7, 8]));
        assert_eq!(ask("seconds=99999").unwrap().0.as_secs(), 300);
        for wrong in ["seconds=-1", "seconds=x", "seconds=1.5", "debug=1", "pid=0"] {
            assert!(ask(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_these_paths_may_take_their_time() {
        assert_eq!(watched(&"/debug/pprof/allocs?seconds=5".parse().unwrap()).as_secs(), 5);
        assert_eq!(watched(&"/flamegraph.svg?seconds=5".parse().unwrap()), Duration::ZERO);
        assert_eq!(watched(&"/debug/pprof/heap?seconds=x".parse().unwrap()), Duration::ZERO);
    }
}
