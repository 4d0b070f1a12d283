//! Looks at what the memory of recorded processes is made of: when each came in, every now and then, and at the end.
//!
//! In a thread of its own, as a look at gigabytes takes a second and the ring buffer cannot wait; and rarely, so that all
//! looks together take no more than 0.2 % of one processor. It must not know what is recorded, nor what is in a look.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::allocators::bottom;
use super::target::Traced;
use crate::census::allocators::Bottom;
use crate::census::figures::{FigureReader, Objects};
use crate::census::mimalloc::PageLayout;
use crate::plan::AllocatorTables;
use crate::profile::{Look, ProcessIndex, Series};

/// Between two looks at a process, at least.
const EVERY: Duration = Duration::from_secs(1);
/// Between two looks, in what the first of them has cost: 0.2 %.
const COSTS: u32 = 500;
/// Before that is asked, so that something is known of what does not run for long; the first look has to find everything.
const CREDIT: Duration = Duration::from_millis(200);
/// An interpreter that starts is waited for as long.
const EARLY: Duration = Duration::from_secs(1);
/// Between two looks whether it has.
const SOON: Duration = Duration::from_millis(50);
/// For all last looks together; who has pressed Ctrl-C waits.
const PATIENCE: Duration = Duration::from_secs(3);
/// Looks that are kept of all processes together, 7 MB.
const MOST_LOOKS: usize = 40_000;

/// The thread.
#[derive(Debug)]
pub struct Looks {
    asks: Sender<Ask>,
    thread: JoinHandle<()>,
}

/// What a thread is asked.
#[derive(Debug)]
enum Ask {
    Watch(Box<Watched>),
    /// Look at one of which there is nothing, now; say when.
    Settle(ProcessIndex, Sender<()>),
    /// What has been seen until now.
    Tell(Sender<Vec<(ProcessIndex, Series)>>),
    Finish(Sender<Vec<(ProcessIndex, Series)>>),
}

impl Looks {
    /// Starts it; nobody is looked at yet.
    pub fn start() -> io::Result<Self> {
        let (asks, asked) = channel();
        let thread = Builder::new().name("looks".to_owned()).spawn(move || run(&asked))?;
        Ok(Self { asks, thread })
    }

    /// From now on, a process.
    pub fn watch(&self, index: ProcessIndex, traced: &Traced) {
        let started = Instant::now();
        let watched = Watched {
            index,
            reader: Some(FigureReader::new(traced.target.clone())),
            tables: traced.allocators(),
            pages: traced.pages(),
            objects: None,
            started,
            next: started,
            cost: Duration::ZERO,
            series: Series::default(),
            early: None,
        };
        // A thread that is gone has panicked; the recording goes on without.
        let _ = self.asks.send(Ask::Watch(Box::new(watched)));
    }

    /// Has one process looked at if nothing is known of it yet, and waits for that: it is held, and about to end.
    pub fn settle(&self, index: ProcessIndex) {
        let (done, answer) = channel();
        if self.asks.send(Ask::Settle(index, done)).is_ok() {
            let _ = answer.recv();
        }
    }

    /// Asks for what has been seen until now, which comes when the look that runs is over; `None`: the thread is gone.
    pub fn ask(&self) -> Option<Receiver<Vec<(ProcessIndex, Series)>>> {
        let (done, answer) = channel();
        self.asks.send(Ask::Tell(done)).ok().map(|()| answer)
    }

    /// Looks at all that run for a last time, and hands over everything.
    pub fn finish(self) -> Vec<(ProcessIndex, Series)> {
        let (done, answer) = channel();
        let found = self.asks.send(Ask::Finish(done)).ok().and_then(|()| answer.recv().ok());
        if self.thread.join().is_err() {
            tracing::warn!("looks at memory have failed; please report this");
        }
        found.unwrap_or_default()
    }
}

