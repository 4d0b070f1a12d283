//! A profile as Pyroscope's ingest API takes it: a form of two files, our own pprof and what its values mean, posted to an address that names service, labels and time.
//!
//! Processes with the same labels go together. Pure: values in, a request out. It must not know HTTP, nor who asks.

use std::{fmt::Write as _, time::SystemTime};

use serde_json::json;

use super::{
    labels::{Labels, SERVICE},
    minute::{Minute, part},
};
use crate::{
    profile::{Metric, Profile, pprof},
    serve::{history::Span, state::Kind},
};

/// Where it is posted to, after the address of the receiver.
pub const PATH: &str = "/ingest";
/// Labels that are sent at most: receivers refuse series with more than some thirty.
const MOST_LABELS: usize = 24;

/// Processes of a profile that have the same labels, by their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Their labels.
    pub labels: Labels,
    /// Their places.
    pub processes: Vec<usize>,
}

/// What to post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// What comes behind the address.
    pub query: String,
    /// Says where the parts of the body end.
    pub content_type: String,
    /// The form.
    pub body: Vec<u8>,
}

/// Puts processes with the same labels together, in the order of the first of each.
pub fn groups(labels: &[Labels]) -> Vec<Group> {
    let mut groups: indexmap::IndexMap<&Labels, Vec<usize>, rustc_hash::FxBuildHasher> = Default::default();
    for (place, labels) in labels.iter().enumerate() {
        groups.entry(labels).or_default().push(place);
    }
    groups.into_iter().map(|(labels, processes)| Group { labels: labels.clone(), processes }).collect()
}

/// The request for one group; `None`: nothing of it is in the profile.
///
/// # Errors
/// If the profile has no pprof form.
pub fn form(minute: &Minute, group: &Group) -> Result<Option<Form>, pprof::EncodeError> {
    let part = part(&minute.profile, &group.processes);
    if part.is_empty() {
        return Ok(None);
    }
    let boundary = format!("alloctrace-{:032x}", minute.id);
    let mut body = Vec::new();
    let profile = pprof::encode(&part)?;
    file(&mut body, &boundary, "profile", "profile.pprof", &profile);
    let types = sample_types(&part).to_string();
    file(&mut body, &boundary, "sample_type_config", "sample_type_config.json", types.as_bytes());
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok(Some(Form {
        query: query(minute.kind, minute.span, &group.labels),
        content_type: format!("multipart/form-data; boundary={boundary}"),
        body,
    }))
}

/// One file of a form.
fn file(body: &mut Vec<u8>, boundary: &str, name: &str, file_name: &str, content: &[u8]) {
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file_name}\"\r\nContent-Type: application/octet-stream\r\n\r\n"
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n");
}

/// What the values that are known mean. What is allocated adds up over time; of what lives the mean says more. Others of our pprof are not named, and so not kept.
fn sample_types(profile: &Profile) -> serde_json::Value {
    let mut types = serde_json::Map::new();
    for (metric, stem, aggregation) in
        [(Metric::Allocated, "alloc", "sum"), (Metric::Live, "inuse", "average")]
    {
        for (ending, units) in [("objects", "objects"), ("space", "bytes")] {
            if profile.knows(metric) {
                let display_name = format!("{stem}_{ending}");
                let meaning = json!({
                    "units": units, "aggregation": aggregation, "display-name": display_name,
                    "sampled": false, "cumulative": false,
                });
                types.insert(display_name, meaning);
            }
        }
    }
    types.into()
}

/// The query: the name with its labels, and the time in seconds.
fn query(kind: Kind, span: Span, labels: &Labels) -> String {
    let seconds =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let from = seconds(span.from);
    let until = seconds(span.to).max(from + 1);
    format!(
        "?name={}&from={from}&until={until}&format=pprof&spyName=alloctrace",
        encoded(&name(kind, labels))
    )
}

/// `service{label=value,…}`. Resident memory is a service of its own there: the same names of values would be added up.
fn name(kind: Kind, labels: &Labels) -> String {
    let service = labels.get(SERVICE).map_or("unknown_service", String::as_str);
    let mut name: String =
        service.chars().map(|character| if is_of_names(character) { character } else { '_' }).collect();
    if kind == Kind::Resident {
        name.push_str(".resident");
    }
    let mut taken = std::collections::BTreeMap::new();
    for (label, value) in labels.iter().filter(|(label, _)| *label != SERVICE) {
        taken.entry(label_name(label)).or_insert_with(|| label_value(value));
    }
    let pairs = taken.iter().take(MOST_LABELS).map(|(label, value)| format!("{label}={value}"));
    format!("{name}{{{}}}", pairs.collect::<Vec<_>>().join(","))
}

/// What Pyroscope takes in the name of a service.
fn is_of_names(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._/ ".contains(character)
}

/// Labels there are words: `k8s.pod.name` is `k8s_pod_name`.
fn label_name(name: &str) -> String {
    let is_of_words = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let word: String =
        name.chars().map(|character| if is_of_words(character) { character } else { '_' }).collect();
    if word.starts_with(|first: char| first.is_ascii_digit()) { format!("_{word}") } else { word }
}

/// Without what ends a value there.
fn label_value(value: &str) -> String {
    let ends = |character: char| ",={}\"".contains(character) || character.is_control();
    value.chars().map(|character| if ends(character) { '_' } else { character }).collect()
}

/// Percent-encoded, all but what needs no encoding anywhere (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len() * 2), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_hold_nothing_that_ends_them() {
        let hostile = labels(&[
            ("service.name", "a{b}=c"),
            ("k8s.pod.name", "x,y=\"z\"}\n"),
            ("9", "ü"),
            ("a.b", "1"),
            ("a-b", "2"),
        ]);
        assert_eq!(name(Kind::Allocations, &hostile), "a_b__c{_9=ü,a_b=2,k8s_pod_name=x_y__z___}");
        assert_eq!(name(Kind::Resident, &labels(&[("service.name", "shop")])), "shop.resident{}");
        assert_eq!(name(Kind::Allocations, &Labels::new()), "unknown_service{}");
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("a{b=ü}&c d/~"), "a%7Bb%3D%C3%BC%7D%26c%20d%2F~");
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let span = Span { from: at(60), to: at(60) };
        assert!(query(Kind::Allocations, span, &Labels::new()).contains("&from=60&until=61&format=pprof"));
    }

    #[test]
    fn processes_with_the_same_labels_go_together() {
        let (one, other) = (labels(&[("a", "1")]), labels(&[("a", "2")]));
        let found = groups(&[one.clone(), other.clone(), one.clone()]);
        assert_eq!(
            found,
            [Group { labels: one, processes: vec![0, 2] }, Group { labels: other, processes: vec![1] }]
        );
    }

    #[test]
    fn no_more_labels_than_receivers_take() {
        let many: Labels = (0..60).map(|number| (format!("l{number}"), "v".to_owned())).collect();
        assert_eq!(name(Kind::Allocations, &many).matches('=').count(), MOST_LABELS);
    }
}
