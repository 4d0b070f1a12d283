//! `/healthz` and `/readyz`: whether the engine lives, and whether there is something to answer with.
//!
//! It must not know what is recorded.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{extract, response::Response};

use super::{
    Site,
    answer::{Refusal, json},
};
use crate::serve::state::{Kind, Now};

/// An engine that said nothing for longer is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);
/// When to ask again, in seconds.
const ASK_AGAIN_SECONDS: u64 = 5;

#[derive(serde::Serialize)]
struct Health {
    status: &'static str,
    /// What does not work, though the engine lives.
    problems: Vec<String>,
}

#[derive(serde::Serialize)]
struct Readiness {
    status: &'static str,
    /// Recordings of which there is a snapshot.
    recordings: Vec<&'static str>,
}

/// `/healthz`
pub async fn alive(extract::State(site): extract::State<Arc<Site>>) -> Result<Response, Refusal> {
    let now = site.source().now();
    let problems: Vec<String> = now.problems.iter().map(|problem| site.say(problem)).collect();
    match silence(&now, SystemTime::now()) {
        None => Ok(json(&Health { status: "alive", problems })),
        Some(why) => {
            let all: Vec<String> = std::iter::once(why).chain(problems).collect();
            Err(Refusal::later(all.join("; "), ASK_AGAIN_SECONDS))
        }
    }
}

/// `/readyz`
pub async fn ready(extract::State(site): extract::State<Arc<Site>>) -> Result<Response, Refusal> {
    let now = site.source().now();
    let has = |kind: &Kind| now.snapshot(*kind).is_some();
    let recordings: Vec<&str> = Kind::ALL.into_iter().filter(has).map(Kind::name).collect();
    if recordings.is_empty() {
        return Err(Refusal::later("there is no snapshot yet: ask again in a minute", ASK_AGAIN_SECONDS));
    }
    Ok(json(&Readiness { status: "ready", recordings }))
}

/// Why the engine is taken for dead; `None`: it lives.
pub fn silence(now: &Now, at: SystemTime) -> Option<String> {
    let Some(alive) = now.alive else { return Some("the engine has not begun".to_owned()) };
    // A clock that was set back makes nobody dead.
    let silent = at.duration_since(alive).unwrap_or_default();
    (silent > SILENCE).then(|| format!("the engine has said nothing for {} s", silent.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_dead_after_thirty_seconds_of_silence() {
        let alive = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let now = Now { alive: Some(alive), ..Now::default() };
        let after = |seconds| silence(&now, alive + Duration::from_secs(seconds));
        assert_eq!((after(0), after(30)), (None, None));
        assert_eq!(after(31).unwrap(), "the engine has said nothing for 31 s");
        assert_eq!(silence(&now, alive - Duration::from_secs(500)), None);
        assert!(silence(&Now::default(), alive).unwrap().contains("not begun"));
    }
}
