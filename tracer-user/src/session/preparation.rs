//! What is asked of the system before anything is recorded: whether its kernel may be used and how, a processor, and room for files.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::run::Observer;
use super::{Mode, Request, SessionError, Subject};
use crate::attach::known_kernels::{Verdict, verdict};
use crate::attach::{AttachError, Mechanism};

/// Refuses kernels that are known to fail, unless asked not to.
pub(super) fn check_kernel(request: &Request, observer: &mut impl Observer) -> Result<(), SessionError> {
    // Without it nothing is known, and nothing is refused.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim_end();
    match verdict(release) {
        Verdict::Fine => {}
        Verdict::Refused(reason) if !request.any_kernel => {
            return Err(AttachError::BadKernel { release: release.to_owned(), reason }.into());
        }
        Verdict::Warned(reason) | Verdict::Refused(reason) => {
            observer.note(&format!("beware of the kernel {release}: {reason}"));
        }
    }
    Ok(())
}

/// The best that this kernel has; a word about it where it is not the usual one.
fn best_mechanism(observer: &mut impl Observer) -> Result<Mechanism, SessionError> {
    let mechanism = Mechanism::best()?;
    if let Some(note) = mechanism.note() {
        observer.note(note);
    }
    Ok(mechanism)
}

/// What was asked for, with a mechanism, and as far as that goes.
pub(super) fn possible(request: &Request, observer: &mut impl Observer) -> Result<Request, SessionError> {
    let mechanism = match request.mechanism {
        Some(mechanism) => mechanism,
        None => best_mechanism(observer)?,
    };
    let mut request = Request { mechanism: Some(mechanism), ..request.clone() };
    if mechanism == Mechanism::Perf && matches!(request.mode, Mode::Budget { .. }) {
        // A process that others depend on is not traced at full cost unasked.
        if !request.is_usual_mode || !matches!(request.subject, Subject::Command(_)) {
            return Err(AttachError::NoWindows.into());
        }
        observer
            .note("this kernel has no uprobe_multi (Linux 6.6), so everything is recorded, at its full cost");
        request.mode = Mode::Exact;
    }
    Ok(request)
}

/// Before others, on a busy host too: a tracer that waits too long for a processor finds its ring buffer full.
const NICE: i32 = -10;
/// As far before others as there is, with [`MANY`] processes: each waits to be armed, and is looked at now and then, and what it takes meanwhile is not seen.
/// Of 200 forks that were busy on two processors for 12 s, 66 to 78 were armed in time with the priority above (the tracer got 5 % of a processor), 116 to 201
/// with this one (22 %).
const NICE_WITH_MANY: i32 = -20;
/// With fewer the tracer leaves a service its processor.
const MANY: usize = 16;

/// Asks for a processor before others. After a command has been started, which must not inherit it; and without the right to, things are as they were.
pub(super) fn come_first(processes: usize) {
    let _ = rustix::process::setpriority_process(None, nice(processes));
}

/// Asks anew when the number of processes has changed so much that it matters; who has set our priority otherwise has their way until then.
pub(super) fn follow_number(before: usize, processes: usize) {
    if nice(before) != nice(processes) {
        come_first(processes);
    }
}

const fn nice(processes: usize) -> i32 {
    if processes < MANY { NICE } else { NICE_WITH_MANY }
}

/// Asks for more files than most may have open: each process takes about six.
pub(super) fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// CPU time that the tracer has used since it was started.
pub(super) fn own_cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// What the tracer has used of one processor since it had used `before` seconds of it, `elapsed` ago, in percent.
pub(super) fn own_cpu_percent(before: f64, elapsed: Duration) -> f64 {
    let used = own_cpu_seconds() - before;
    if elapsed.is_zero() { 0.0 } else { used / elapsed.as_secs_f64() * 100.0 }
}
