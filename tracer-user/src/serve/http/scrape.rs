//! `/metrics`: gathers the facts that `serve::metrics` makes a text of.
//!
//! It must not know names of figures.

use std::{
    fs,
    sync::{Arc, PoisonError},
};

use axum::{
    extract,
    http::{HeaderMap, header},
    response::Response,
};
use tokio::task::spawn_blocking;

use super::{
    Site,
    answer::{Made, Refusal},
};
use crate::serve::metrics::{self, Facts, Form, Own};

/// `/metrics`
///
/// Not made in the workshop: who watches us must hear from us also when others ask for a lot. It is small, whatever is recorded.
pub async fn metrics(
    extract::State(site): extract::State<Arc<Site>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = Form::wanted(accept);
    let work = spawn_blocking(move || {
        let now = site.source().now();
        let facts = Facts { now: &now, kept: site.source().kept(), own: own(), redactor: site.redactor() };
        // Who panics while it is held leaves a table that the next one brings up to date.
        let mut shown = site.shown.lock().unwrap_or_else(PoisonError::into_inner);
        metrics::write(&facts, &mut shown, form).map_err(|error| Refusal::fault(&error))
    });
    let text = work.await.map_err(|error| Refusal::fault(&error))??;
    Ok(Made::new(metrics::content_type(form), text.into_bytes()).respond(None))
}

/// What this process takes, as the kernel counts it; `None` where `/proc` is not there.
fn own() -> Option<Own> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name in parentheses, which may hold anything: field 3 is the first.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let cpu_ticks = ticks(14)?.checked_add(ticks(15)?)?;
    Some(Own {
        cpu_seconds: cpu_ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        resident_bytes: ticks(24)?.saturating_mul(rustix::param::page_size() as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_we_take() {
        let own = own().unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kibibytes: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
        let difference = own.resident_bytes.abs_diff(resident_kibibytes << 10);
        assert!(difference < 8 << 20, "{own:?} and {line}");
        assert!(own.cpu_seconds < 1e6);
    }
}
