//! Push: each minute's profile goes to the places that were named, an OpenTelemetry collector or Pyroscope, and nothing waits for that.
//!
//! Each place has a thread, a bounded queue and waits of its own (`lane.rs`); what is sent is made by pure functions (`otlp`, `pyroscope.rs`). A place may be away for an hour:
//! what fits waits for it, what does not is counted. It must not know how profiles are recorded, nor who else reads them.

mod address;
mod backoff;
mod client;
mod counts;
pub mod labels;
mod lane;
mod minute;
mod otlp;
mod pyroscope;
mod queue;
mod receiver;
mod token;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

pub use self::{
    address::AddressError, backoff::Waits, client::CertificateError, counts::Counts, labels::Labeller,
    queue::Room, receiver::Protocol, token::TokenError,
};
use self::{
    client::Client,
    lane::{Job, Lane},
    minute::{Minute, weight},
    receiver::Receiver,
    token::TokenFile,
};
use super::{history::Span, state::Kind};
use crate::profile::Profile;

/// A request as a whole takes at most so long.
const REQUEST: Duration = Duration::from_secs(60);
/// Nobody waits longer for an end.
const MOST_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Where to, and within what limits. Not printable: an address that was not checked yet may hold a password.
#[derive(Clone, Default)]
pub struct Settings {
    /// `--otlp`: the address of a collector.
    pub otlp: Option<String>,
    /// `--pyroscope`: the address of a server.
    pub pyroscope: Option<String>,
    /// `--push-token-file`.
    pub token_file: Option<PathBuf>,
    /// Authorities to trust in place of Mozilla's list (`SSL_CERT_FILE`), in PEM form.
    pub certificates: Option<PathBuf>,
    /// What may wait, for each place.
    pub room: Room,
    /// How long to wait before trying again.
    pub waits: Waits,
    /// For a request as a whole; `None`: a minute.
    pub request_timeout: Option<Duration>,
}

/// Why nothing can be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// An address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Certificates.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// A thread.
    #[error("failed to start the thread that pushes profiles (are there too many?)")]
    Thread(#[source] io::Error),
}

/// See the head of this file. All methods may be called from several threads.
#[derive(Debug)]
pub struct Push {
    lanes: Vec<Lane>,
    labeller: Mutex<Labeller>,
}

impl Push {
    /// Starts a thread for each place that is named; with none, whatever is offered goes nowhere and counts as nothing.
    ///
    /// # Errors
    /// If an address is none, or the token or the certificates cannot be read, or no thread can be started. Whether anybody listens is not asked.
    pub fn start(settings: &Settings, labeller: Labeller) -> Result<Self, PushError> {
        let token = settings.token_file.as_deref().map(TokenFile::new);
        if let Some(token) = &token {
            // Later it may be another; that it is not there at all is better said now.
            token.read()?;
        }
        let places = [(Protocol::Otlp, &settings.otlp), (Protocol::Pyroscope, &settings.pyroscope)];
        let mut lanes = Vec::new();
        for (protocol, url) in places {
            let Some(url) = url else { continue };
            let receiver = Receiver::new(protocol, url, token.is_some())?;
            let timeout = settings.request_timeout.unwrap_or(REQUEST);
            let client = Client::new(timeout, token.clone(), settings.certificates.as_deref())?;
            lanes.push(
                Lane::start(receiver, client, settings.room, settings.waits).map_err(PushError::Thread)?,
            );
        }
        Ok(Self { lanes, labeller: Mutex::new(labeller) })
    }

    /// Takes a minute's profile to push: `allocated` of that time alone, `live` at its end. Never waits for a place.
    pub fn offer(&self, kind: Kind, span: Span, profile: Arc<Profile>) {
        if self.lanes.is_empty() || profile.is_empty() {
            return;
        }
        // Now, since a process that has ended by the time of sending can be asked nothing.
        let mut labeller = self.labeller.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = Arc::new(labeller.label(&profile.processes));
        drop(labeller);
        let bytes = weight(&profile);
        let minute = Minute { kind, span, profile, id: fastrand::u128(1..) };
        for lane in &self.lanes {
            lane.offer(Job { minute: minute.clone(), labels: Arc::clone(&labels) }, bytes);
        }
    }

    /// What became of everything, over all places.
    pub fn counts(&self) -> Counts {
        self.counts_by_place().into_iter().fold(Counts::default(), |sum, (_, counts)| sum.plus(counts))
    }

    /// The same for each place, by the name of its protocol.
    pub fn counts_by_place(&self) -> Vec<(&'static str, Counts)> {
        self.lanes.iter().map(|lane| (lane.name, lane.counts())).collect()
    }

    /// Sends what waits, each once more and for so long at most, and ends. What is still `waiting` then is lost.
    pub fn finish(mut self, patience: Duration) -> Counts {
        let until = Instant::now() + patience.min(MOST_PATIENCE);
        self.lanes.iter().for_each(|lane| lane.ask_to_end(until));
        self.lanes.iter_mut().for_each(|lane| lane.wait_for_end(until));
        self.counts()
    }
}

#[cfg(test)]
pub(in crate::serve) mod tests;
