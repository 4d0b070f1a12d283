//! The sections of lines: what was allocated of late, what lives, and what grows.
//!
//! It must not know processes' memory as a whole.

use super::{Facts, markup::Markup};
use crate::output::{
    aggregate::{By, Key, Report, aggregate},
    leaks::{self, LeakRow},
    summary, text,
};
use crate::profile::{Live, Metric, Profile, Unit};
use crate::serve::{http::moment, state::Kind};

/// The mode of recordings of resident memory.
const GROWTH: &str = "growth";
/// Rows of each table.
const ROWS: usize = 12;

/// What was allocated of late, or since the recording began where the history does not know.
pub fn allocated(facts: &Facts, markup: &mut Markup) {
    markup.raw("<section id=\"allocated\"><h2>");
    let Some(profile) =
        facts.late.as_ref().map(|(_, profile)| &**profile).or(facts.profile(Kind::Allocations))
    else {
        markup.raw("Allocated</h2><p class=\"note\">Nothing is known yet.</p></section>");
        return;
    };
    match &facts.late {
        Some((span, _)) => {
            let clock = |moment| moment::utc(moment).get(11..16).unwrap_or_default().to_owned();
            markup.element(
                "Allocated from ",
                &format!("{} to {}", clock(span.from), clock(span.to)),
                "</h2>",
            );
        }
        None => {
            markup.raw("Allocated since the recording began</h2>");
        }
    }
    table(profile, Metric::Allocated, facts, markup);
    markup.raw("</section>");
}

/// Whose stacks made resident memory grow; nothing where that is not recorded.
pub fn resident(facts: &Facts, markup: &mut Markup) {
    let Some(profile) = facts.profile(Kind::Resident) else { return };
    markup.raw("<section id=\"resident\"><h2>Resident growth</h2>");
    markup.raw("<p class=\"note\">Memory that came since the recording began and is resident, by the line that touched it first.</p>");
    table(profile, Metric::Live, facts, markup);
    markup.raw("</section>");
}

/// What lives, or what stands in its place.
pub fn live(facts: &Facts, markup: &mut Markup) {
    markup.raw("<section id=\"live\"><h2>");
    let Some(profile) = facts.profile(Kind::Allocations) else {
        markup.raw("Live</h2><p class=\"note\">Nothing is known yet.</p></section>");
        return;
    };
    match profile.recording.windows.as_ref().map(|windows| windows.live()) {
        Some(Live::Retained { why }) => {
            markup.raw("Retained flow</h2>");
            markup.element(
                "<p class=\"note\">Bytes a second that outlive a second. What lives is not known: ",
                why,
                ".</p>",
            );
            table(profile, Metric::Retained, facts, markup);
        }
        Some(Live::Unknown { why }) => {
            markup.element("Live</h2><p class=\"note\">Not known: ", why, ".</p>");
        }
        Some(Live::By(_)) | None => {
            markup.raw("Live now</h2>");
            table(profile, Metric::Live, facts, markup);
        }
    }
    markup.raw("</section>");
}

fn table(profile: &Profile, metric: Metric, facts: &Facts, markup: &mut Markup) {
    // By line, the one error that `aggregate` knows does not come up.
    let Ok(report) = aggregate(profile, By::Line, metric, Unit::Bytes) else { return };
    markup.element("<p class=\"note\">", &summary::amount(metric, report.total), " in all · ");
    let parameters = match &facts.late {
        Some((span, _)) if metric == Metric::Allocated => {
            format!("metric={metric}&from={}&to={}", moment::utc(span.from), moment::utc(span.to))
        }
        _ if profile.recording.mode == GROWTH => "kind=resident".to_owned(),
        _ => format!("metric={metric}"),
    };
    markup.link(&facts.address("/flamegraph.svg", &parameters), "flame graph").raw("</p>");
    let is_estimate = profile.estimates(metric);
    if report.rows.is_empty() {
        // Of windows that saw none it is not known that there is none.
        let none = if is_estimate { "No window has seen any yet." } else { "No line allocates." };
        markup.element("<p class=\"note\">", none, "</p>");
        return;
    }
    markup.raw("<table><thead><tr><th class=\"n\">bytes");
    markup
        .raw(if is_estimate { "<th class=\"n\">error" } else { "" })
        .raw("<th class=\"n\">share<th>line</tr></thead><tbody>");
    for row in report.rows.iter().take(ROWS) {
        let bytes = summary::human(metric, Unit::Bytes, row.amount.bytes);
        markup.element("<tr><td class=\"n\">", &bytes, "</td>");
        if is_estimate {
            markup.element("<td class=\"n\">", &text::error(row.bytes_error, row.amount.bytes), "</td>");
        }
        share(text::percent(row.amount.bytes, report.total.bytes), markup);
        place(&row.key, markup);
        markup.raw("</tr>");
    }
    markup.raw("</tbody></table>");
    rest(&report, metric, markup);
}

