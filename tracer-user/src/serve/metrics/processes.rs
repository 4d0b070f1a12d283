//! The figures of each process, and of all the others together.
//!
//! It must not know how they are written.

use std::collections::BTreeMap;

use super::{
    Facts,
    families::{Family, Labels, Number},
    shown::Shown,
};
use crate::output::text::{shorten, visible};
use crate::profile::{Amount, Figures, Metric, Process, Profile, Sample};
use crate::serve::{redact::Redactor, state::Kind};

/// Longest command in a label, in characters.
const COMMAND_CHARACTERS: usize = 80;
/// What stands for all that have no series of their own.
const OTHER: &str = "other";

/// Of whom: process id and command.
type Who = (String, String);

/// Figures that are summed up before they are written, since several processes may be one row.
struct Sums {
    family: Family,
    rows: BTreeMap<(Who, Option<&'static str>), u64>,
}

/// Adds what is known of processes.
pub fn add(facts: &Facts<'_>, shown: &mut Shown, all: &mut Vec<Family>) {
    let (now, redactor) = (facts.now, facts.redactor);
    let mut has_figures = false;
    if let Some(snapshot) = now.snapshot(Kind::Allocations) {
        let profile: &Profile = &snapshot.profile;
        let who = labels(profile, &shown.update(profile), redactor);
        has_figures = profile.processes.iter().any(|process| !process.memory.is_empty());
        all.extend(amounts(profile, &who));
        if has_figures {
            all.extend(figures(profile, &who));
        }
    }
    // Whichever recording looks at what memory is made of: one is enough, and two would count it twice.
    if let Some(snapshot) = now.snapshot(Kind::Resident) {
        let profile: &Profile = &snapshot.profile;
        let who = labels(profile, &Shown::default().update(profile), redactor);
        let mut growth = Sums::new(Family::gauge(
            "alloctrace_resident_growth",
            Some("bytes"),
            "Resident memory that came while it was recorded and is still there",
        ));
        totals(profile, &who, |sample| sample.amount(Metric::Live)).into_iter().for_each(|(who, amount)| {
            growth.add(who, None, amount.bytes);
        });
        all.push(growth.family());
        if !has_figures {
            all.extend(figures(profile, &who));
        }
    }
}

fn labels(profile: &Profile, shown: &[bool], redactor: Option<&Redactor>) -> Vec<Who> {
    let other = || (OTHER.to_owned(), OTHER.to_owned());
    let own = |process: &Process| {
        let command = match redactor {
            Some(redactor) => redactor.command(&process.command),
            None => shorten(&visible(&process.command), COMMAND_CHARACTERS).into_owned(),
        };
        (process.pid.to_string(), command)
    };
    profile
        .processes
        .iter()
        .zip(shown)
        .map(|(process, shown)| if *shown { own(process) } else { other() })
        .collect()
}

fn totals(profile: &Profile, who: &[Who], of: impl Fn(&Sample) -> Amount) -> BTreeMap<Who, Amount> {
    let mut sums = vec![Amount::default(); who.len()];
    for sample in &profile.samples {
        if let Some(sum) = sums.get_mut(sample.process.0 as usize) {
            *sum = sum.plus(of(sample));
        }
    }
    let mut all = BTreeMap::<Who, Amount>::new();
    for (who, sum) in who.iter().zip(sums) {
        let total = all.entry(who.clone()).or_default();
        *total = total.plus(sum);
    }
    all
}

/// What was allocated, and what of it lives.
fn amounts(profile: &Profile, who: &[Who]) -> Vec<Family> {
    let gauge = |name, unit, help| Sums::new(Family::gauge(name, unit, help));
    let counter = |name, unit, help| Sums::new(Family::counter(name, unit, help));
    let mut allocated = [
        counter("alloctrace_allocated", Some("bytes"), "Memory that was allocated since the recording began"),
        counter("alloctrace_allocated_blocks", None, "Blocks that were allocated since the recording began"),
    ];
    let mut live = [
        gauge("alloctrace_live", Some("bytes"), "Memory that was allocated while it was recorded and lives"),
        gauge("alloctrace_live_blocks", None, "Blocks that were allocated while it was recorded and live"),
    ];
    let add = |sums: &mut [Sums; 2], metric: Metric| {
        for (who, Amount { bytes, count }) in totals(profile, who, |sample| sample.amount(metric)) {
            sums[0].add(who.clone(), None, bytes);
            sums[1].add(who, None, count);
        }
    };
    add(&mut allocated, Metric::Allocated);
    if profile.knows(Metric::Live) {
        add(&mut live, Metric::Live);
    }
    allocated.into_iter().chain(live).map(Sums::family).collect()
}

/// Requested, held and resident, by the part that they are of. Ended processes hold nothing.
fn figures(profile: &Profile, who: &[Who]) -> Vec<Family> {
    let gauge = |name, help| Sums::new(Family::gauge(name, Some("bytes"), help));
    let mut requested =
        gauge("alloctrace_requested", "Memory that the program has asked for and not given back");
    let mut held = gauge("alloctrace_held", "Free memory that allocators keep");
    let mut resident = gauge("alloctrace_resident", "Resident memory as the kernel counts it");
    let mut swapped = gauge("alloctrace_swapped", "Memory that is swapped out");
    for (process, who) in profile.processes.iter().zip(who).filter(|(process, _)| !process.ended) {
        let Some(look) = process.memory.latest() else { continue };
        let Figures { pools, malloc, resident: kernel } = &look.figures;
        if let Some(pools) = pools.get() {
            requested.add(who.clone(), Some("pools"), pools.in_use_bytes);
            held.add(who.clone(), Some("pools"), pools.free_in_pools_bytes);
            held.add(who.clone(), Some("arenas"), pools.free_pools_bytes);
        }
        if let Some(malloc) = malloc.get() {
            requested.add(
                who.clone(),
                Some("malloc"),
                malloc.in_use_bytes.saturating_add(malloc.mapped_bytes),
            );
            held.add(who.clone(), Some("malloc"), malloc.free_bytes);
        }
        if let Some(kernel) = kernel.get() {
            resident.add(who.clone(), Some("anonymous"), kernel.anonymous_bytes);
            resident.add(who.clone(), Some("file"), kernel.file_bytes);
            resident.add(who.clone(), Some("shared"), kernel.shared_bytes);
            swapped.add(who.clone(), None, kernel.swapped_bytes);
        }
    }
    [requested, held, resident, swapped].map(Sums::family).into()
}

impl Sums {
    fn new(family: Family) -> Self {
        Self { family, rows: BTreeMap::new() }
    }

    fn add(&mut self, who: Who, part: Option<&'static str>, number: u64) {
        let sum = self.rows.entry((who, part)).or_default();
        *sum = sum.saturating_add(number);
    }

    fn family(mut self) -> Family {
        for (((pid, command), part), number) in self.rows {
            let mut labels: Labels = vec![("pid", pid), ("command", command)];
            labels.extend(part.map(|part| ("part", part.to_owned())));
            self.family.rows.push((labels, Number::Whole(number)));
        }
        self.family
    }
}
