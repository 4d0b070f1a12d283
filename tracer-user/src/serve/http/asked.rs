//! What a request asks for: the parameters of its address, each checked, with a refusal that says what would be right.
//!
//! A parameter that an endpoint does not know is refused as well: ignored, it would answer another question than was asked. It must not
//! know profiles.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{extract::Query, http::Uri};

use super::{answer::Refusal, moment};
use crate::output::{
    aggregate::By,
    text::{shorten, visible},
};
use crate::profile::{Metric, Unit};
use crate::serve::{history::Span, state::Kind};

/// Most processes that one request may name.
const MOST_PIDS: usize = 256;
/// Most rows of one report.
pub const MOST_ROWS: usize = 100_000;
/// Rows where none are asked for.
const DEFAULT_ROWS: usize = 1000;

/// The parameters of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Of which recording.
    pub kind: Kind,
    /// Only these processes; empty: all.
    pub pids: Vec<u32>,
    /// The metric; `None`: the profile's own default.
    pub metric: Option<Metric>,
    /// Bytes or blocks.
    pub unit: Unit,
    /// What rows are.
    pub by: By,
    /// When; `None`: the newest snapshot.
    pub span: Option<Span>,
    /// To compare with.
    pub base: Option<Span>,
    /// The last account of this name, in place of a snapshot or the past.
    pub incident: Option<String>,
    /// Most rows.
    pub top: usize,
}

/// Parameters as they came.
#[derive(Default)]
struct Raw {
    from: Option<SystemTime>,
    to: Option<SystemTime>,
}

/// Pairs of names and values, as they came.
///
/// # Errors
/// If the query is none.
pub fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, Refusal> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri);
    query.map(|Query(pairs)| pairs).map_err(|error| Refusal::wrong(error.to_string()))
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            kind: Kind::Allocations,
            pids: Vec::new(),
            metric: None,
            unit: Unit::Bytes,
            by: By::Line,
            span: None,
            base: None,
            incident: None,
            top: DEFAULT_ROWS,
        }
    }
}

impl Asked {
    /// Reads the parameters of an endpoint that knows `known`.
    ///
    /// # Errors
    /// A refusal that names the first wrong one.
    pub fn parse(uri: &Uri, known: &[&str], now: SystemTime) -> Result<Self, Refusal> {
        let pairs = pairs(uri)?;
        check_names(&pairs, known)?;
        let mut asked = Self::default();
        let mut raw = Raw::default();
        for (name, value) in &pairs {
            asked.take(name, value, now, &mut raw)?;
        }
        asked.span = span(&raw, now)?;
        if asked.incident.is_some() && asked.span.is_some() {
            return Err(Refusal::wrong(
                "an incident is of one moment: leave out `from` and `to`, or `incident`",
            ));
        }
        if asked.metric == Some(Metric::Retained) && asked.unit == Unit::Count {
            return Err(Refusal::wrong("`retained` is known in bytes a second only: leave out `unit=count`"));
        }
        Ok(asked)
    }

    fn take(&mut self, name: &str, value: &str, now: SystemTime, raw: &mut Raw) -> Result<(), Refusal> {
        let wrong = |error: &dyn std::fmt::Display| Refusal::wrong(clean(&format!("{name}: {error}")));
        let when = |text: &str| moment::parse(text, now).map_err(|error| wrong(&error));
        match name {
            "kind" => self.kind = kind(value)?,
            "pid" => self.pids.push(pid(value)?),
            "metric" => self.metric = Some(value.parse().map_err(|error| wrong(&error))?),
            "unit" => self.unit = value.parse().map_err(|error| wrong(&error))?,
            "by" => self.by = value.parse().map_err(|error| wrong(&error))?,
            "incident" => self.incident = Some(value.to_owned()),
            "top" => self.top = top(value)?,
            "from" => raw.from = Some(when(value)?),
            "to" => raw.to = Some(when(value)?),
            "diff" => {
                let (from, to) = value.split_once('/').ok_or_else(|| {
                    Refusal::wrong("diff: give the stretch to compare with as FROM/TO, such as `-30m/-15m`")
                })?;
                self.base = Some(stretch(when(from)?, when(to)?)?);
            }
            // Others that the endpoint knows mean something to its page alone.
            _ => {}
        }
        if self.pids.len() > MOST_PIDS {
            return Err(Refusal::wrong(format!(
                "more than {MOST_PIDS} `pid`s: ask for fewer, or for all by leaving it out"
            )));
        }
        Ok(())
    }
}

fn check_names(pairs: &[(String, String)], known: &[&str]) -> Result<(), Refusal> {
    for (place, (name, _)) in pairs.iter().enumerate() {
        if !known.contains(&name.as_str()) {
            let list = if known.is_empty() {
                "none are known here".to_owned()
            } else {
                format!("use {}", known.join(", "))
            };
            return Err(Refusal::wrong(format!("unknown parameter `{}`: {list}", clean(name))));
        }
        if name != "pid" && pairs[..place].iter().any(|(before, _)| before == name) {
            return Err(Refusal::wrong(format!("`{name}` is given twice: give it once")));
        }
    }
    Ok(())
}

/// A text of a stranger, fit for an answer.
pub fn clean(text: &str) -> String {
    shorten(&visible(text), 200).into_owned()
}

