//! What can be traced here: a look at the host and at every Python process, without recording anything.
//!
//! Facts are gathered below roots that tests can fake (`seen.rs`, `facts.rs`); what they mean is pure (`verdict.rs`, `checks.rs`).
//! It must not know terminals or formats, and it loads nothing into the kernel: what only the kernel can answer is handed in.

mod binary;
mod checks;
mod facts;
mod processes;
mod seen;
mod verdict;

pub use checks::{Check, Health, checks, processes as check_processes};
pub use facts::{CacheFolder, Capabilities, Facts, KernelAnswers};
pub use processes::{PythonProcess, pythons};
pub use seen::Namespace;
pub use verdict::{Build, CLibrary, Obstacle, Tracing};
