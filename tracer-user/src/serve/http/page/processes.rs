//! The section of processes: what each one's memory is made of, how that has changed, and what the change means; then as drawings.
//!
//! It must not know what was allocated.

use std::time::SystemTime;

use super::{Facts, markup::Markup, timeline};
use crate::output::text;
use crate::profile::{Change, Figures, Process, Profile, Verdict};
use crate::serve::http::{
    known::{self, KnownProcess},
    moment,
};

/// Most rows.
const MOST_ROWS: usize = 50;
/// Most drawings.
const MOST_DRAWINGS: usize = 6;

/// The table.
pub fn section(facts: &Facts, markup: &mut Markup) {
    let (living, ended) = sorted(facts);
    markup.raw("<section id=\"processes\"><h2>Processes</h2>");
    if living.is_empty() && ended == 0 {
        markup.raw("<p class=\"note\">No process is known yet.</p></section>");
        return;
    }
    markup.raw("<p class=\"note\">What the program asked for and has not given back, what its allocators keep free, and what is resident; below each, what it has changed by since recording began.</p>");
    markup.raw("<div class=\"wide\"><table><thead><tr><th>pid<th>command<th class=\"n\">requested<th class=\"n\">held free<th class=\"n\">resident<th>what that means<th></tr></thead><tbody>");
    living.iter().take(MOST_ROWS).for_each(|known| row(known, facts, markup));
    markup.raw("</tbody></table></div>");
    let more = living.len().saturating_sub(MOST_ROWS);
    let rest: Vec<String> = [(more, "more that run"), (ended, "that ended")]
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} {what}"))
        .collect();
    if !rest.is_empty() {
        let rest = format!("Not shown: {}; ", rest.join(", "));
        markup
            .element("<p class=\"note\">", &rest, "")
            .raw("see <a href=\"/census.json\">/census.json</a>.</p>");
    }
    markup.raw("</section>");
}

/// The drawings of the largest.
pub fn timelines(facts: &Facts, markup: &mut Markup) {
    let (living, _) = sorted(facts);
    let drawn: Vec<_> = living.iter().filter(|known| known.process.memory.looks().len() > 1).collect();
    if drawn.is_empty() {
        return;
    }
    markup.raw("<section id=\"timelines\"><h2>Memory over time</h2><div class=\"legend\">");
    markup
        .raw("<span><i class=\"requested\"></i>requested</span><span><i class=\"held\"></i>held free</span>");
    markup.raw("<span><i class=\"resident\"></i>resident</span></div><div class=\"charts\">");
    for known in drawn.iter().take(MOST_DRAWINGS) {
        markup.element("<div class=\"chart\"><h3>", &text::process(known.process), "</h3>");
        timeline::draw(&known.process.memory, start(facts, known), markup);
        markup.raw("</div>");
    }
    markup.raw("</div>");
    if drawn.len() > MOST_DRAWINGS {
        markup.raw(
            "<p class=\"note\">The largest; each process has a page of its own, behind its pid above.</p>",
        );
    }
    markup.raw("</section>");
}

/// The largest first, and how many have ended.
fn sorted(facts: &Facts) -> (Vec<KnownProcess<'_>>, usize) {
    let mut all = known::processes(&facts.now);
    let number = all.len();
    all.retain(|known| !known.process.ended);
    let ended = number - all.len();
    let size = |known: &KnownProcess<'_>| {
        let figures = known.look.map(|seen| &seen.look.figures);
        figures.and_then(|figures| figures.resident_bytes().or_else(|| figures.requested_bytes()))
    };
    all.sort_by_key(|known| (std::cmp::Reverse(size(known)), known.process.pid));
    (all, ended)
}

fn start(facts: &Facts, known: &KnownProcess<'_>) -> SystemTime {
    let profile: Option<&Profile> = facts.profile(known.kind);
    moment::of_nanoseconds(profile.map_or(0, |profile| profile.recording.start_nanoseconds))
}

fn row(known: &KnownProcess<'_>, facts: &Facts, markup: &mut Markup) {
    let Process { pid, command, interpreter, allocator, memory, .. } = known.process;
    let pid = pid.to_string();
    markup.raw("<tr><td>").link(&format!("/?pid={pid}"), &pid);
    markup.raw("</td><td class=\"name\">").text(&text::shorten(command, 160));
    let beside =
        if allocator.is_empty() { interpreter.clone() } else { format!("{interpreter}, {allocator}") };
    markup.element("<small>", &format!("Python {beside}"), "</small>").raw("</td>");
    let figures = known.look.map(|seen| &seen.look.figures);
    let change = memory.change();
    type Part = (fn(&Figures) -> Option<u64>, fn(&Change) -> i128);
    let parts: [Part; 3] = [
        (Figures::requested_bytes, |change| change.requested),
        (Figures::held_bytes, |change| change.held),
        (Figures::resident_bytes, |change| change.resident),
    ];
    for (of, change_of) in parts {
        markup.raw("<td class=\"n\">");
        match figures.and_then(of) {
            Some(bytes) => markup.text(&text::bytes(bytes)),
            None => markup.raw("?"),
        };
        if let Some(change) = &change {
            markup.element("<small>", &signed(change_of(change)), "</small>");
        }
        markup.raw("</td>");
    }
    markup.raw("<td class=\"name\">");
    meaning(known, facts, markup);
    markup
        .raw("</td><td>")
        .link(&format!("/flamegraph.svg?pid={pid}&kind={}", known.kind.name()), "flame graph");
    markup.raw("</td></tr>");
}

/// What the change means, or why something is not known.
fn meaning(known: &KnownProcess<'_>, facts: &Facts, markup: &mut Markup) {
    match known.process.memory.verdict() {
        Some(Verdict::Use) => {
            markup.raw("<span class=\"up\">grows by use</span><small>a leak, or more work</small>")
        }
        Some(Verdict::Kept) => markup.raw("fragmentation<small>free memory is kept by allocators</small>"),
        Some(Verdict::Elsewhere) => markup
            .raw("<span class=\"up\">grows elsewhere</span><small>outside of pymalloc and malloc</small>"),
        None => markup.raw(""),
    };
    let Some(seen) = known.look else {
        markup.raw("<small>nobody has looked yet</small>");
        return;
    };
    let mut reasons: Vec<&str> = seen.look.figures.reasons().collect();
    reasons.dedup();
    for reason in reasons {
        markup.element("<small>not known: ", reason, "</small>");
    }
    let old = facts.at.duration_since(seen.at).unwrap_or_default().as_secs();
    if old > 120 {
        markup.element("<small>looked at ", &text::age(old.saturating_mul(1000)), " ago</small>");
    }
}

fn signed(bytes: i128) -> String {
    let size = text::bytes(u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX));
    match bytes {
        0 => "no change".to_owned(),
        1.. => format!("+{size}"),
        _ => format!("−{size}"),
    }
}
