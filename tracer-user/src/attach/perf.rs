//! Kernels without `uprobe_multi` (before 6.6): aya loads the programs and opens a perf event for each point.
//!
//! It must not know what the programs do.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope};

use super::AttachError;
use super::armed::{Armed, Links};
use super::kernel::{Kernel, ProbePoint, missing, object_error};
use super::programs::{CONTINUED, FIND_THREAD, Program};

/// Loads every program.
pub fn load(kernel: &Kernel, ebpf: &mut Ebpf) -> Result<(), AttachError> {
    let continued = CONTINUED.into_iter().chain([FIND_THREAD]);
    let programs = Program::ALWAYS.into_iter().chain([Program::PagePop]).map(Program::name);
    for name in programs.chain(continued.clone().map(|(_, name)| name)) {
        let program = ebpf.program_mut(name).ok_or_else(|| missing("programs"))?;
        let program: &mut UProbe = program.try_into().map_err(object_error(name))?;
        program.load().map_err(object_error(name))?;
    }
    for (slot, name) in continued {
        let program = ebpf.program(name).ok_or_else(|| missing(name))?;
        let program: &UProbe = program.try_into().map_err(object_error(name))?;
        kernel.set_continued(slot, program.fd().map_err(object_error(name))?.as_fd())?;
    }
    Ok(())
}

/// Arms points, one perf event each.
pub fn arm(
    ebpf: &mut Ebpf,
    program: Program,
    path: &Path,
    pid: u32,
    points: &[ProbePoint],
) -> Result<Armed, AttachError> {
    let code = ebpf.program_mut(program.name()).ok_or_else(|| missing(program.name()))?;
    let code: &mut UProbe = code.try_into().map_err(object_error(program.name()))?;
    let scope = std::num::NonZeroU32::new(pid).map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
    let mut links = Vec::with_capacity(points.len());
    for point in points {
        let at = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(point.offset.0),
            cookie: Some(point.cookie.0),
        };
        let link = code.attach(at, path, scope).and_then(|link| code.take_link(link));
        links.push(link.map_err(|error| AttachError::Arm {
            points: points.len(),
            file: path.to_owned(),
            source: io::Error::other(error),
        })?);
    }
    Ok(Armed { _links: Links::Perf { _links: links } })
}
