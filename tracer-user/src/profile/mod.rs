//! Stage 6: the one value that every output takes.
//!
//! It must not know how it was recorded, nor any output format (the pprof encoding on disk lives in `pprof.rs`).

pub mod combine;
mod estimated;
mod figures;
mod labels;
mod losses;
pub mod metric;
mod places;
pub mod pprof;
pub(crate) mod proto;
mod read;
mod residence;
mod samples;
mod series;
mod stack;
mod windows;
mod wire;

use indexmap::IndexSet;

pub use self::losses::{BLOCKS_BEFORE_ARMED, ENDED_STACKS, Losses};
pub use self::{
    estimated::{ErrorSum, Estimated, Growth, MILLION, Part, mean_age},
    figures::{Figures, Known, MallocBytes, PoolBytes, ResidentBytes},
    metric::{Metric, Unit, UnknownName},
    read::{FOREIGN_MODE, ReadError},
    residence::Residence,
    series::{Change, Look, Series, Verdict},
    stack::{Frames, Stack},
    windows::{Live, LiveBy, WindowSummary},
};

/// Bytes and blocks of one metric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// What the allocator spends: the size class for pymalloc blocks, the requested size for malloc blocks.
    pub bytes: u64,
    /// Number of blocks.
    pub count: u64,
}

/// The four metrics of one sample that are counted in every mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Values {
    /// Everything allocated while recording.
    pub allocated: Amount,
    /// Not freed when recording ended.
    pub live: Amount,
    /// Live at the moment when the process's live bytes were highest.
    pub peak: Amount,
    /// Freed before the allocating thread's next allocation.
    pub temporary: Amount,
}

/// Which allocator a block came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Domain {
    /// CPython's small-object allocator.
    Pymalloc,
    /// The C library's malloc family.
    Malloc,
    /// None: pages of resident anonymous memory.
    Resident,
}

/// What a frame is; outputs choose colours and text by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// A Python function.
    Python,
    /// A native function.
    Native,
    /// Not a frame but the reason why there is none, such as "interpreter start-up" or "stack truncated".
    Marker,
}

/// One resolved frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Python, native or a reason.
    pub kind: FrameKind,
    /// Qualified name where the interpreter has one (3.11+), else the plain name; for markers, the reason.
    pub function: String,
    /// Source file as the code object names it; for native frames the object file; `None` for markers.
    pub file: Option<String>,
    /// Line being executed, 1-based; 0 where unknown.
    pub line: u32,
    /// First line of the function; 0 where unknown.
    pub first_line: u32,
}

/// Index into [`Profile::frames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(pub u32);

/// Index into [`Profile::processes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessIndex(pub u32);

/// One (process, thread, domain, stack) and its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Whose memory it is.
    pub process: ProcessIndex,
    /// Thread id as the host sees it.
    pub thread: u32,
    /// Which allocator.
    pub domain: Domain,
    /// Innermost frame first; never empty (a marker where no Python frame was running).
    pub stack: Stack,
    /// What was counted.
    pub values: Values,
    /// In budget mode: what windows say beside that. In a box, since most recordings have none for any of their samples.
    pub estimated: Option<Box<Estimated>>,
}

/// One recorded process.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Process id as the host sees it.
    pub pid: u32,
    /// Command line, arguments joined by spaces.
    pub command: String,
    /// Interpreter version such as `3.12.1`.
    pub interpreter: String,
    /// How it came in, if it is not one that was asked for by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<Followed>,
    /// Whether it ended while others were recorded: what it held is gone, and its live memory is nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Files whose malloc was watched, as the process names them; profiles of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mallocs: Vec<String>,
    /// Memory of the process that the recording knows it could not see, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// What its objects came from, such as `pymalloc, then tracemalloc over pymalloc`; empty where it was not looked at.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub allocator: String,
    /// In growth mode: its stacks against the kernel's own figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residence: Option<Residence>,
    /// Requested, held, resident: what its memory was made of over time.
    #[serde(default, skip_serializing_if = "Series::is_empty")]
    pub memory: Series,
}

/// A process that was found by itself, and what is missing of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Followed {
    /// Process id of its parent; 0 where that is none that was followed.
    pub parent: u32,
    /// From its fork or exec until all its points were armed: what it did then was not seen.
    pub armed_after_nanoseconds: u64,
    /// Blocks of pymalloc that it took then and still held; `null` where that is not known.
    pub blocks_before: Option<u64>,
    /// How far that may be off: its pools changed while they were read.
    pub blocks_before_error: u64,
}

