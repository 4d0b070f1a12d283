//! One-line statements about a whole profile: the headings of tables and flame graphs.
//!
//! What cannot be vouched for is said here too: coverage and every loss. It must not know any format.

use super::{leaks, memory, text};
use crate::profile::{
    Amount, BLOCKS_BEFORE_ARMED, Coverage, FOREIGN_MODE, Live, LiveBy, Losses, Metric, Process, Profile,
    Recording, Residence, Unit, WindowSummary,
};

/// `peak 121.30 MiB in 10,050 blocks`.
pub fn total(metric: Metric, sum: Amount) -> String {
    format!("{metric} {}", amount(metric, sum))
}

/// `121.30 MiB in 10,050 blocks`, or `12.3 KiB/s` of a flow.
pub fn amount(metric: Metric, amount: Amount) -> String {
    match metric {
        Metric::Retained => text::flow(amount.bytes),
        _ => format!("{} in {}", text::bytes(amount.bytes), text::blocks(amount.count)),
    }
}

/// One value of a metric in a unit.
pub fn human(metric: Metric, unit: Unit, value: u64) -> String {
    match (metric, unit) {
        (Metric::Retained, _) => text::flow(value),
        (_, Unit::Bytes) => text::bytes(value),
        (_, Unit::Count) => text::blocks(value),
    }
}

/// What `record` says at its end, a line each: totals, trust, cost.
pub fn lines(profile: &Profile) -> Vec<String> {
    let recording = &profile.recording;
    let seconds = recording.duration_nanoseconds as f64 / 1e9;
    let metrics = [Metric::Live, Metric::Peak, Metric::Allocated, Metric::Retained].into_iter();
    let totals = metrics
        .filter(|metric| profile.knows(*metric))
        .map(|metric| total(metric, profile.total(metric)) + &error_of_total(profile, metric));
    let target = recording.cost.target_percent.map_or_else(
        || "cost to the target not measured".to_owned(),
        |percent| format!("cost {percent:.1} % of the target's time"),
    );
    let mut lines = vec![
        format!(
            "{} events in {seconds:.1} s from {}{}",
            text::count(recording.events),
            processes(profile),
            allocators(profile)
        ),
        totals.collect::<Vec<_>>().join("; "),
        format!("{}; {target}, tracer {:.1} % CPU", trust(profile), recording.cost.tracer_cpu_percent),
    ];
    lines.extend(recording.windows.iter().flat_map(|seen| windows(recording, seen)));
    lines.extend(leaks::line(profile));
    lines.extend(profile.processes.iter().filter_map(residence));
    lines.extend(profile.processes.iter().filter_map(memory::line));
    lines.extend(unseen(profile).map(|(process, what)| format!("{process}: {what}")));
    lines
}

/// How far the sum of a metric may be off.
fn error_of_total(profile: &Profile, metric: Metric) -> String {
    let recording = &profile.recording;
    let error = match (metric, &recording.windows) {
        (Metric::Allocated, Some(windows)) => windows.allocated_bytes_error,
        (_, Some(_)) if profile.estimates(metric) => profile.error(metric),
        (Metric::Live, _) if recording.live_bytes_error > 0 => {
            return format!(" (± {})", text::bytes(recording.live_bytes_error));
        }
        (Metric::Peak, _) if recording.losses.thinned > 0 => return " (estimated)".to_owned(),
        _ => return String::new(),
    };
    error.map_or_else(
        || " (estimated from too few windows to say how well)".to_owned(),
        |error| format!(" (± {}, estimated)", human(metric, Unit::Bytes, error)),
    )
}

