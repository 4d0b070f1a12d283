//! A trial: everything that a recording loads, and one probe, armed and disarmed in this very process.
//!
//! Why: no list of capabilities, settings and versions says for sure that a kernel takes our programs; the kernel does.

use std::path::Path;

use tracer_ebpf::abi::Cookie;

use super::{AttachError, Kernel, Mechanism, ProbePoint, Program, TableSizes};
use crate::plan::elf::Elf;

const OWN_PROGRAM: &str = "/proc/self/exe";

/// Loads all programs as a recording does, and arms a probe at our own entry point, which is behind us and never runs again.
///
/// # Errors
/// What a recording would end with.
pub fn trial(mechanism: Mechanism) -> Result<(), AttachError> {
    let path = Path::new(OWN_PROGRAM);
    let failed = |source| AttachError::Arm { points: 1, file: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(failed)?;
    let elf = Elf::parse(&bytes).map_err(|error| failed(std::io::Error::other(error)))?;
    let offset = elf.offset_of(elf.entry());
    let offset = offset.ok_or_else(|| failed(std::io::Error::other("no entry point in our own program")))?;
    let mut kernel = Kernel::load(TableSizes::default(), mechanism)?;
    kernel
        .arm(Program::Empty, path, std::process::id(), &[ProbePoint { offset, cookie: Cookie(0) }])
        .map(drop)
}
