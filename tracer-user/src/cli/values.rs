//! Flag values that several verbs share, as clap parsers with their possible values in help and completions.
//!
//! It must not know what verbs do with them.

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
    /// With the profile's own default where no metric was asked for.
    pub fn options(self, profile: &Profile) -> Options {
        Options { metric: self.metric.unwrap_or_else(|| profile.default_metric()), unit: self.unit }
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

/// The parser of `--by`.
pub fn by() -> impl TypedValueParser<Value = By> {
    PossibleValuesParser::new(By::ALL.map(By::name)).try_map(|name| name.parse::<By>())
}
