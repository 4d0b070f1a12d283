//! The sidecar: keeps recordings running beside a service, remembers what they said, and answers.
//!
//! The way of the data: an engine thread for each recording sends snapshots (cumulative since it began); the keeper turns two of them into what happened in a minute and
//! has the history keep that; whoever asks gets answers from the history and from the newest snapshots. It must not know eBPF, windows or interpreters: those are the session's.

pub mod access;
pub mod cgroup;
pub mod confine;
pub mod engine;
#[cfg(test)]
mod fake_root;
pub mod history;
pub mod http;
pub mod keeper;
pub mod metrics;
pub mod push;
pub mod redact;
pub mod state;
pub mod tls;
pub mod watch;
pub mod watcher;
