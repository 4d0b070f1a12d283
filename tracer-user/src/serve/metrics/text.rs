//! The two forms of the text: OpenMetrics, and the older one of Prometheus.
//!
//! The library writes the first. In the second a counter's comments name it with its ending, and units have no line. It must not know what
//! figures mean.

use prometheus_client::{encoding::text, registry::Registry};

use super::families::Families;

/// A form of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `application/openmetrics-text`.
    OpenMetrics,
    /// `text/plain; version=0.0.4`.
    Classic,
}

impl Form {
    /// What a client's `Accept` asks for; the classic one where it does not say, since everything reads that.
    #[must_use]
    pub fn wanted(accept: &str) -> Self {
        let refused = |part: &str| part.replace(' ', "").ends_with(";q=0");
        let asks =
            accept.split(',').any(|part| part.contains("application/openmetrics-text") && !refused(part));
        if asks { Self::OpenMetrics } else { Self::Classic }
    }
}

/// The header's value.
#[must_use]
pub const fn content_type(form: Form) -> &'static str {
    match form {
        Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Form::Classic => "text/plain; version=0.0.4; charset=utf-8",
    }
}

/// The text.
pub fn encode(families: Families, form: Form) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(families));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(if form == Form::Classic { classic(&text) } else { text })
}

fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut counters = std::collections::HashSet::new();
    for line in open_metrics.lines() {
        if let Some(("counter", name)) = line
            .strip_prefix("# TYPE ")
            .and_then(|line| line.rsplit_once(' '))
            .map(|(name, kind)| (kind, name))
        {
            counters.insert(name);
        }
    }
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let comment =
            ["# HELP ", "# TYPE "].into_iter().find_map(|start| Some((start, line.strip_prefix(start)?)));
        match comment.and_then(|(start, rest)| Some((start, rest.split_once(' ')?))) {
            Some((start, (name, rest))) if counters.contains(name) => {
                text.extend([start, name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classic_form_names_counters_as_their_rows_do() {
        let open = "# HELP a_seconds Help, a_seconds.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total{x=\"# EOF\"} 1\n# HELP b B\n# TYPE b gauge\nb 2\n# EOF\n";
        let expected = "# HELP a_seconds_total Help, a_seconds.\n# TYPE a_seconds_total counter\na_seconds_total{x=\"# EOF\"} 1\n# HELP b B\n# TYPE b gauge\nb 2\n";
        assert_eq!(classic(open), expected);
    }

    #[test]
    fn clients_get_the_form_that_they_ask_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        assert_eq!(Form::wanted(prometheus), Form::OpenMetrics);
        for classic in ["", "*/*", "text/plain", "application/openmetrics-text; q=0, text/plain"] {
            assert_eq!(Form::wanted(classic), Form::Classic, "{classic}");
        }
    }
}
