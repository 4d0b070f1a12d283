//! A recording from start to end: drives the stages and owns what they share.
//!
//! The only place that knows all stages. It must not know clap, formats or terminals: progress goes to a callback.

mod admit;
mod allocators;
mod command;
mod control;
mod coverage;
mod ended;
mod estimates;
mod find;
mod follow;
mod growth;
mod heat;
mod kept;
mod looks;
mod mallocs;
mod meter;
mod opening;
mod preparation;
mod processes;
mod rare_clock;
mod reclaim;
mod recorder;
mod run;
mod sampled;
mod snapshot;
mod target;
mod thread_slot;
mod turns;
mod wakes;
mod windowed;
mod windows;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

pub use command::launch;
pub use control::{Control, Steering};
pub use run::{Observer, record};

use crate::attach::{AttachError, Mechanism, TableSizes, Watch};
use crate::discover::DiscoverError;
use crate::plan::PlanError;

/// What to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Processes that run already.
    Processes(Vec<u32>),
    /// A command to be started: program and arguments.
    Command(Vec<OsString>),
    /// Every Python process of the host.
    Everything,
    /// Every Python process of a control group.
    Cgroup(PathBuf),
    /// Every Python process of the host whose command line holds one of these.
    Named(Vec<String>),
}

/// A validated request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What to record.
    pub subject: Subject,
    /// When to stop; `None`: when asked to, or when the subject ends.
    pub duration: Option<Duration>,
    /// How to arm; `None`: the best that the kernel has.
    pub mechanism: Option<Mechanism>,
    /// Sizes of the kernel's tables.
    pub sizes: TableSizes,
    /// Record children too.
    pub follow: bool,
    /// Go on where the kernel is known to crash.
    pub any_kernel: bool,
    /// For benches: start programs that do nothing.
    pub bare: bool,
    /// How to watch.
    pub mode: Mode,
    /// Nobody has asked for that mode: where the kernel has no windows, everything is recorded.
    pub is_usual_mode: bool,
    /// How it is steered while it runs.
    pub steering: Steering,
}

/// How processes are watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Every allocation and free.
    Exact,
    /// Page faults and no allocator: what is recorded is resident memory.
    Growth,
    /// Allocations, in windows that cost no more than this.
    Budget {
        /// Of the target's own CPU time.
        percent: f64,
    },
}

impl Mode {
    /// Its name in profiles.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Growth => "growth",
            Self::Budget { .. } => "budget",
        }
    }
}

impl Request {
    /// What is armed in a process when it comes in; `None`: nothing.
    fn watch(&self) -> Option<Watch> {
        match self.mode {
            Mode::Exact if self.bare => Some(Watch::Bare),
            Mode::Exact => Some(Watch::Everything),
            // Windows say what.
            Mode::Growth | Mode::Budget { .. } => None,
        }
    }
}

/// How far a recording is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Since the first point was armed.
    pub elapsed: Duration,
    /// Allocations and frees counted.
    pub events: u64,
    /// Live bytes of all processes.
    pub live_bytes: u64,
    /// Everything lost, all causes.
    pub losses: u64,
}

/// What came out.
#[derive(Debug)]
pub struct Recorded {
    /// Whether there was a profile: none when no Python ran.
    pub anything: bool,
    /// Whether there was anything to record: a command that could not be run has said so itself.
    pub ran: bool,
    /// How the command ended, for a command.
    pub status: Option<ExitStatus>,
}

/// What keeps a recording from being made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Stage 1.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// Stage 2.
    #[error("failed to find the allocator in `{file}`")]
    Plan {
        /// Which file.
        file: String,
        /// Why.
        source: PlanError,
    },
    /// No pymalloc in an interpreter.
    #[error(
        "found no allocator code in `{file}`: this build of CPython cannot be traced yet; please report it"
    )]
    NoPoints {
        /// Which file.
        file: String,
    },
    /// Stage 3 or 4.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The command could not be started at all.
    #[error("failed to start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// A control group that is none.
    #[error(
        "found no control group `{path}`: give its folder below /sys/fs/cgroup, or what `/proc/PID/cgroup` says (version 2)"
    )]
    NoCgroup {
        /// What was asked for.
        path: PathBuf,
    },
    /// Something of our own runtime.
    #[error("failed to {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes a [`SessionError::System`].
fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> SessionError {
    move |source| SessionError::System { what, source: source.into() }
}