fn rest(report: &Report<'_>, metric: Metric, markup: &mut Markup) {
    let more = report.rows.len().saturating_sub(ROWS);
    if more == 0 {
        return;
    }
    let bytes = report.rows.iter().skip(ROWS).fold(0_u64, |sum, row| sum.saturating_add(row.amount.bytes));
    let rest =
        format!("{} more lines: {}", text::count(more as u64), summary::human(metric, Unit::Bytes, bytes));
    markup.element("<p class=\"note\">", &rest, "</p>");
}

/// A share as a number, and as a bar below it.
fn share(percent: f64, markup: &mut Markup) {
    markup.raw("<td class=\"n\">").number(percent);
    markup
        .raw(" %<svg class=\"bar\" viewBox=\"0 0 100 5\" preserveAspectRatio=\"none\" aria-hidden=\"true\">");
    markup.raw("<rect class=\"all\" width=\"100\" height=\"5\"/><rect class=\"part\" height=\"5\" width=\"");
    markup.number(percent.clamp(0.0, 100.0)).raw("\"/></svg></td>");
}

/// File and line, and below them the function.
fn place(key: &Key<'_>, markup: &mut Markup) {
    markup.raw("<td class=\"place\" title=\"");
    match key {
        Key::Line { file, line, function } => {
            let number = if *line > 0 { format!(":{line}") } else { String::new() };
            markup.text(&format!("{file}{number}")).raw("\">");
            markup.text(&text::shorten(&text::visible(&format!("{}{number}", text::base_name(file))), 80));
            markup.element("<small>", &text::shorten(&text::visible(function), 120), "</small></td>");
        }
        Key::NoPython(reason) => {
            markup.raw("\">").text(reason).raw("<small>no line of Python</small></td>");
        }
        // Rows are lines here.
        _ => {
            markup.raw("\"></td>");
        }
    }
}

/// What grows, the surest first.
pub fn leaks(facts: &Facts, markup: &mut Markup) {
    let Some(profile) = facts.profile(Kind::Allocations) else { return };
    markup.raw("<section id=\"leaks\"><h2>What grows</h2>");
    match leaks::leaks(profile, By::Line) {
        Err(why) => {
            markup.element("<p class=\"note\">Not known: ", &why.to_string(), "</p>");
        }
        Ok(leaks) => {
            let sure: Vec<&LeakRow<'_>> =
                leaks.rows.iter().filter(|row| row.growth.at_least > 0).take(ROWS).collect();
            markup.element("<p class=\"note\">", &leaks::heading(&leaks), ".</p>");
            if sure.is_empty() {
                markup.raw("<p>No line grows for sure.</p>");
            } else {
                rows(&sure, markup);
                markup.element("<p class=\"note\">", leaks::CAUTION, ".</p>");
            }
        }
    }
    markup.raw("</section>");
}

fn rows(sure: &[&LeakRow<'_>], markup: &mut Markup) {
    markup.raw("<div class=\"wide\"><table><thead><tr><th class=\"n\">at least<th class=\"n\">grows by<th class=\"n\">likelihood<th class=\"n\">lives<th class=\"n\">mean age<th>line</tr></thead><tbody>");
    for row in sure {
        let lives = row.live_bytes.map_or_else(|| "?".to_owned(), text::bytes);
        markup.element("<tr><td class=\"n up\">", &text::rate(row.growth.at_least), "</td>");
        markup.element("<td class=\"n\">", &text::rate(row.growth.bytes_per_second), "</td>");
        markup.element("<td class=\"n\">", &text::likelihood(row.growth.likelihood_ppm), "</td>");
        markup.element("<td class=\"n\">", &lives, "");
        if let Some(bytes) = row.live_bytes {
            markup.element("<small>", &text::error(row.live_bytes_error, bytes), "</small>");
        }
        markup.element(
            "</td><td class=\"n\">",
            &row.age_milliseconds.map_or_else(|| "?".to_owned(), text::age),
            "</td>",
        );
        place(&row.key, markup);
        markup.raw("</tr>");
    }
    markup.raw("</tbody></table></div>");
}