fn kind(value: &str) -> Result<Kind, Refusal> {
    let known = || Kind::ALL.map(Kind::name).join(", ");
    let wrong = || Refusal::wrong(format!("unknown kind `{}`: use one of {}", clean(value), known()));
    Kind::ALL.into_iter().find(|kind| kind.name() == value).ok_or_else(wrong)
}

/// A process id.
///
/// # Errors
/// If it is none.
pub fn pid(value: &str) -> Result<u32, Refusal> {
    let pid = value.parse::<u32>().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| {
        Refusal::wrong(format!("pid: `{}` is no process id: give a number above 0", clean(value)))
    })
}

fn top(value: &str) -> Result<usize, Refusal> {
    let top = value.parse().ok().filter(|top| (1..=MOST_ROWS).contains(top));
    let wrong = || format!("top: `{}` is no number of rows: give one from 1 to {MOST_ROWS}", clean(value));
    top.ok_or_else(|| Refusal::wrong(wrong()))
}

fn span(raw: &Raw, now: SystemTime) -> Result<Option<Span>, Refusal> {
    match (raw.from, raw.to) {
        (None, None) => Ok(None),
        (from, to) => stretch(from.unwrap_or(UNIX_EPOCH), to.unwrap_or(now)).map(Some),
    }
}

fn stretch(from: SystemTime, to: SystemTime) -> Result<Span, Refusal> {
    if from < to {
        return Ok(Span { from, to });
    }
    let (from, to) = (moment::utc(from), moment::utc(to));
    Err(Refusal::wrong(format!("from {from} to {to} is no stretch of time: let it begin before it ends")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::response::IntoResponse as _;
    use proptest::prelude::*;

    use super::*;

    const ALL: [&str; 10] = ["pid", "metric", "unit", "by", "from", "to", "diff", "kind", "top", "incident"];

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_796_057_100)
    }

    fn parse(query: &str) -> Result<Asked, Refusal> {
        Asked::parse(&format!("/x?{query}").parse().unwrap(), &ALL, now())
    }

    #[test]
    fn every_parameter_is_understood() {
        let asked = parse(
            "pid=7&pid=8&metric=peak&unit=count&by=function&from=-15m&to=now&diff=-30m/-15m&kind=resident&top=5",
        );
        let ago = |minutes: u64| now() - Duration::from_secs(60 * minutes);
        let expected = Asked {
            kind: Kind::Resident,
            pids: vec![7, 8],
            metric: Some(Metric::Peak),
            unit: Unit::Count,
            by: By::Function,
            span: Some(Span { from: ago(15), to: now() }),
            base: Some(Span { from: ago(30), to: ago(15) }),
            incident: None,
            top: 5,
        };
        assert_eq!(asked, Ok(expected));
        assert_eq!(parse("to=-1m").unwrap().span, Some(Span { from: UNIX_EPOCH, to: ago(1) }));
        assert_eq!(parse("from=-1m").unwrap().span, Some(Span { from: ago(1), to: now() }));
        assert_eq!(parse("").unwrap().span, None);
        assert_eq!(
            parse("from=2026-11-30T18:00:00%2B02:00").unwrap().span,
            parse("from=2026-11-30T16:00:00Z").unwrap().span
        );
    }

    #[test]
    fn wrong_ones_say_what_is_right() {
        for (query, expected) in [
            ("pid=0", "pid: `0` is no process id"),
            ("pid=x", "pid: `x` is no process id"),
            ("metric=lives", "metric: unknown metric `lives`: use one of live"),
            ("unit=bits", "unit: unknown unit `bits`: use one of bytes, count"),
            ("by=colour", "by: unknown grouping `colour`: use one of line"),
            ("from=soon", "from: `soon` is no time"),
            ("from=now&to=-1m", "is no stretch of time"),
            ("diff=-1m", "diff: give the stretch"),
            ("diff=-1m/-2m", "is no stretch of time"),
            ("kind=all", "unknown kind `all`: use one of allocations, resident"),
            ("top=0", "top: `0` is no number of rows"),
            ("metric=live&metric=live", "`metric` is given twice"),
            ("colour=red", "unknown parameter `colour`: use pid, metric"),
            ("incident=x&from=-1m", "leave out `from` and `to`, or `incident`"),
            ("metric=retained&unit=count", "leave out `unit=count`"),
            ("a%E2%80%AEb=1", "unknown parameter `a\\u202eb`"),
        ] {
            let refusal = format!("{:?}", parse(query).unwrap_err()).replace("\\\\", "\\");
            assert!(refusal.contains(expected) && refusal.contains("400"), "{query}: {refusal}");
        }
        let many = "pid=1&".repeat(257);
        assert!(format!("{:?}", parse(&many).unwrap_err()).contains("more than 256"));
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "([a-z]{0,6}=[%0-9a-zA-Z+./:-]{0,12}&?){0,6}|(pid|metric|unit|by|from|to|diff|kind|top|incident)=[ -~&&[^<>\"` {}|\\\\^#]]{0,20}") {
            let Ok(uri) = format!("/x?{query}").parse() else { return Ok(()) };
            if let Err(refusal) = Asked::parse(&uri, &ALL, now()) {
                prop_assert_eq!(refusal.into_response().status(), 400);
            }
        }
    }
}
