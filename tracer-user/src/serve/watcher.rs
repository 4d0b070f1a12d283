//! Looks once a second whether a moment has come that matters (`watch`), and says so.
//!
//! It must not know what is done then.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::engine::News;
use super::state::{Kind, State};
use super::watch::{Condition, Figure, GroupReader, Moment, ProcessFigures, Subject, Thresholds, Watch};
use crate::output::text;
use crate::profile::{Metric, Profile};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// The thread.
#[derive(Debug)]
pub struct Watcher {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Starts it.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(state: State, conditions: Vec<Condition>, news: SyncSender<News>) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&stopping);
        let watch = Watch::new(Thresholds::default(), conditions);
        let thread =
            Builder::new().name("watcher".to_owned()).spawn(move || run(&state, watch, &news, &of_thread))?;
        Ok(Self { stopping, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the watcher has failed; please report this");
        }
    }
}

fn run(state: &State, mut watch: Watch, news: &SyncSender<News>, stopping: &AtomicBool) {
    let reader = GroupReader::new(Path::new("/"));
    let began = Instant::now();
    while !stopping.load(Ordering::SeqCst) {
        let figures = figures(state);
        let mut groups: FxHashMap<String, Vec<u32>> = FxHashMap::default();
        let mut moments = Vec::new();
        for (pid, of_process) in &figures {
            let found = watch.process(began.elapsed(), *pid, *of_process);
            moments.extend(found.into_iter().map(|moment| (vec![*pid], moment)));
            let Some(group) = reader.of(*pid) else { continue };
            let of_group = groups.entry(group.name.clone()).or_default();
            if of_group.is_empty() {
                let found = watch.group(began.elapsed(), &group);
                moments.extend(found.into_iter().map(|moment| (vec![*pid], moment)));
            }
            of_group.push(*pid);
        }
        // A moment of a group is one of all that are watched in it.
        for (pids, moment) in &mut moments {
            if !matches!(moment, Moment::Over { figure, .. } if *figure != Figure::Share)
                && let Some(all) =
                    groups.values().find(|all| pids.first().is_some_and(|pid| all.contains(pid)))
            {
                pids.clone_from(all);
            }
        }
        let there: FxHashSet<u32> = figures.keys().copied().collect();
        watch.keep(|subject| match subject {
            Subject::Process(pid) => there.contains(pid),
            Subject::Group(name) => groups.contains_key(name),
        });
        for (pids, moment) in moments {
            if news.send(News::Moment(pids, words(&moment))).is_err() {
                return;
            }
        }
        std::thread::park_timeout(EVERY);
    }
}

/// What is known of the memory of every process that runs: by the newest snapshots, and resident by the kernel's own word.
fn figures(state: &State) -> FxHashMap<u32, ProcessFigures> {
    let now = state.now();
    let mut all: FxHashMap<u32, ProcessFigures> = FxHashMap::default();
    for kind in Kind::ALL {
        let Some(snapshot) = now.snapshot(kind) else { continue };
        let profile = &*snapshot.profile;
        let knows_live = kind == Kind::Allocations
            && profile.recording.windows.as_ref().is_none_or(|windows| windows.knows_live);
        let live = if knows_live { live(profile) } else { Vec::new() };
        for (index, process) in profile.processes.iter().enumerate().filter(|(_, process)| !process.ended) {
            let figures = all.entry(process.pid).or_default();
            figures.live = figures.live.or_else(|| live.get(index).copied());
            if let Some(latest) = process.memory.latest() {
                figures.requested = figures.requested.or_else(|| latest.figures.requested_bytes());
                figures.held = figures.held.or_else(|| latest.figures.held_bytes());
            }
        }
    }
    for (pid, figures) in &mut all {
        figures.resident = resident(*pid);
    }
    all
}

fn live(profile: &Profile) -> Vec<u64> {
    let mut live = vec![0_u64; profile.processes.len()];
    for sample in &profile.samples {
        if let Some(sum) = live.get_mut(sample.process.0 as usize) {
            *sum = sum.saturating_add(sample.amount(Metric::Live).bytes);
        }
    }
    live
}

/// `VmRSS` of /proc/PID/status (fs/proc/task_mmu.c, `task_mem`).
fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kilobytes.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn words(moment: &Moment) -> String {
    match moment {
        Moment::NearLimit { share, bytes, limit_bytes } => format!(
            "near-limit: {} of {} ({:.0} %)",
            text::bytes(*bytes),
            text::bytes(*limit_bytes),
            share * 100.0
        ),
        Moment::Pressure { some_percent, full_percent } => {
            format!(
                "pressure: {some_percent:.0} % of the time some waited for memory, {full_percent:.0} % all"
            )
        }
        Moment::Killed { times } => format!("killed: {times} processes for want of memory"),
        Moment::Over { bytes, condition, .. } => format!("over: {condition}, {} now", text::bytes(*bytes)),
    }
}
