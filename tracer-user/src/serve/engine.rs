//! A recording in a thread of its own that goes on until it is told to stop.
//!
//! It ends and begins anew where it must: after an error, and after a day, since what a recording knows only grows. It must not know what becomes of what it tells.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use super::state::{Kind, State};
use crate::output::text;
use crate::profile::Profile;
use crate::session::{self, Control, Observer, Progress, Request, Steering, Subject};

/// Between two snapshots.
pub const EVERY: Duration = Duration::from_secs(60);
/// The first one, so that there is something to show soon.
const FIRST: Duration = Duration::from_secs(10);
/// A recording that is as old begins anew.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two attempts after an error.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(60);

/// How often processes are looked after: who is killed is asked for then, and what it held is still there.
const TICK: Duration = Duration::from_millis(500);

/// What a recording tells.
#[derive(Debug)]
pub enum News {
    /// What it has seen until now.
    Snapshot(Kind, Box<Profile>),
    /// The same, and it has ended: what comes next begins anew.
    Last(Kind, Box<Profile>),
    /// These processes were killed for want of memory; the profile has it as it was.
    Victims(Kind, Box<Profile>, Vec<u32>),
    /// A moment that matters has come for these processes.
    Moment(Vec<u32>, String),
    /// It does not work, for this reason; `None`: it does again.
    Problem(Kind, Option<String>),
}

/// See the head of this file.
#[derive(Debug)]
pub struct Engine {
    control: Arc<Control>,
    stopping: Arc<Stopping>,
    thread: JoinHandle<()>,
}

/// Whether it is to stop; a thread that waits is woken up.
#[derive(Debug, Default)]
struct Stopping {
    is_so: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stopping {
    fn stop(&self) {
        let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_so.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn is_so(&self) -> bool {
        self.is_so.load(Ordering::SeqCst)
    }

    /// Waits that long, or until it is so.
    fn wait(&self, time: Duration) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.changed.wait_timeout_while(lock, time, |()| !self.is_so());
    }
}

impl Engine {
    /// Starts it. `request`: what is recorded, and how; its steering is replaced. `state` is told that it lives.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(kind: Kind, request: Request, state: State, news: SyncSender<News>) -> io::Result<Self> {
        let (control, stopping) = (Arc::new(Control::default()), Arc::new(Stopping::default()));
        let steering = Steering {
            control: Some(Arc::clone(&control)),
            snapshot_every: Some(EVERY),
            keeps_victims: true,
            tick: Some(TICK),
            leaves_out_looks: kind == Kind::Resident,
        };
        let request = Request { steering, ..request };
        let of_thread = Arc::clone(&stopping);
        let name = kind.name().to_owned();
        let thread =
            Builder::new().name(name).spawn(move || run(kind, &request, &state, &news, &of_thread))?;
        Ok(Self { control, stopping, thread })
    }

    /// Has a snapshot taken now.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Has it end soon; several end at once.
    pub fn ask_to_stop(&self) {
        self.stopping.stop();
        self.control.stop();
    }

    /// Ends it, and returns when it has told the last.
    pub fn stop(self) {
        self.ask_to_stop();
        if self.thread.join().is_err() {
            tracing::error!("a recording has failed; please report this");
        }
    }
}

fn run(kind: Kind, request: &Request, state: &State, news: &SyncSender<News>, stopping: &Stopping) {
    let mut pause = SOONEST;
    let mut request = request.clone();
    while !stopping.is_so() {
        let began = Instant::now();
        let mut teller = Teller {
            kind,
            state,
            news,
            began,
            first_is_due: true,
            told_alive: None,
            control: request.steering.control.clone(),
            running: Vec::new(),
        };
        let outcome = record(&request, &mut teller);
        let running = std::mem::take(&mut teller.running);
        follow_on(&mut request, running);
        if began.elapsed() > LATEST {
            pause = SOONEST;
        }
        match outcome {
            Ok(()) if stopping.is_so() => return,
            // Those that were named have ended, and nobody else is to be recorded.
            Ok(()) | Err(_) if has_ended(&request.subject) => {
                let why = "the processes that were asked for have ended".to_owned();
                let _ = news.send(News::Problem(kind, Some(why)));
                return;
            }
            Ok(()) => {}
            Err(why) => {
                let _ = news.send(News::Problem(kind, Some(why)));
            }
        }
        stopping.wait(pause);
        pause = (pause * 2).min(LATEST);
    }
}

/// What the next recording takes of processes that were named: those that run still, and the workers that had come to them.
fn follow_on(request: &mut Request, running: Vec<u32>) {
    let Subject::Processes(pids) = &mut request.subject else { return };
    if request.follow {
        pids.extend(running);
    }
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| exists(*pid));
}

fn exists(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

/// Whether nobody of those that were named runs.
fn has_ended(subject: &Subject) -> bool {
    let Subject::Processes(pids) = subject else { return false };
    !pids.iter().any(|pid| exists(*pid))
}

fn record(request: &Request, teller: &mut Teller<'_>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("failed to start: {error}"))?;
    let recorded = runtime.block_on(session::record(request, teller));
    recorded.map(drop).map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

/// Passes on what a recording says.
struct Teller<'a> {
    kind: Kind,
    state: &'a State,
    news: &'a SyncSender<News>,
    began: Instant,
    first_is_due: bool,
    told_alive: Option<Instant>,
    control: Option<Arc<Control>>,
    /// Processes that ran when that was last told.
    running: Vec<u32>,
}

impl Teller<'_> {
    fn note_running(&mut self, profile: &Profile) {
        let running = profile.processes.iter().filter(|process| !process.ended);
        self.running = running.map(|process| process.pid).collect();
    }

    /// Who listens is gone only where the sidecar ends.
    fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }
}

impl Observer for Teller<'_> {
    fn progress(&mut self, _progress: Progress) {
        let Some(control) = &self.control else { return };
        if self.first_is_due && self.began.elapsed() >= FIRST {
            self.first_is_due = false;
            control.ask_for_snapshot();
        }
        if self.began.elapsed() >= LONGEST {
            control.stop();
        }
        if self.told_alive.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
            if self.told_alive.is_none() {
                self.tell(News::Problem(self.kind, None));
            }
            self.told_alive = Some(Instant::now());
            // Not as news: a keeper that waits for its disk would hold the recording up.
            self.state.change(|now| now.alive = Some(SystemTime::now()));
        }
    }

    fn note(&mut self, line: &str) {
        tracing::info!(kind = self.kind.name(), "{}", text::visible(line));
    }

    fn snapshot(&mut self, profile: Profile) {
        self.note_running(&profile);
        // The next one has all of it: a keeper that waits for its disk holds nobody up.
        if self.news.try_send(News::Snapshot(self.kind, Box::new(profile))).is_err() {
            tracing::warn!(
                kind = self.kind.name(),
                "a snapshot is left out: the one before is not on the disk yet"
            );
        }
    }

    fn victims(&mut self, profile: Profile, pids: &[u32]) {
        self.tell(News::Victims(self.kind, Box::new(profile), pids.to_vec()));
    }

    fn finished(&mut self, profile: Profile) {
        self.note_running(&profile);
        self.tell(News::Last(self.kind, Box::new(profile)));
    }
}