/// Budget mode: what the estimates stand on.
fn windows(recording: &Recording, windows: &WindowSummary) -> Vec<String> {
    let seen = recording.seen_fraction;
    let mut lines = vec![match (windows.opened, windows.full) {
        (0, _) if seen > 0.0 => format!(
            "{:.0} % of the work was seen in full and no window was opened in the rest: what was allocated then is missing; raise --budget",
            seen * 100.0
        ),
        (0, _) => "no window was opened, so nothing is known: the processes did too little to pay for one; record for longer, or raise --budget".to_owned(),
        (opened, 0) => format!(
            "estimated from {} windows, none of which watched pymalloc: its blocks are missing; record for longer, or raise --budget",
            text::count(opened)
        ),
        (opened, _) => format!("estimated from {} windows", text::count(opened)),
    }];
    lines.extend(live_told_by(windows));
    lines.extend(windows.live_unknown.iter().map(|why| text::visible(why).into_owned()));
    if windows.full > 0 && !windows.is_live_by_pools() && windows.slowdown.is_none() {
        lines.push(
            "pymalloc's blocks: how far windows slowed the program is not known, nor how much they saw of it; they may be far off".to_owned(),
        );
    }
    // Twice as long is the most that a trap's cost, known to a tenth, corrects to a tenth.
    if let Some(slowdown) = windows.slowdown.filter(|slowdown| *slowdown > 2.0) {
        lines.push(format!(
            "pymalloc's blocks: windows slowed the program {slowdown:.0} times, and saw what that left; stacks of tight loops may be far off"
        ));
    }
    lines.extend(windows.stopped.iter().map(|why| stopped(why)));
    lines
}

/// What is known of what lives, and by what; nothing where it is not and nothing stands in its place.
fn live_told_by(windows: &WindowSummary) -> Option<String> {
    match windows.live() {
        Live::By(LiveBy::Pools) => Some(format!(
            "live and peak: pymalloc's blocks count for the stack that opened their pool; the peak is the highest of {} looks, at most {:.2} s apart",
            text::count(windows.looks),
            windows.longest_look_gap_nanoseconds as f64 / 1e9
        )),
        Live::By(LiveBy::Survivors) => Some(format!(
            "live: told by {} blocks that outlived the tail of their window, of {} windows; {} looks at which of them are gone",
            text::count(windows.survivors),
            text::count(windows.tails),
            text::count(windows.looks)
        )),
        Live::Retained { .. } => Some(
            "retained flow, bytes a second that outlive about a second, stands in live's place: see `--metric retained`".to_owned(),
        ),
        Live::Unknown { .. } => None,
    }
}

fn stopped(why: &str) -> String {
    format!("tracing stopped by itself: {}", text::visible(why))
}

/// Growth mode: what the stacks of a process hold against what the kernel says of it.
fn residence(process: &Process) -> Option<String> {
    let residence = process.residence.as_ref()?;
    let who = text::process(process);
    let Residence::Compared { before, after, gone_before, gone_unseen, come_unseen, .. } = residence else {
        let Residence::Uncompared { uncompared } = residence else { return None };
        return Some(format!("{who}: not compared with the kernel's figures: {}", text::visible(uncompared)));
    };
    let (kernel, stacks) = residence.both()?;
    let difference = match residence.difference_percent() {
        Some(percent) => format!("{percent:+.2} %"),
        None => "nothing to compare with".to_owned(),
    };
    let come = text::bytes(u64::try_from(kernel.max(0)).unwrap_or(u64::MAX));
    let kernel = format!(
        "{who}: the kernel's RssAnon {} to {}, {} of the first gone: {come} new",
        text::bytes(*before),
        text::bytes(*after),
        text::bytes(*gone_before)
    );
    let corrected = match (gone_unseen, come_unseen) {
        (0, 0) => String::new(),
        (gone, come) => {
            format!("; corrected: {} gone, {} come unseen", text::bytes(*gone), text::bytes(*come))
        }
    };
    Some(format!("{kernel}; its stacks hold {} ({difference}){corrected}", text::bytes(stacks)))
}

/// What the recording knows that it could not see, with the process whose memory it is.
fn unseen(profile: &Profile) -> impl Iterator<Item = (String, String)> {
    profile.processes.iter().flat_map(|process| {
        let lines = process.unseen.iter();
        lines.map(move |line| (text::process(process), text::visible(line).into_owned()))
    })
}

/// The heading of a flame graph: what widths stand for, and the total.
pub fn title(profile: &Profile, metric: Metric, unit: Unit) -> String {
    let sum = profile.total(metric);
    let what = describe(metric);
    match unit {
        Unit::Count if metric != Metric::Retained => {
            format!("{what}: {} of {}", text::blocks(sum.count), text::bytes(sum.bytes))
        }
        _ => format!("{what}: {}", amount(metric, sum)),
    }
}

/// The heading of a differential flame graph.
pub fn difference_title(profile: &Profile, base: &Profile, metric: Metric, unit: Unit) -> String {
    let (before, after) = (unit.of(base.total(metric)), unit.of(profile.total(metric)));
    let human = |value| human(metric, unit, value);
    let sign = if after >= before { '+' } else { '-' };
    let change = human(after.abs_diff(before));
    format!("{}: {} to {} ({sign}{change})", describe(metric), human(before), human(after))
}

