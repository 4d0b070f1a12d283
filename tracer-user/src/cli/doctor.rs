//! `alloctrace doctor`: kernel, privileges, interpreters: what works, what does not, why, and what to do.

use std::{path::Path, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};

use super::{FAILED, error_text, listing::Listing, ps, values::Format};
use crate::{
    attach::{self, Mechanism, known_kernels},
    output,
    plan::cache::PlanCache,
    survey::{CacheFolder, Check, Facts, Health, KernelAnswers, check_processes, checks},
};

/// Say whether tracing works here, and what to do where it does not
///
/// Looks at the kernel, at our privileges and at the Python processes. All programs are loaded, and one probe is armed in alloctrace itself. The exit
/// status is 0 where tracing can work and 2 where it cannot.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How to print the checks
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut found = look_at_host(true);
    let obstacle = found.iter().find_map(Check::obstacle);
    found.push(check_processes(&ps::survey(obstacle.as_ref())?));
    let worst = found.iter().map(|check| check.health).fold(Health::Ok, worse);
    output::produce(Path::new("-"), |writer| match arguments.format {
        Format::Table => {
            table(&found).write_table(writer)?;
            writeln!(writer, "\n{}", conclusion(worst)).map_err(output::OutputError::Write)
        }
        Format::Json => output::json::write_document(&document(&found, worst), writer),
        Format::Csv => table(&found).write_csv(writer),
    })?;
    Ok(if worst == Health::Fails { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// All checks of the host; with a trial where nothing speaks against one.
pub fn look_at_host(with_trial: bool) -> Vec<Check> {
    let facts = Facts::read(Path::new("/"));
    let is_safe = !matches!(known_kernels::verdict(&facts.release), known_kernels::Verdict::Refused(_));
    let mechanism = Mechanism::best();
    let trial = match &mechanism {
        Ok(mechanism) if with_trial && is_safe => {
            Some(attach::trial(*mechanism).map_err(|error| error_text(&error.into())))
        }
        _ => None,
    };
    let mechanism = mechanism.map(Mechanism::note).map_err(|error| error_text(&error.into()));
    checks(&facts, &KernelAnswers { mechanism, trial }, &cache_folder())
}

fn cache_folder() -> CacheFolder {
    let Some(cache) = PlanCache::usual() else { return CacheFolder { path: None, problem: None } };
    let problem = cache.check().err().map(|error| error.to_string());
    CacheFolder { path: Some(cache.directory().to_owned()), problem }
}

const fn worse(left: Health, right: Health) -> Health {
    match (left, right) {
        (Health::Fails, _) | (_, Health::Fails) => Health::Fails,
        (Health::Warning, _) | (_, Health::Warning) => Health::Warning,
        (Health::Ok, Health::Ok) => Health::Ok,
    }
}

const fn conclusion(worst: Health) -> &'static str {
    match worst {
        Health::Ok => "tracing works here",
        Health::Warning => "tracing works here; see the warnings",
        Health::Fails => "tracing does not work here; see what fails",
    }
}

const fn name(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Warning => "warning",
        Health::Fails => "fails",
    }
}

fn table(found: &[Check]) -> Listing {
    let row = |check: &Check| {
        let remedy = check.remedy.clone().unwrap_or_default();
        vec![check.name.to_owned(), name(check.health).to_owned(), check.finding.clone(), remedy]
    };
    Listing { columns: vec!["check", "state", "finding", "remedy"], rows: found.iter().map(row).collect() }
}

fn document(found: &[Check], worst: Health) -> Value {
    let object = |check: &Check| json!({"check": check.name, "state": check.health, "finding": check.finding, "remedy": check.remedy});
    let all: Vec<Value> = found.iter().map(object).collect();
    json!({"schema": 1, "state": worst, "can_trace": worst != Health::Fails, "checks": all})
}
