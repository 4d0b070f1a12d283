//! What a process's memory is made of, as one line: three figures, what they have changed by, and what that means.
//!
//! What is not known says why, and a change gets a name only where it is clear. It must not know how anything was read.

use super::text;
use crate::profile::{Change, Figures, Process, Verdict};

/// `python main.py [4711]: memory after 9.1 s: requested 81.20 MiB, ...`; nothing where nobody has looked.
pub fn line(process: &Process) -> Option<String> {
    let look = process.memory.latest()?;
    let seconds = look.since_nanoseconds as f64 / 1e9;
    let who = text::process(process);
    let mut line = format!("{who}: memory after {seconds:.1} s: {}", figures(&look.figures));
    if let Some(change) = process.memory.change() {
        line.push_str(&changes(change));
        line.push_str(process.memory.verdict().map_or("", meaning));
    }
    Some(line)
}

fn figures(figures: &Figures) -> String {
    let mut parts = Vec::new();
    match (figures.pools.get(), figures.malloc.get()) {
        (Some(pools), Some(malloc)) => {
            let requested = figures.requested_bytes().unwrap_or_default();
            let held = figures.held_bytes().unwrap_or_default();
            parts.push(format!("requested {}", text::bytes(requested)));
            parts.push(format!(
                "held free {} (pools {}, arenas {}, malloc {})",
                text::bytes(held),
                text::bytes(pools.free_in_pools_bytes),
                text::bytes(pools.free_pools_bytes),
                text::bytes(malloc.free_bytes)
            ));
        }
        (pools, malloc) => {
            if let Some(pools) = pools {
                let held = pools.free_in_pools_bytes.saturating_add(pools.free_pools_bytes);
                let (used, held) = (text::bytes(pools.in_use_bytes), text::bytes(held));
                parts.push(format!("requested of pymalloc {used}, held free by it {held}"));
            }
            if let Some(malloc) = malloc {
                let used = text::bytes(malloc.in_use_bytes.saturating_add(malloc.mapped_bytes));
                let held = text::bytes(malloc.free_bytes);
                parts.push(format!("requested of malloc {used}, held free by it {held}"));
            }
        }
    }
    if let Some(bytes) = figures.resident_bytes() {
        parts.push(format!("resident {}", text::bytes(bytes)));
    }
    let mut reasons: Vec<&str> = figures.reasons().collect();
    reasons.dedup();
    parts.extend(reasons.into_iter().map(|reason| format!("not known: {}", text::visible(reason))));
    parts.join(", ")
}

fn changes(change: Change) -> String {
    let Change { nanoseconds, requested, held, resident } = change;
    let [requested, held, resident] = [requested, held, resident].map(signed);
    format!("; in {:.1} s {requested}, {held}, {resident}", nanoseconds as f64 / 1e9)
}

fn signed(bytes: i128) -> String {
    let sign = if bytes < 0 { '-' } else { '+' };
    format!("{sign}{}", text::bytes(u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX)))
}

fn meaning(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Use => ": grows by use",
        Verdict::Kept => ": fragmentation, free memory is kept",
        Verdict::Elsewhere => ": grows outside of pymalloc and malloc",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::profile::{Known, Look, MallocBytes, PoolBytes, ResidentBytes};

    const MIB: u64 = 1 << 20;

    fn look(second: u64, in_use: u64, free: u64, malloc: Known<MallocBytes>) -> Look {
        let pools = PoolBytes {
            in_use_bytes: in_use * MIB,
            free_in_pools_bytes: free * MIB,
            free_pools_bytes: MIB / 2,
            ..PoolBytes::default()
        };
        let resident = ResidentBytes { anonymous_bytes: 103 * MIB, ..ResidentBytes::default() };
        let figures = Figures { pools: Known::Known(pools), malloc, resident: Known::Known(resident) };
        Look::after(Duration::from_secs(second), figures)
    }

    fn process(looks: Vec<Look>) -> Process {
        let mut process = Process { pid: 7, command: "python x.py".to_owned(), ..Process::default() };
        looks.into_iter().for_each(|look| process.memory.push(look, 100));
        process
    }

    #[test]
    fn figures_changes_and_what_they_mean() {
        let malloc = MallocBytes { in_use_bytes: MIB, free_bytes: 2 * MIB, ..MallocBytes::default() };
        let malloc = || Known::Known(malloc);
        assert_eq!(
            line(&process(vec![look(0, 80, 1, malloc()), look(10, 20, 50, malloc())])).unwrap(),
            "python x.py [7]: memory after 10.0 s: requested 21.00 MiB, held free 52.50 MiB (pools 50.00 MiB, arenas 512.00 KiB, \
             malloc 2.00 MiB), resident 103.00 MiB; in 10.0 s -60.00 MiB, +49.00 MiB, +0 B: fragmentation, free memory is kept"
        );
        assert!(line(&process(vec![look(0, 80, 1, malloc())])).unwrap().ends_with("resident 103.00 MiB"));
        assert_eq!(line(&process(Vec::new())), None);
    }

    #[test]
    fn what_is_not_known_says_why() {
        let unknown = || Known::Unknown { unknown: "malloc is \x1b another's".to_owned() };
        assert_eq!(
            line(&process(vec![look(0, 80, 1, unknown()), look(9, 90, 1, unknown())])).unwrap(),
            "python x.py [7]: memory after 9.0 s: requested of pymalloc 90.00 MiB, held free by it 1.50 MiB, resident 103.00 MiB, \
             not known: malloc is \\x1b another's"
        );
    }
}
