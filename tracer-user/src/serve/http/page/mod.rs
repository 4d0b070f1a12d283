//! `/`: one page for people, with everything that matters and no script: processes and what their memory is made of, lines that allocate
//! and hold, what grows, how far all that can be trusted, and where to look further.
//!
//! It needs nothing else to be loaded. One file a section; `markup.rs` keeps names in their places. It must not know how answers are sent.

mod lines;
mod markup;
mod processes;
mod timeline;
mod trust;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    extract,
    http::{HeaderValue, Uri, header},
    response::Response,
};

use self::markup::Markup;
use super::{
    Incident, Site,
    answer::{Made, Refusal},
    asked::Asked,
    choose, endpoints, health, moment, script, view,
};
use crate::output::text;
use crate::profile::{Metric, Profile};
use crate::serve::{
    history::Span,
    state::{Kind, Now, Snapshot},
};

const STYLE: &str = include_str!("style.css");
/// Of what was allocated of late.
const LATE: Duration = Duration::from_secs(15 * 60);

/// All that the page shows.
struct Facts {
    /// The newest snapshots, of the chosen processes, without names where those are redacted.
    now: Now,
    /// What happened of late; `None`: the history does not know.
    late: Option<(Span, Arc<Profile>)>,
    incidents: Vec<Incident>,
    pids: Vec<u32>,
    is_redacted: bool,
    at: SystemTime,
}

/// `/`
pub async fn page(extract::State(site): extract::State<Arc<Site>>, uri: Uri) -> Result<Response, Refusal> {
    let asked = site.asked(&uri, &endpoints::PAGE)?;
    site.make(move |site| {
        let html = render(&Facts::gather(site, asked));
        let policy = format!(
            "default-src 'none'; style-src {}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            script::source(STYLE)
        );
        let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static(script::NOTHING));
        let made = Made::new("text/html; charset=utf-8", html.into_bytes());
        Ok(made.with(header::CONTENT_SECURITY_POLICY, policy))
    })
    .await
}

impl Facts {
    fn gather(site: &Site, asked: Asked) -> Self {
        let at = SystemTime::now();
        let mut now = site.source().now();
        for snapshot in [&mut now.allocations, &mut now.resident].into_iter().flatten() {
            snapshot.profile = part(site, &asked, &snapshot.profile);
        }
        now.problems.iter_mut().for_each(|problem| *problem = site.say(problem));
        let span = Span { from: at.checked_sub(LATE).unwrap_or(SystemTime::UNIX_EPOCH), to: at };
        // A history that cannot be read is told by /metrics and the log; the page shows what it has.
        let late = site.source().query(Kind::Allocations, span, &asked.pids).ok().flatten();
        let late = late.map(|(span, profile)| (span, part(site, &asked, &Arc::new(profile))));
        let mut incidents = site.source().incidents();
        if let Some(redactor) = site.redactor() {
            incidents.iter_mut().for_each(|incident| incident.name = redactor.incident(&incident.name));
        }
        Self { now, late, incidents, pids: asked.pids, is_redacted: site.redactor().is_some(), at }
    }

    fn profile(&self, kind: Kind) -> Option<&Profile> {
        self.now.snapshot(kind).map(|snapshot| &*snapshot.profile)
    }

    /// An address with the page's choice of processes.
    fn address(&self, path: &str, parameters: &str) -> String {
        let mut all: Vec<String> = self.pids.iter().map(|pid| format!("pid={pid}")).collect();
        all.extend((!parameters.is_empty()).then(|| parameters.to_owned()));
        if all.is_empty() { path.to_owned() } else { format!("{path}?{}", all.join("&")) }
    }
}

fn part(site: &Site, asked: &Asked, profile: &Arc<Profile>) -> Arc<Profile> {
    let profile = match asked.pids.as_slice() {
        [] => Arc::clone(profile),
        pids => Arc::new(choose::processes(profile, |process| pids.contains(&process.pid))),
    };
    match site.redactor() {
        Some(redactor) => Arc::new(redactor.profile(&profile)),
        None => profile,
    }
}

fn render(facts: &Facts) -> String {
    let mut markup = Markup::default();
    markup.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    markup.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    markup.raw("<title>alloctrace</title><style>").raw(STYLE).raw("</style></head><body>");
    head(facts, &mut markup);
    markup.raw("<main>");
    trust::problems(facts, &mut markup);
    trust::incidents(facts, &mut markup);
    processes::section(facts, &mut markup);
    processes::timelines(facts, &mut markup);
    lines::leaks(facts, &mut markup);
    markup.raw("<div class=\"pair\">");
    lines::resident(facts, &mut markup);
    lines::allocated(facts, &mut markup);
    lines::live(facts, &mut markup);
    trust::section(facts, &mut markup);
    further(facts, &mut markup);
    markup.raw("</div></main>");
    foot(facts, &mut markup);
    markup.raw("</body></html>\n");
    markup.finish()
}

