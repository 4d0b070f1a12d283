//! Families of figures with their labels, and how the client library encodes them, in the order in which they were made.
//!
//! It must not know what figures mean.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Figures of one name.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    unit: Option<&'static str>,
    help: &'static str,
    is_counter: bool,
    /// One for each set of labels.
    pub rows: Vec<(Labels, Number)>,
}

/// Names and values.
pub type Labels = Vec<(&'static str, String)>;

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Bytes, and numbers of things.
    Whole(u64),
    /// Shares and seconds.
    Real(f64),
}

/// All that is told.
#[derive(Debug)]
pub struct Families(pub Vec<Family>);

impl Family {
    /// A figure that goes up and down. The unit becomes the end of its name.
    pub fn gauge(name: &'static str, unit: Option<&'static str>, help: &'static str) -> Self {
        Self { name, unit, help, is_counter: false, rows: Vec::new() }
    }

    /// A figure that only grows. `_total` becomes the end of its name.
    pub fn counter(name: &'static str, unit: Option<&'static str>, help: &'static str) -> Self {
        Self { is_counter: true, ..Self::gauge(name, unit, help) }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, labels: [(&'static str, &str); N], number: Number) {
        self.rows.push((labels.map(|(name, value)| (name, value.to_owned())).to_vec(), number));
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let unit = self.unit.map(|unit| Unit::Other(unit.to_owned()));
        let kind = if self.is_counter { MetricType::Counter } else { MetricType::Gauge };
        let mut encoder = encoder.encode_descriptor(self.name, self.help, unit.as_ref(), kind)?;
        for (labels, number) in &self.rows {
            if labels.is_empty() {
                // The library writes `{}` for an empty set.
                return self.value(*number, encoder);
            }
            self.value(*number, encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn value(&self, number: Number, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match (self.is_counter, number) {
            (true, Number::Whole(number)) => ConstCounter::new(number).encode(encoder),
            (true, Number::Real(number)) => ConstCounter::new(number).encode(encoder),
            (false, Number::Whole(number)) => ConstGauge::new(number).encode(encoder),
            (false, Number::Real(number)) => ConstGauge::new(number).encode(encoder),
        }
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}
