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
    profile::{Metric, Profile, Unit},
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

/// `--metric` and `--unit`.
#[derive(Debug, Clone, Copy, Args)]
pub struct What {
    /// What to show [default: peak for a finished command, else live]
    #[arg(long, value_name = "METRIC", value_parser = metric())]
    metric: Option<Metric>,
    /// Show bytes or number of blocks
    #[arg(long, value_name = "UNIT", default_value = "bytes", value_parser = unit())]
    unit: Unit,
}

impl What {
    /// Whether it is the metric for which it must be seen when most lives.
    pub fn is_peak(self) -> bool {
        self.metric == Some(Metric::Peak)
    }

    /// Whether it is the metric for which every free must be seen.
    pub fn is_temporary(self) -> bool {
        self.metric == Some(Metric::Temporary)
    }

    /// With the profile's own default where no metric was asked for.
    ///
    /// # Errors
    /// If the profile knows nothing of the metric: zeros would be wrong figures.
    pub fn options(self, profile: &Profile) -> anyhow::Result<Options> {
        let metric = self.metric.unwrap_or_else(|| profile.default_metric());
        if !profile.knows(metric) {
            bail!(
                "recorded in budget mode, which does not know `{metric}` here: use `--metric allocated`, or record with `--mode exact`"
            );
        }
        Ok(Options { metric, unit: self.unit })
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
