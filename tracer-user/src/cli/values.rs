//! Flag values that several verbs share, as clap parsers with their possible values in help and completions.
//!
//! It must not know what verbs do with them.

use anyhow::bail;
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::{
    output::{Options, aggregate::By},
    profile::{Live, Metric, Profile, Unit},
};

/// `--format`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// For people: human units, shortened names
    Table,
    /// For programs: everything that is known
    Json,
    /// For spreadsheets
    Csv,
}

/// A size such as `512MiB` or `2GB`, in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let wrong = || format!("`{text}` is no size: give one such as 512MiB or 2GB");
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).ok_or_else(wrong)?;
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// `NAME=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("`{text}` is no label: give one such as service.name=shop");
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    if name.is_empty() || value.is_empty() {
        return Err(wrong());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `--metric` and `--unit`.
#[derive(Debug, Clone, Copy, Args)]
pub struct What {
    /// What to show [default: peak for a finished command, else live]; `retained` is of budget mode with --pid: bytes a second that outlive a second
    #[arg(long, value_name = "METRIC", value_parser = metric())]
    metric: Option<Metric>,
    /// Show bytes or number of blocks
    #[arg(long, value_name = "UNIT", default_value = "bytes", value_parser = unit())]
    unit: Unit,
}

impl What {
    /// The metric that was asked for.
    pub fn metric(self) -> Option<Metric> {
        self.metric
    }

    /// With the profile's own default where no metric was asked for.
    ///
    /// # Errors
    /// If the profile knows nothing of the metric: zeros would be wrong figures.
    pub fn options(self, profile: &Profile) -> anyhow::Result<Options> {
        let metric = self.metric.unwrap_or_else(|| profile.default_metric());
        if !profile.knows(metric) {
            bail!(unknown(metric, profile));
        }
        if metric == Metric::Retained && self.unit == Unit::Count {
            bail!("`retained` is known in bytes a second only: leave out `--unit count`");
        }
        Ok(Options { metric, unit: self.unit })
    }
}

/// Why a profile does not know a metric, and what to do.
fn unknown(metric: Metric, profile: &Profile) -> String {
    let Some(windows) = &profile.recording.windows else {
        let mode = &profile.recording.mode;
        return format!(
            "recorded in {mode} mode, and only windows know `{metric}`: use `--metric live`, or record a process that runs with `--mode budget -p PID`"
        );
    };
    match (metric, windows.live()) {
        (Metric::Live, Live::Retained { why }) => {
            format!(
                "recorded in budget mode, which does not know `live` here ({why}): use `--metric retained`"
            )
        }
        (Metric::Retained, _) => format!(
            "recorded in budget mode without windows whose blocks were looked at for a second, which `{metric}` is told from: use `--metric allocated`, or record a process that runs with `-p PID`"
        ),
        _ => format!(
            "recorded in budget mode, which does not know `{metric}` here: use `--metric allocated`, or record with `--mode exact`"
        ),
    }
}

/// The parser of `--metric`.
pub fn metric() -> impl TypedValueParser<Value = Metric> {
    PossibleValuesParser::new(Metric::ALL.map(Metric::name)).try_map(|name| name.parse::<Metric>())
}

/// The parser of `--unit`.
pub fn unit() -> impl TypedValueParser<Value = Unit> {
    PossibleValuesParser::new(Unit::ALL.map(Unit::name)).try_map(|name| name.parse::<Unit>())
}

/// A share of something, above none, as `--budget` takes it.
pub fn percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim_end_matches(['%', ' ']).parse().map_err(|_| format!("`{text}` is no number"))?;
    if number > 0.0 && number <= 1000.0 {
        Ok(number)
    } else {
        Err("give a number above 0, up to 1000".to_owned())
    }
}

/// The parser of `--by`.
pub fn by() -> impl TypedValueParser<Value = By> {
    PossibleValuesParser::new(By::ALL.map(By::name)).try_map(|name| name.parse::<By>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("2 GB"), Ok(2_000_000_000));
        assert_eq!(size("7B"), Ok(7));
        for wrong in ["", "0B", "12", "MiB", "-1MiB", "1.5GiB", "99999999999TiB", "1XB"] {
            assert!(size(wrong).unwrap_err().contains("no size"), "{wrong}");
        }
    }

    #[test]
    fn labels() {
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        for wrong in ["", "a", "=b", "a="] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }
}
