//! What the programs cost: the kernel's own clock around each run of theirs.
//!
//! The kernel keeps it while somebody asks for it (`BPF_ENABLE_STATS`), at some 20 ns a run of any program of the host. It must not know
//! budgets.

use std::os::fd::{AsFd as _, OwnedFd};

use super::kernel::object_error;
use super::{AttachError, Kernel, syscall};

/// Runs of all programs that probe points start, since they were loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunStatistics {
    /// How many, while it was counted.
    pub runs: u64,
    /// How long they took together, what they continued in included.
    pub nanoseconds: u64,
}

impl RunStatistics {
    /// What has come since an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(earlier.runs),
            nanoseconds: self.nanoseconds.saturating_sub(earlier.nanoseconds),
        }
    }
}

/// Has the kernel count how long programs run, as long as what comes back is kept.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn keep_statistics() -> Result<OwnedFd, AttachError> {
    syscall::enable_statistics().map_err(object_error("statistics of programs"))
}

impl Kernel {
    /// What has been counted.
    pub fn run_statistics(&self) -> Result<RunStatistics, AttachError> {
        let mut sum = RunStatistics::default();
        for program in self.point_programs() {
            let (runs, nanoseconds) =
                syscall::run_statistics(program.as_fd()).map_err(object_error("statistics of a program"))?;
            sum.runs += runs;
            sum.nanoseconds += nanoseconds;
        }
        Ok(sum)
    }
}
