//! How long tests take, printed when all have run: a CI is as fast as its slowest groups. It must not know what a test does, and
//! nothing is asserted.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::say;

/// Groups that are printed.
const SHOWN: usize = 25;

/// Of every test that has run.
static ALL: Mutex<Vec<(&str, Duration)>> = Mutex::new(Vec::new());

/// Runs a test of a group.
pub fn timed<T>(group: &'static str, test: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = test();
    if let Ok(mut all) = ALL.lock() {
        all.push((group, started.elapsed()));
    }
    result
}

/// Prints those groups that took longest.
pub fn print() {
    let mut groups: BTreeMap<&str, (usize, Duration, Duration)> = BTreeMap::new();
    for (group, took) in ALL.lock().iter().flat_map(|all| all.iter()) {
        let (tests, sum, longest) = groups.entry(group).or_default();
        (*tests, *sum, *longest) = (*tests + 1, *sum + *took, (*longest).max(*took));
    }
    let all: Duration = groups.values().map(|(_, sum, _)| *sum).sum();
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, (_, sum, _))| std::cmp::Reverse(*sum));
    say(&format!("all tests took {:.0} s one after the other; the longest of them:", all.as_secs_f64()));
    for (group, (tests, sum, longest)) in groups.into_iter().take(SHOWN) {
        let (sum, longest) = (sum.as_secs_f64(), longest.as_secs_f64());
        say(&format!("{sum:6.1} s  {tests:3} x {group}, at most {longest:.1} s"));
    }
}