/// What objects came from, where that was not pymalloc all the time.
fn allocators(profile: &Profile) -> String {
    let mut all: Vec<&str> = profile.processes.iter().map(|process| &*process.allocator).collect();
    all.retain(|allocator| !matches!(*allocator, "" | "pymalloc"));
    all.sort_unstable();
    all.dedup();
    let all: Vec<_> = all.into_iter().map(text::visible).collect();
    if all.is_empty() { String::new() } else { format!("; objects came from {}", all.join("; ")) }
}

/// Who was recorded, and how far the figures can be trusted.
pub fn subtitle(profile: &Profile) -> String {
    format!("{}; {}", processes(profile), trust(profile))
}

/// `python main.py [4711], 3.12.1`, or how many there were.
pub fn processes(profile: &Profile) -> String {
    match profile.processes.as_slice() {
        [process] => format!("{}, {}", text::process(process), text::visible(&process.interpreter)),
        processes => format!("{} processes", processes.len()),
    }
}

/// Mode, coverage and losses: `exact; coverage 99.98 % of allocations, 99.97 % of frees; nothing lost`.
pub fn trust(profile: &Profile) -> String {
    let recording = &profile.recording;
    let mode = text::visible(&recording.mode);
    let seen = if recording.seen_fraction < 1.0 && recording.mode != FOREIGN_MODE {
        format!(" ({:.2} % seen)", recording.seen_fraction * 100.0)
    } else {
        String::new()
    };
    let coverage = match &recording.coverage {
        Coverage::Measured { allocations, frees, uncertainty, unmeasured_processes } => {
            let (allocations, frees) = (share(*allocations), share(*frees));
            let error = error_of_share(*uncertainty);
            let without = match unmeasured_processes {
                0 => String::new(),
                number => format!(" (without {number} processes, of which it was not measured)"),
            };
            format!("coverage {allocations} of allocations, {frees} of frees{error}{without}")
        }
        Coverage::Unmeasured { unmeasured } => {
            format!("coverage not measured: {}", text::visible(unmeasured))
        }
    };
    let losses = match &*recording.mode {
        FOREIGN_MODE => "losses not known".to_owned(),
        _ => losses(&recording.losses, error_of_blocks_before(profile)),
    };
    let blind = unseen(profile).next().map_or("", |_| "; some memory was not seen");
    format!("{mode}{seen}; {coverage}; {losses}{blind}")
}

/// Rounded down, so that 100 % means all of it.
fn share(fraction: f64) -> String {
    format!("{:.2} %", (fraction * 10_000.0).floor() / 100.0)
}

/// ` (± 0.12 %)`, rounded up; nothing where it would round to nothing.
fn error_of_share(uncertainty: f64) -> String {
    if uncertainty < 0.000_05 {
        return String::new();
    }
    format!(" (± {:.2} %)", (uncertainty * 10_000.0).ceil() / 100.0)
}

/// The pools of processes that run change while they are read.
fn error_of_blocks_before(profile: &Profile) -> u64 {
    let followed = profile.processes.iter().filter_map(|process| process.followed.as_ref());
    followed.fold(0, |sum, followed| sum.saturating_add(followed.blocks_before_error))
}

fn losses(losses: &Losses, error_of_blocks_before: u64) -> String {
    let causes = losses.causes();
    let list = causes.iter().filter(|(number, _)| *number > 0).map(|(number, cause)| {
        let is_estimate = *cause == BLOCKS_BEFORE_ARMED && error_of_blocks_before > 0;
        let error = if is_estimate {
            format!(" (± {})", text::count(error_of_blocks_before))
        } else {
            String::new()
        };
        format!("{}{error} {cause}", text::count(*number))
    });
    let list: Vec<String> = list.collect();
    if list.is_empty() { "nothing lost".to_owned() } else { format!("lost: {}", list.join(", ")) }
}

fn describe(metric: Metric) -> &'static str {
    match metric {
        Metric::Live => "Live memory",
        Metric::Peak => "Memory at the peak",
        Metric::Allocated => "Allocated memory",
        Metric::Temporary => "Temporary memory",
        Metric::Retained => "Retained flow",
    }
}
