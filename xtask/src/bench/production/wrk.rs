//! Putting load on a service with `wrk`, and reading the figures that `mix.lua` has it print.
//!
//! wrk sends a connection's next request when the last is answered, so a service that stands still gets fewer requests and not a longer queue: its p99
//! is that of requests that were sent, not of those that would have been.

use crate::command::{Invocation, Runner};
use crate::workspace;
use anyhow::{Context as _, Result, ensure};

const CONNECTIONS: u32 = 4;
/// What `mix.lua` begins its line with.
const MARK: &str = "figures ";

/// What one run of wrk saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub requests_per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Load for so many seconds. A request that fails is an error: the figure would be of another program.
pub fn load(runner: &impl Runner, port: u16, seconds: u32) -> Result<Figures> {
    let script = workspace::root().join("xtask/bench/services/mix.lua").display().to_string();
    let wrk = Invocation::new("wrk").args([
        "--threads=1".to_owned(),
        format!("--connections={CONNECTIONS}"),
        format!("--duration={seconds}s"),
        "--timeout=30s".to_owned(),
        format!("--script={script}"),
        format!("http://127.0.0.1:{port}"),
    ]);
    parse(&runner.output(&wrk).context("cannot put load on the service; `cargo xtask setup` brings wrk")?)
}

fn parse(text: &str) -> Result<Figures> {
    let line = text.lines().find_map(|line| line.strip_prefix(MARK));
    let line = line.with_context(|| format!("wrk said `{}`, which has no figures", text.trim()))?;
    let values: serde_json::Value = serde_json::from_str(line)
        .with_context(|| format!("wrk's figures are `{line}`, which is no JSON"))?;
    let number = |name: &str| {
        values[name].as_f64().with_context(|| format!("wrk's figures are `{line}`, without `{name}`"))
    };
    let (requests, seconds) = (number("requests")?, number("microseconds")? / 1e6);
    ensure!(number("failed")? == 0.0, "wrk's figures are `{line}`; no request may fail");
    ensure!(requests > 0.0 && seconds > 0.0, "wrk's figures are `{line}`; nothing was answered");
    Ok(Figures {
        requests_per_second: requests / seconds,
        p50_ms: number("p50")? / 1e3,
        p99_ms: number("p99")? / 1e3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    const TEXT: &str = "Running 3s test @ http://127.0.0.1:8123\n  1 threads and 4 connections\nRequests/sec:    664.40\n\n\
        figures {\"requests\": 2007, \"microseconds\": 3020751, \"p50\": 5733, \"p99\": 19504, \"failed\": 0}\n";

    #[test]
    fn the_figures_are_read_from_the_scripts_line() {
        let figures = load(&Script::default().says("wrk --threads=1", TEXT), 8123, 3).unwrap();
        assert!((figures.requests_per_second - 664.4).abs() < 0.01, "{figures:?}");
        assert_eq!((figures.p50_ms, figures.p99_ms), (5.733, 19.504));
    }

    #[test]
    fn a_failed_request_is_an_error() {
        let error = parse(&TEXT.replace("\"failed\": 0", "\"failed\": 3")).unwrap_err();
        assert!(error.to_string().ends_with("no request may fail"), "{error}");
        assert!(parse(&TEXT.replace("2007", "0")).unwrap_err().to_string().ends_with("nothing was answered"));
    }

    #[test]
    fn what_has_no_figures_is_quoted() {
        assert_eq!(parse("nonsense\n").unwrap_err().to_string(), "wrk said `nonsense`, which has no figures");
        assert!(parse("figures nonsense").unwrap_err().to_string().contains("which is no JSON"));
        assert!(parse("figures {}").unwrap_err().to_string().contains("without `requests`"));
    }
}