/// Share of true events that were seen, or why that is not known.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Coverage {
    /// Measured against the pools' own counters.
    Measured {
        /// Share of pymalloc allocations that were seen, 0.0 to 1.0.
        allocations: f64,
        /// Share of pymalloc frees that were seen.
        frees: f64,
        /// How far either share may be off, because the process ran while its pools were read; 0.0 if it stood still.
        #[serde(default)]
        uncertainty: f64,
        /// Processes of which that could not be measured, and which are not in the shares.
        #[serde(default)]
        unmeasured_processes: u32,
    },
    /// Not measured; the text says why.
    Unmeasured {
        /// The reason, one line.
        unmeasured: String,
    },
}

/// What recording cost.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Share of the target's CPU time spent in our probes, percent; `None` where it was not measured.
    pub target_percent: Option<f64>,
    /// CPU time of the tracer against wall time, percent.
    pub tracer_cpu_percent: f64,
}

/// How and when a profile was recorded.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Recording {
    /// `exact`, `budget` or `growth`.
    pub mode: String,
    /// Share of the target's progress that was seen; 1.0 is everything.
    pub seen_fraction: f64,
    /// Start, nanoseconds since the epoch.
    pub start_nanoseconds: u64,
    /// Length in nanoseconds.
    pub duration_nanoseconds: u64,
    /// The metric shown by default: `peak` for a finished command, else `live`.
    pub default_metric: String,
    /// See [`Coverage`].
    pub coverage: Coverage,
    /// Half the width of the 95 % interval of all live bytes; 0 unless blocks were thinned out.
    #[serde(default)]
    pub live_bytes_error: u64,
    /// In budget mode: what the estimates stand on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowSummary>,
    /// See [`Losses`].
    pub losses: Losses,
    /// See [`Cost`].
    pub cost: Cost,
    /// Allocation and free events counted.
    pub events: u64,
}

/// A whole recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// How it was recorded.
    pub recording: Recording,
    /// Recorded processes.
    pub processes: Vec<Process>,
    /// Frames that samples point to.
    pub frames: IndexSet<Frame, rustc_hash::FxBuildHasher>,
    /// The samples; no two have the same key.
    pub samples: Vec<Sample>,
}

impl Profile {
    /// Sum of one metric over all samples; saturates, so that it is safe on values from a file.
    pub fn total(&self, metric: Metric) -> Amount {
        self.samples.iter().fold(Amount::default(), |sum, sample| sum.plus(sample.amount(metric)))
    }

    /// The metric to show when none was asked for.
    pub fn default_metric(&self) -> Metric {
        self.recording.default_metric.parse().unwrap_or(Metric::Live)
    }

    /// Whether anything is known of a metric: windows see what is allocated, and only some what becomes of it.
    pub fn knows(&self, metric: Metric) -> bool {
        let Some(windows) = &self.recording.windows else { return metric != Metric::Retained };
        match metric {
            Metric::Allocated => true,
            Metric::Live => windows.knows_live,
            Metric::Peak => windows.is_live_by_pools(),
            Metric::Temporary => false,
            Metric::Retained => windows.tails > 0,
        }
    }

    /// Whether a metric is estimated from windows, with an error that may be known.
    pub fn estimates(&self, metric: Metric) -> bool {
        let Some(windows) = &self.recording.windows else { return false };
        self.knows(metric)
            && (metric != Metric::Live || !windows.is_live_by_pools())
            && metric != Metric::Peak
    }

    /// Half the width of the 95 % interval of a metric's bytes over all samples, where they were estimated and that is known.
    pub fn error(&self, metric: Metric) -> Option<u64> {
        let mut sum = ErrorSum::default();
        self.samples.iter().for_each(|sample| sum.add(sample.error(metric), sample.amount(metric).bytes));
        sum.half_width()
    }

    /// Whether nothing was recorded: no sample holds a byte or a block in any metric.
    pub fn is_empty(&self) -> bool {
        self.samples.iter().all(|sample| sample.values == Values::default())
    }
}

impl Sample {
    /// This sample's part of a metric. Of retained flow the bytes are those of a second, and no blocks are known.
    pub fn amount(&self, metric: Metric) -> Amount {
        let bytes = || estimated::bytes(&self.values, self.estimated.as_deref(), metric);
        metric.of(&self.values).unwrap_or_else(|| Amount { bytes: bytes(), count: 0 })
    }

    /// Half the width of the 95 % interval of its bytes, where it was estimated and that is known.
    pub fn error(&self, metric: Metric) -> Option<u64> {
        self.estimated.as_deref().and_then(|estimated| estimated.error(metric))
    }
}

impl Values {
    /// All metrics added, saturating. Peaks add up where they are of one moment, as those of one process are.
    pub fn plus(self, other: Self) -> Self {
        Self {
            allocated: self.allocated.plus(other.allocated),
            live: self.live.plus(other.live),
            peak: self.peak.plus(other.peak),
            temporary: self.temporary.plus(other.temporary),
        }
    }
}

impl Amount {
    /// Both parts added, saturating.
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), count: self.count.saturating_add(other.count) }
    }
}