fn head(facts: &Facts, markup: &mut Markup) {
    let silence = health::silence(&facts.now, facts.at);
    markup.raw("<header><h1><a href=\"/\">alloctrace</a></h1>");
    markup.raw(if silence.is_some() { "<p class=\"state dead\">" } else { "<p class=\"state\">" });
    markup.raw("<span class=\"dot\"></span>");
    match (silence, facts.now.allocations.as_ref().or(facts.now.resident.as_ref())) {
        (Some(why), _) => markup.text(&why),
        (None, None) => markup.raw("no snapshot yet"),
        (None, Some(snapshot)) => markup.text(&recording(facts, snapshot)),
    };
    markup.raw("</p>");
    if !facts.pids.is_empty() {
        let pids: Vec<String> = facts.pids.iter().map(u32::to_string).collect();
        markup
            .raw("<p class=\"state\">only process ")
            .text(&pids.join(", "))
            .raw(" · <a href=\"/\">all</a></p>");
    }
    markup.raw("</header>");
}

/// How long it has been going, and how old the figures are.
fn recording(facts: &Facts, snapshot: &Snapshot) -> String {
    let recording = &snapshot.profile.recording;
    let milliseconds = recording.duration_nanoseconds / 1_000_000;
    let old = facts.at.duration_since(snapshot.taken).unwrap_or_default();
    let seen = match recording.seen_fraction {
        1.0.. => "everything seen".to_owned(),
        seen => format!("{:.2} % seen", seen * 100.0),
    };
    format!(
        "recording for {}, {} mode, {seen}; figures of {} ({} ago)",
        text::age(milliseconds),
        recording.mode,
        moment::said(snapshot.taken),
        text::age(u64::try_from(old.as_millis()).unwrap_or(u64::MAX))
    )
}

/// Flame graphs and raw data.
fn further(facts: &Facts, markup: &mut Markup) {
    markup.raw("<section id=\"further\"><h2>Look further</h2><dl>");
    markup.raw("<dt>flame graphs</dt><dd>");
    let known: Vec<Metric> =
        facts.profile(Kind::Allocations).map(|profile| view::known(profile).collect()).unwrap_or_default();
    for metric in known {
        markup.link(&facts.address("/flamegraph.svg", &format!("metric={metric}")), metric.name()).raw(" · ");
    }
    if facts.now.resident.is_some() {
        markup.link(&facts.address("/flamegraph.svg", "kind=resident"), "resident").raw(" · ");
    }
    markup.link(&facts.address("/flamegraph.svg", "metric=allocated&from=-1h"), "allocated in the last hour");
    markup.raw("</dd><dt>what changed</dt><dd>");
    let against = "metric=allocated&from=-15m&diff=-30m/-15m";
    markup.link(&facts.address("/flamegraph.svg", against), "the last 15 minutes against the 15 before");
    markup.raw("</dd><dt>data</dt><dd>");
    for (place, path) in ["/profile.pb.gz", "/folded", "/report.json", "/census.json"].into_iter().enumerate()
    {
        markup.raw(if place > 0 { " · " } else { "" }).link(&facts.address(path, ""), path);
    }
    markup.raw(" · ").link("/metrics", "/metrics").raw(" · ").link("/openapi.json", "/openapi.json");
    markup.raw("</dd><dt>Go's pprof</dt><dd><code>go tool pprof http://ADDRESS/debug/pprof/heap</code> · ");
    markup.raw("<code>…/debug/pprof/allocs?seconds=60</code></dd></dl>");
    markup.raw("<p class=\"note\">Addresses take <code>pid</code>, <code>metric</code>, <code>unit</code>, <code>from</code> and <code>to</code>: times as <code>-15m</code>, Unix seconds or <code>2026-11-30T16:45:00Z</code>.</p></section>");
}

fn foot(facts: &Facts, markup: &mut Markup) {
    markup.raw("<footer><p>alloctrace ").text(env!("CARGO_PKG_VERSION"));
    markup.raw(" · all times are UTC · ± is half of a 95 % interval");
    if facts.is_redacted {
        markup.raw(" · names are replaced by hashes");
    }
    markup.raw("</p></footer>");
}
