//! Stage 3: plans into armed probe points.
//!
//! Only this stage and `drain` know aya, and only this stage makes system calls of its own. Whatever it arms belongs to file
//! descriptors: it is gone when they are dropped, also when the tracer is killed.

mod accounts;
mod armed;
mod ended;
mod followed;
mod kernel;
mod kernel_types;
pub mod known_kernels;
mod layout;
mod load;
mod mapped;
mod mechanism;
mod object;
mod own_memory;
mod pages;
mod perf;
mod programs;
mod readiness;
mod ring;
mod settings;
mod statistics;
mod syscall;
mod target;
mod trial;

pub use accounts::Allocated;
pub use armed::{Armed, Disarming, begin_to_disarm, disarm};
pub use ended::{AccountWords, SlotSet, close_accounts, forget_codes, take_blocks};
pub use kernel::{Kernel, ProbePoint, TableSizes};
pub use layout::kernel_layout;
pub use mechanism::Mechanism;
pub use own_memory::give_back_large_blocks;
pub use pages::{PageSet, Sorted, resident_anonymous, sort_pages};
pub use programs::Program;
pub use readiness::Readiness;
pub use ring::RingPositions;
pub use settings::Globals;
pub use statistics::{RunStatistics, keep_statistics};
pub use target::{FilePlan, Pops, Slot, Watch, arm};
pub use trial::trial;

use std::io;
use std::path::PathBuf;

/// What can go wrong between a plan and its armed points.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel does not describe its types.
    #[error(
        "failed to read the kernel's type information `{path}`: run on a kernel with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoKernelTypes {
        /// Where it should be.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The type information lacks what we need.
    #[error(
        "the kernel's type information has no `{member}`: this kernel is not supported yet, please report its version"
    )]
    UnknownKernelType {
        /// What was looked for.
        member: &'static str,
    },
    /// No permission for bpf(2).
    #[error(
        "the kernel refused `{call}`: run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE{extra}"
    )]
    Refused {
        /// Which call.
        call: &'static str,
        /// More that this mechanism needs.
        extra: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// In a container, on a kernel that cannot tell processes apart for us.
    #[error(
        "this kernel cannot be used from within a PID namespace: run alloctrace on the host, or use Linux 6.10 or later"
    )]
    Namespace,
    /// A kernel that is known to fail.
    #[error(
        "the kernel {release} is known to fail: {reason}; use another one, or take the risk with --any-kernel"
    )]
    BadKernel {
        /// What `uname -r` says.
        release: String,
        /// What is known.
        reason: &'static str,
    },
    /// The object in the binary could not be used.
    #[error(
        "failed to load the built-in eBPF object ({what}): please report this with your kernel's version"
    )]
    Object {
        /// Which part.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The verifier said no.
    #[error(
        "the kernel's verifier refused program `{program}`: please report this with your kernel's version; it said: {log}"
    )]
    Verifier {
        /// Which program.
        program: &'static str,
        /// The last lines of its log.
        log: String,
        /// What the call said.
        source: io::Error,
    },
    /// The points could not be armed.
    #[error("failed to arm {points} probe points in `{file}`")]
    Arm {
        /// How many.
        points: usize,
        /// Where.
        file: PathBuf,
        /// What the call said.
        source: io::Error,
    },
    /// Growth mode is not possible.
    #[error(
        "this kernel has no `{missing}`, which growth mode needs: use Linux 6.6 or later on x86-64, or another mode"
    )]
    NoPageFaults {
        /// What was looked for.
        missing: &'static str,
    },
    /// Points cannot be armed together.
    #[error(
        "this kernel has no uprobe_multi, which budget mode needs (Linux 6.6): record with `--mode growth` where the kernel has what that needs, or with `--mode exact` at its full cost"
    )]
    NoWindows,
    /// The process went away meanwhile.
    #[error("process {pid} ended before it was armed")]
    Gone {
        /// Which.
        pid: u32,
    },
    /// A map could not be read or written.
    #[error("failed to access the kernel table `{table}`")]
    Table {
        /// Which.
        table: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