fn run(asked: &Receiver<Ask>) {
    let mut all = All::default();
    loop {
        let wait = all.next().map_or(EVERY, |next| next.saturating_duration_since(Instant::now()));
        match asked.recv_timeout(wait) {
            Ok(Ask::Watch(watched)) => all.add(*watched),
            Ok(Ask::Settle(index, done)) => {
                all.settle(index);
                let _ = done.send(());
            }
            Ok(Ask::Tell(done)) => {
                let _ = done.send(all.tell());
            }
            Ok(Ask::Finish(done)) => {
                let _ = done.send(all.finish());
                return;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        all.look_at_one();
    }
}

/// One process.
#[derive(Debug)]
struct Watched {
    index: ProcessIndex,
    /// `None` once it has ended.
    reader: Option<FigureReader>,
    tables: AllocatorTables,
    pages: Option<PageLayout>,
    objects: Option<Objects>,
    started: Instant,
    next: Instant,
    /// Of the latest look.
    cost: Duration,
    series: Series,
    /// A look that came too early, or too late.
    early: Option<Look>,
}

impl Watched {
    /// Looks; there are at most `most` looks after it.
    fn look(&mut self, most: usize) {
        let Some(reader) = &mut self.reader else { return };
        let is_early = self.started.elapsed() < EARLY;
        if is_early && !reader.has_started() && !reader.has_ended() {
            return;
        }
        let began = cpu_time();
        let objects = self.objects.or_else(|| objects(reader, self.tables, self.pages));
        let figures = reader.read(objects.unwrap_or(Objects::Pymalloc));
        let has_ended = reader.has_ended();
        self.objects = objects.filter(|_| figures.pools.get().is_some());
        self.cost = cpu_time().saturating_sub(began);
        let look = Look::after(self.started.elapsed(), figures);
        let pid = reader.target().pid;
        tracing::debug!(pid, cost = ?self.cost, ?look, "looked at memory");
        if has_ended {
            self.reader = None;
            self.early.get_or_insert(look);
        } else if look.figures.pools.get().is_some() || !is_early {
            self.series.push(look, most);
        } else {
            self.early = Some(look);
        }
    }

    /// What was seen; something at least.
    fn series_now(&self) -> Series {
        let mut series = self.series.clone();
        if series.is_empty()
            && let Some(look) = &self.early
        {
            series.push(look.clone(), 2);
        }
        series
    }
}

/// All of them.
#[derive(Debug, Default)]
struct All {
    list: Vec<Watched>,
    /// All looks have cost this.
    spent: Duration,
    /// Nobody is looked at before.
    rests_until: Option<Instant>,
}

impl All {
    fn add(&mut self, watched: Watched) {
        let before = most(self.list.len());
        self.list.push(watched);
        let most = most(self.list.len());
        if most != before {
            self.list.iter_mut().for_each(|watched| watched.series.thin(most));
        }
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Watched> {
        self.list.iter_mut().filter(|watched| watched.reader.is_some())
    }

    fn next(&mut self) -> Option<Instant> {
        let rests_until = self.rests_until;
        let next = self.running().map(|watched| watched.next).min();
        next.map(|next| rests_until.map_or(next, |until| next.max(until)))
    }

    /// Looks at the process whose turn it is, if it is anybody's.
    fn look_at_one(&mut self) {
        let now = Instant::now();
        if self.rests_until.is_some_and(|until| now < until) {
            return;
        }
        let most = most(self.list.len());
        let Some(watched) =
            self.running().min_by_key(|watched| watched.next).filter(|found| found.next <= now)
        else {
            return;
        };
        watched.look(most);
        let is_early = watched.series.is_empty() && watched.started.elapsed() < EARLY;
        watched.next = Instant::now() + if is_early { SOON } else { EVERY };
        let cost = watched.cost;
        self.spent += cost;
        if self.spent > CREDIT {
            self.rests_until = Some(Instant::now() + pause(cost));
        }
    }

    fn settle(&mut self, index: ProcessIndex) {
        let most = most(self.list.len());
        if let Some(watched) =
            self.running().find(|watched| watched.index == index && watched.series.is_empty())
        {
            watched.look(most);
        }
    }

    fn tell(&self) -> Vec<(ProcessIndex, Series)> {
        self.list.iter().map(|watched| (watched.index, watched.series_now())).collect()
    }

    fn finish(&mut self) -> Vec<(ProcessIndex, Series)> {
        let (started, most) = (Instant::now(), most(self.list.len()));
        for watched in self.running() {
            if started.elapsed() < PATIENCE {
                watched.look(most);
            }
        }
        self.list.drain(..).map(|watched| (watched.index, watched.series_now())).collect()
    }
}

/// What objects come from; `None` as long as the interpreter has not chosen.
fn objects(reader: &FigureReader, tables: AllocatorTables, pages: Option<PageLayout>) -> Option<Objects> {
    let target = reader.target();
    if target.interpreter.layout.free_threading.is_some() {
        return pages.map(Objects::Mimalloc);
    }
    match (bottom(target, tables)?, pages) {
        (Bottom::Malloc, _) => Some(Objects::Malloc),
        (Bottom::Mimalloc, Some(pages)) => Some(Objects::Mimalloc(pages)),
        _ => Some(Objects::Pymalloc),
    }
}

/// Looks that may be kept of one process, of so many.
fn most(processes: usize) -> usize {
    let mut most = Series::MOST;
    while most > 2 && most * processes > MOST_LOOKS {
        most /= 2;
    }
    most
}

/// Until the next look at anybody, by what the last one has cost. Each waits for its turn, those that are new too.
fn pause(cost: Duration) -> Duration {
    cost.saturating_mul(COSTS)
}

/// Of this thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_cost_two_thousandths_at_most() {
        for milliseconds in [1, 2, 5, 40, 2000] {
            let cost = Duration::from_millis(milliseconds);
            let share = cost.as_secs_f64() / pause(cost).as_secs_f64();
            assert!(share <= 0.002, "{milliseconds} ms: {share}");
        }
        assert_eq!(pause(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn many_processes_have_few_looks_each() {
        assert_eq!((most(1), most(66), most(67)), (600, 600, 300));
        for processes in 1..=16_384 {
            assert!(most(processes) == 2 || most(processes) * processes <= MOST_LOOKS, "{processes}");
        }
    }
}
