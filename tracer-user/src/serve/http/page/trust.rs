//! What is wrong, what happened, and how far the figures can be trusted: coverage, losses, what recording costs.
//!
//! It must not know lines.

use std::fmt::Write as _;

use super::{Facts, Incident, markup::Markup};
use crate::output::{summary, text};
use crate::profile::{Live, LiveBy, Profile, WindowSummary};
use crate::serve::{http::moment, state::Kind};

/// Most lines of one list.
const MOST_LINES: usize = 20;

/// What was asked for and does not work.
pub fn problems(facts: &Facts, markup: &mut Markup) {
    let lost = facts.now.minutes_lost;
    if facts.now.problems.is_empty() && lost == 0 {
        return;
    }
    markup.raw("<section class=\"warning\" id=\"problems\"><h2>Something does not work</h2><ul>");
    for problem in facts.now.problems.iter().take(MOST_LINES) {
        markup.element("<li>", problem, "</li>");
    }
    if lost > 0 {
        let words =
            if lost == 1 { "minute could not be kept on disk" } else { "minutes could not be kept on disk" };
        markup.element("<li>", &format!("{} {words}", text::count(lost)), "</li>");
    }
    markup.raw("</ul></section>");
}

/// Last accounts that were kept.
pub fn incidents(facts: &Facts, markup: &mut Markup) {
    if facts.incidents.is_empty() {
        return;
    }
    markup.raw("<section id=\"incidents\"><h2>Incidents</h2><p class=\"note\">What processes held that came near their limit or were killed for memory.</p><table><tbody>");
    for Incident { at, name } in facts.incidents.iter().take(MOST_LINES) {
        markup.element("<tr><td class=\"when\">", &moment::said(*at), "</td>");
        markup.element("<td class=\"name\">", name, "</td><td class=\"when\">");
        let parameter = format!("?incident={}", encoded(name));
        markup.link(&format!("/flamegraph.svg{parameter}"), "flame graph").raw(" · ");
        markup.link(&format!("/report.json{parameter}"), "lines").raw(" · ");
        markup.link(&format!("/profile.pb.gz{parameter}"), "profile").raw("</td></tr>");
    }
    markup.raw("</tbody></table>");
    let more = facts.incidents.len().saturating_sub(MOST_LINES);
    if more > 0 {
        markup.element(
            "<p class=\"note\">",
            &format!("{more} older ones are in the folder of the history."),
            "</p>",
        );
    }
    markup.raw("</section>");
}

/// As a value in an address.
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => _ = write!(text, "%{byte:02X}"),
        }
    }
    text
}

/// How far all can be trusted.
pub fn section(facts: &Facts, markup: &mut Markup) {
    markup.raw("<section id=\"trust\"><h2>How far to trust this</h2>");
    let mut any = false;
    for kind in Kind::ALL {
        let Some(profile) = facts.profile(kind) else { continue };
        any = true;
        markup.raw("<dl><dt>recording</dt><dd>").text(kind.name());
        let start = moment::said(moment::of_nanoseconds(profile.recording.start_nanoseconds));
        markup.element(" since ", &start, "</dd>");
        markup.element("<dt>trust</dt><dd>", &summary::trust(profile), "</dd>");
        if let Some(windows) = &profile.recording.windows {
            of_windows(windows, markup);
        }
        cost(profile, markup);
        unseen(profile, markup);
        markup.raw("</dl>");
    }
    if !any {
        markup.raw("<p class=\"note\">Nothing is recorded yet.</p>");
    }
    markup.raw("</section>");
}

fn of_windows(windows: &WindowSummary, markup: &mut Markup) {
    let number =
        format!("{}, {} of them with a tail", text::count(windows.opened), text::count(windows.tails));
    markup.element("<dt>windows</dt><dd>", &number, "</dd>");
    let live = match windows.live() {
        Live::By(LiveBy::Pools) => "by the pools that stacks have opened, and malloc's blocks".to_owned(),
        Live::By(LiveBy::Survivors) => format!("by a sample of {}", text::blocks(windows.survivors)),
        Live::Retained { why } | Live::Unknown { why } => format!("not known: {why}"),
    };
    markup.element("<dt>live told</dt><dd>", &live, "</dd>");
    if let Some(stopped) = &windows.stopped {
        markup.element("<dt>stopped</dt><dd>", stopped, "</dd>");
    }
}

fn cost(profile: &Profile, markup: &mut Markup) {
    let cost = &profile.recording.cost;
    let target = match cost.target_percent {
        Some(percent) => format!("{percent:.2} % of the processes' time"),
        None => "not measured in the processes".to_owned(),
    };
    let cost = format!("{target}; {:.2} % of a processor by alloctrace itself", cost.tracer_cpu_percent);
    markup.element("<dt>cost</dt><dd>", &cost, "</dd>");
}

fn unseen(profile: &Profile, markup: &mut Markup) {
    let lines: Vec<(String, &String)> = profile
        .processes
        .iter()
        .flat_map(|process| process.unseen.iter().map(move |line| (text::process(process), line)))
        .take(MOST_LINES)
        .collect();
    if lines.is_empty() {
        return;
    }
    markup.raw("<dt>not seen</dt><dd>");
    for (process, line) in lines {
        markup.element("<small>", &format!("{process}: {line}"), "</small>");
    }
    markup.raw("</dd>");
}
