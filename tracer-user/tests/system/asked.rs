//! Questions to a profile, and the figures that programs of known size should have.

use std::collections::HashSet;

use alloctrace::profile::{Amount, Coverage, Domain, FrameKind, Losses, Metric, Profile, Sample};
use anyhow::{Result, bail, ensure};

/// Questions to a profile.
pub struct Asked<'a>(pub &'a Profile);

impl Asked<'_> {
    /// The frames of a sample, innermost first.
    pub fn frames<'b>(&'b self, sample: &'b Sample) -> impl Iterator<Item = &'b alloctrace::profile::Frame> {
        sample.stack.iter().filter_map(|id| self.0.frames.get_index(id.0 as usize))
    }

    /// The innermost frame's function; a reason where it is none.
    pub fn innermost<'b>(&'b self, sample: &'b Sample) -> &'b str {
        self.frames(sample).next().map_or("", |frame| &frame.function)
    }

    /// The sum over samples for which `is_asked` holds.
    pub fn sum(&self, metric: Metric, is_asked: impl Fn(&Sample) -> bool) -> Amount {
        let samples = self.0.samples.iter().filter(|sample| is_asked(sample));
        samples.fold(Amount::default(), |sum, sample| sum.plus(sample.amount(metric)))
    }

    /// The sum over stacks whose innermost function is `function`.
    pub fn function(&self, metric: Metric, domain: Domain, function: &str) -> Amount {
        self.sum(metric, |sample| sample.domain == domain && self.innermost(sample) == function)
    }

    /// The names of the Python functions of every sample, outermost first.
    pub fn stacks(&self) -> HashSet<Vec<String>> {
        let names = |sample| {
            let mut names: Vec<String> = self.frames(sample).map(|frame| frame.function.clone()).collect();
            names.reverse();
            names
        };
        self.0.samples.iter().map(names).collect()
    }

    /// Whether `names` follow one another, outermost first, in some stack.
    pub fn has_stack(&self, names: &[&str]) -> bool {
        self.stacks().iter().any(|stack| stack.windows(names.len()).any(|part| part == names))
    }

    /// Every reason that stands in place of a frame.
    pub fn markers(&self) -> HashSet<&str> {
        self.0
            .frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Marker)
            .map(|frame| &*frame.function)
            .collect()
    }

    /// Shares of allocations and frees seen, as far as the pools can tell.
    pub fn coverage(&self) -> Result<(f64, f64)> {
        match &self.0.recording.coverage {
            // A target that runs while its pools are read is counted at no single moment (CI: 0.1 % in 20 ms).
            Coverage::Measured { allocations, frees, uncertainty, .. } => {
                Ok(((allocations + uncertainty).min(1.0), (frees + uncertainty).min(1.0)))
            }
            Coverage::Unmeasured { unmeasured } => bail!("coverage was not measured: {unmeasured}"),
        }
    }

    /// Fails unless everything was seen and nothing lost.
    pub fn is_whole(&self) -> Result<()> {
        let (allocations, frees) = self.coverage()?;
        ensure!(
            allocations >= 0.999 && frees >= 0.999,
            "coverage {allocations} of allocations, {frees} of frees"
        );
        self.has_lost_nothing()
    }

    /// Python functions whose line is not known, but for those of code that `exec` has made.
    pub fn frames_without_a_line(&self) -> Vec<&str> {
        let python = self.0.frames.iter().filter(|frame| frame.kind == FrameKind::Python && frame.line == 0);
        python
            .filter(|frame| frame.file.as_deref() != Some("<string>"))
            .map(|frame| &*frame.function)
            .collect()
    }

    /// Fails if anything was lost for good.
    pub fn has_lost_nothing(&self) -> Result<()> {
        // A record that found the ring buffer full, because the tracer had no processor, is sent again: its stack or its name
        // would be missing if it was not.
        let mut losses = Losses { ring_full: 0, ..self.0.recording.losses.clone() };
        // Code that `exec` makes and drops may be taken for other code that was at its address before: see the ignored
        // test of code at one address.
        if self.frames_without_a_line().is_empty() {
            losses.unresolved_frames = 0;
        }
        ensure!(losses == Losses::default(), "lost: {:?}", self.0.recording.losses);
        let missing = self.markers().into_iter().find(|marker| marker.contains("not received"));
        ensure!(missing.is_none(), "{missing:?}: {:?}", self.0.recording.losses);
        Ok(())
    }
}

/// Bytes and blocks.
pub fn amount(bytes: u64, count: u64) -> Amount {
    Amount { bytes, count }
}

/// What pymalloc spends on a request.
pub fn size_class(bytes: u64) -> u64 {
    bytes.next_multiple_of(16)
}
