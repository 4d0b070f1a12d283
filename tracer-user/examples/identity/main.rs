//! How often an identity notices that a block was freed and its address handed out again, and how often it takes a block that lives for another one.
//!
//! usage: identity PID ORACLE MINOR WINDOWS
//!
//! PID runs under the reuse oracle (`xtask/bench/identity`), which writes to the file ORACLE and is the truth. Blocks are chosen as budget mode chooses them:
//! allocated in a window of 5 ms, alive at its end or 50 ms later. They are looked at then, and 10 ms, 100 ms, 1 s and 10 s later. Counts go to standard
//! output as JSON. `cargo xtask bench identity` runs this on several programs and interpreters.
#![expect(clippy::print_stdout, reason = "its result goes there")]

mod counts;
mod oracle;
mod target;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use alloctrace::discover::layout::layout;
use alloctrace::identity::{Identity, Kind};
use anyhow::{Context as _, Result};
use counts::{Counts, Key, Truth};
use oracle::{Allocation, Oracle};
use target::Target;

const WINDOW: Duration = Duration::from_millis(5);
const BETWEEN_WINDOWS: Duration = Duration::from_millis(150);
const TAILS_MS: [u64; 2] = [50, 0];
const WAITS_MS: [u64; 4] = [10, 100, 1000, 10_000];
/// Blocks that are followed from one window, and allocations that are looked at to find them.
const FOLLOWED: usize = 300;
const SEARCHED: u64 = 20_000;
/// A prime larger than the number of allocations in a window: its multiples come to each of them once, in no order.
const SCATTER: u64 = 2_654_435_761;

/// A block that is followed.
struct Sample {
    then: Allocation,
    identities: [Identity; 3],
    type_name: String,
    tail_ms: u64,
}

/// What is done at some time; the samples are those of one window.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Window,
    Take { numbers: (u64, u64), tail_ms: u64 },
    Check { samples: (usize, usize), wait_ms: u64 },
}

struct Measurement {
    oracle: Oracle,
    target: Target,
    samples: Vec<Sample>,
    counts: Counts,
    steps: BinaryHeap<Reverse<(Instant, Step)>>,
    windows: u32,
}

impl Measurement {
    fn run(&mut self, windows: u32) -> Result<()> {
        self.later(Duration::ZERO, Step::Window);
        while let Some(Reverse((at, step))) = self.steps.pop() {
            sleep(at.saturating_duration_since(Instant::now()));
            match step {
                Step::Window if self.windows < windows => self.window()?,
                Step::Window => {}
                Step::Take { numbers, tail_ms } => self.take(numbers.0..numbers.1, tail_ms)?,
                Step::Check { samples, wait_ms } => self.check(samples.0..samples.1, wait_ms)?,
            }
        }
        Ok(())
    }

    fn later(&mut self, after: Duration, step: Step) {
        self.steps.push(Reverse((Instant::now() + after, step)));
    }

    fn window(&mut self) -> Result<()> {
        let first = self.oracle.latest()?;
        sleep(WINDOW);
        let numbers = (first + 1, self.oracle.latest()? + 1);
        let tail_ms = TAILS_MS[self.windows as usize % TAILS_MS.len()];
        self.windows += 1;
        self.later(Duration::from_millis(tail_ms), Step::Take { numbers, tail_ms });
        self.later(BETWEEN_WINDOWS, Step::Window);
        Ok(())
    }

    /// Follow some of the window's blocks that live; spread over the whole window.
    fn take(&mut self, numbers: Range<u64>, tail_ms: u64) -> Result<()> {
        let first = self.samples.len();
        let addresses = self.oracle.addresses(numbers.clone())?;
        let count = numbers.end.saturating_sub(numbers.start).max(1);
        for step in 0..count.min(SEARCHED) {
            if self.samples.len() == first + FOLLOWED {
                break;
            }
            let number = numbers.start + step * SCATTER % count;
            let address = usize::try_from(number - numbers.start).ok().and_then(|place| addresses.get(place));
            let found = self.oracle.at(address.copied().unwrap_or(0))?;
            if let Some(then) = found.filter(|found| found.number == number && found.is_live) {
                self.follow(then, tail_ms)?;
            }
        }
        let samples = (first, self.samples.len());
        for wait_ms in WAITS_MS {
            self.later(Duration::from_millis(wait_ms), Step::Check { samples, wait_ms });
        }
        Ok(())
    }

    fn follow(&mut self, then: Allocation, tail_ms: u64) -> Result<()> {
        let Ok(identities) = self.target.look(then.address, then.size) else { return Ok(()) };
        // What was freed while it was looked at is not what was looked at.
        if self.oracle.again(&then)? == then {
            let type_name = match identities[0].kind() {
                Kind::Plain | Kind::Collected => self.target.type_name(identities[0].type_address()),
                _ => String::new(),
            };
            self.samples.push(Sample { then, identities, type_name, tail_ms });
        }
        Ok(())
    }

    fn check(&mut self, samples: Range<usize>, wait_ms: u64) -> Result<()> {
        for Sample { then, identities, type_name, tail_ms } in &self.samples[samples] {
            let now = self.oracle.again(then)?;
            let seen = self.target.look(then.address, then.size);
            if self.oracle.again(then)? != now {
                continue;
            }
            let differs = |depth: usize| seen.as_ref().map_or(true, |seen| seen[depth] != identities[depth]);
            let key = Key {
                kind: identities[0].kind(),
                type_name: type_name.clone(),
                size: counts::size_group(then.size),
                tail_ms: *tail_ms,
                wait_ms,
                truth: Truth::of(then, &now),
            };
            self.counts.add(key, [differs(0), differs(1), differs(2)]);
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pid, oracle, minor, windows] = arguments.as_slice() else {
        anyhow::bail!("usage: identity PID ORACLE MINOR WINDOWS");
    };
    let minor = minor.parse().with_context(|| format!("`{minor}` is no minor version"))?;
    let layout = layout(3, minor).with_context(|| format!("nothing is known of 3.{minor}"))?;
    let pid = pid.parse().with_context(|| format!("`{pid}` is no process id"))?;
    let mut measurement = Measurement {
        oracle: Oracle::open(Path::new(oracle)).with_context(|| format!("failed to open `{oracle}`"))?,
        target: Target::open(pid, layout).with_context(|| format!("failed to open the memory of {pid}"))?,
        samples: Vec::new(),
        counts: Counts::default(),
        steps: BinaryHeap::new(),
        windows: 0,
    };
    measurement.run(windows.parse().with_context(|| format!("`{windows}` is no number of windows"))?)?;
    let lost = measurement.oracle.lost()?;
    let result = serde_json::json!({
        "followed": measurement.samples.len(), "lost": lost, "rows": measurement.counts.rows(),
    });
    println!("{result}");
    Ok(())
}
