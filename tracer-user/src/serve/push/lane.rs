//! One receiver's thread and what waits for it: sends the oldest, tries again what can be, gives up what cannot, and counts all of it.
//!
//! A receiver that is away holds up nobody else: each has a lane of its own. It must not know protocols.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    backoff::{Backoff, Waits},
    client::{Answer, Client},
    counts::Counts,
    labels::Labels,
    minute::Minute,
    queue::{Entry, EntryId, Progress, Queue, Room},
    receiver::Receiver,
};

/// So often a receiver may fail at one profile before that is given up: it stands in the way of all others.
const MOST_FAILURES: u32 = 8;

/// What waits.
#[derive(Debug, Clone)]
pub struct Job {
    /// What is to be sent.
    pub minute: Minute,
    /// What its processes are called.
    pub labels: Arc<Vec<Labels>>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Lane {
    /// The name of its protocol.
    pub name: &'static str,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    queue: Queue<Job>,
    counts: Counts,
    /// Until when to go on although it is to end.
    ends: Option<Instant>,
    has_ended: bool,
}

/// What became of an attempt.
#[derive(Debug)]
enum Outcome {
    Sent,
    Refused {
        why: String,
    },
    /// To be tried again; `is_its_own`: the profile may be the reason.
    Again {
        progress: Progress,
        after: Option<Duration>,
        why: String,
        is_its_own: bool,
    },
    Impossible {
        why: String,
    },
}

impl Lane {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there is no room for one more.
    pub fn start(receiver: Receiver, client: Client, room: Room, waits: Waits) -> io::Result<Self> {
        let state =
            State { queue: Queue::new(room), counts: Counts::default(), ends: None, has_ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let name = receiver.protocol.name();
        let worker = Worker {
            shared: Arc::clone(&shared),
            receiver,
            client,
            backoff: Backoff::new(waits, fastrand::u64(..)),
            is_said: false,
        };
        let thread = thread::Builder::new().name(format!("push-{name}")).spawn(|| worker.run())?;
        Ok(Self { name, shared, thread: Some(thread) })
    }

    /// Takes one to send; never waits.
    pub fn offer(&self, job: Job, bytes: u64) {
        let mut state = self.shared.lock();
        let given_up = state.queue.add(job, bytes);
        state.counts.dropped_full += given_up;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// What became of everything.
    pub fn counts(&self) -> Counts {
        let state = self.shared.lock();
        Counts { waiting: state.queue.len() as u64, ..state.counts.clone() }
    }

    /// Asks it to send what waits until then, and to end.
    pub fn ask_to_end(&self, at: Instant) {
        self.shared.lock().ends.get_or_insert(at);
        self.shared.changed.notify_all();
    }

    /// Waits until it has ended, or until then. A request that is on its way then is left to itself.
    pub fn wait_for_end(&mut self, until: Instant) {
        let mut state = self.shared.lock();
        while !state.has_ended {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            state = self.shared.wait(state, left);
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            // It counts what it does; there is nothing else to learn from how it ended.
            let _ = thread.join();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.ask_to_end(Instant::now());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panics here leaves counts and a queue that are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The oldest, as soon as there is one; `None`: it is time to end.
    fn next(&self) -> Option<Entry<Job>> {
        let mut state = self.lock();
        loop {
            if state.ends.is_some_and(|end| Instant::now() >= end) {
                return None;
            }
            if let Some(entry) = state.queue.send() {
                return Some(entry);
            }
            if state.ends.is_some() {
                return None;
            }
            state = self.wait(state, Duration::from_secs(60));
        }
    }

    /// Waits so long, or until it is time to end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.lock();
        while state.ends.is_none() {
            let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return;
            };
            state = self.wait(state, left);
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    receiver: Receiver,
    client: Client,
    backoff: Backoff,
    /// Whether the log has what is wrong: once is enough until it works again.
    is_said: bool,
}

impl Worker {
    fn run(mut self) {
        while let Some(entry) = self.shared.next() {
            let outcome = self.attempt(&entry);
            if let Some(wait) = self.settle(entry.id, outcome) {
                if self.shared.lock().ends.is_some() {
                    break;
                }
                self.shared.sleep(wait);
            }
        }
        self.shared.lock().has_ended = true;
        self.shared.changed.notify_all();
    }

    fn attempt(&self, entry: &Entry<Job>) -> Outcome {
        let Job { minute, labels } = &entry.payload;
        let parts = self.receiver.parts(labels);
        let mut progress = entry.progress.clone();
        while progress.done < parts.count() {
            let request = match self.receiver.request(minute, labels, &parts, progress.done) {
                Ok(request) => request,
                Err(error) => return Outcome::Impossible { why: error.to_string() },
            };
            let answer = request.map_or(Answer::Taken(Vec::new()), |request| self.client.post(&request));
            match answer {
                Answer::Taken(said) => progress.refused = progress.refused.or(self.receiver.refusal(&said)),
                Answer::Refused { why } => progress.refused = Some(why),
                Answer::Later { after, why } => {
                    return Outcome::Again { progress, after, why, is_its_own: false };
                }
                Answer::Broken { why } => {
                    return Outcome::Again { progress, after: None, why, is_its_own: true };
                }
            }
            progress.done += 1;
        }
        progress.refused.map_or(Outcome::Sent, |why| Outcome::Refused { why })
    }

    /// Counts it; how long to wait before the next attempt is returned, if it failed.
    fn settle(&mut self, id: EntryId, outcome: Outcome) -> Option<Duration> {
        let mut state = self.shared.lock();
        let (mut wait, mut error) = (None, None);
        match outcome {
            Outcome::Sent => {
                state.queue.finish(id);
                state.counts.sent += 1;
                self.backoff.reset();
            }
            Outcome::Refused { why } => {
                state.queue.finish(id);
                state.counts.dropped_refused += 1;
                self.backoff.reset();
                error = Some(why);
            }
            Outcome::Impossible { why } => {
                state.queue.finish(id);
                state.counts.failed += 1;
                error = Some(why);
            }
            Outcome::Again { mut progress, after, why, is_its_own } => {
                progress.failures += u32::from(is_its_own);
                if progress.failures >= MOST_FAILURES {
                    state.queue.finish(id);
                    state.counts.failed += 1;
                } else {
                    state.queue.put_back(id, progress);
                    state.counts.retried += 1;
                }
                wait = Some(self.backoff.after_failure(after));
                error = Some(why);
            }
        }
        let error = error.map(|why| format!("{}: {why}", self.receiver.url()));
        state.counts.last_error.clone_from(&error);
        drop(state);
        self.shared.changed.notify_all();
        self.say(error.as_deref());
        wait
    }

    /// What is wrong is said once, and that it works again.
    fn say(&mut self, error: Option<&str>) {
        match error {
            Some(error) if !self.is_said => tracing::warn!("profiles are not pushed to {error}"),
            None if self.is_said => tracing::info!("profiles are pushed to {} again", self.receiver.url()),
            _ => {}
        }
        self.is_said = error.is_some();
    }
}
