//! Gives up what the sidecar does not need any more, once it listens and before it records.
//!
//! Capabilities but for those that tracing takes, new privileges, and system calls that nothing of ours makes: to run a program, to mount, to load a module, to write to another's
//! memory. Landlock is not among it: a process in its own domain may not read the memory of those outside (security/landlock/task.c, `hook_ptrace_access_check`), which is what
//! tracing does. It must not know what is recorded.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// What tracing takes: programs and probes, reading others' memory and their files in their own roots, and coming before others.
const NEEDED: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYS_NICE);
/// Of those, what nothing works without.
const VITAL: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
];

/// System calls that are refused from now on, with EPERM. `process_vm_writev` and `ptrace` could change a target; the others change a host, or run what somebody brought.
const REFUSED: [i64; 21] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_add_key,
    libc::SYS_keyctl,
];

/// Why something could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A call to the kernel.
    #[error("failed to {what}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The filter.
    #[error("failed to make a filter of system calls")]
    Filter(#[from] seccompiler::Error),
    /// The same.
    #[error("failed to make a filter of system calls")]
    Backend(#[from] seccompiler::BackendError),
    /// An architecture that the filter does not know.
    #[error("no filter of system calls for this architecture: use --unconfined")]
    Architecture,
}

/// Names of capabilities that tracing needs and this process has not.
///
/// # Errors
/// If the kernel does not say.
pub fn missing() -> Result<Vec<&'static str>, ConfineError> {
    let sets = capabilities(None).map_err(kernel("ask for our capabilities"))?;
    // Before Linux 5.8 it was all of this; with it nothing is missing.
    if sets.effective.contains(CapabilitySet::SYS_ADMIN) {
        return Ok(Vec::new());
    }
    Ok(VITAL.iter().filter(|(one, _)| !sets.effective.contains(*one)).map(|(_, name)| *name).collect())
}

/// Gives up all that is not needed, for this thread and those that it starts from now on; call it before there are others.
///
/// # Errors
/// If the kernel refuses.
pub fn confine() -> Result<(), ConfineError> {
    let sets = capabilities(None).map_err(kernel("ask for our capabilities"))?;
    let kept = sets.permitted & NEEDED;
    let kept = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, kept).map_err(kernel("give up capabilities"))?;
    set_no_new_privs(true).map_err(kernel("give up new privileges"))?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(())
}

fn filter() -> Result<BpfProgram, ConfineError> {
    let architecture =
        TargetArch::try_from(std::env::consts::ARCH).map_err(|_| ConfineError::Architecture)?;
    let rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?;
    Ok(filter.try_into()?)
}

fn kernel(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> ConfineError {
    move |source| ConfineError::Kernel { what, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own, which alone is confined.
    #[test]
    fn who_is_confined_runs_no_program_and_reads_on() {
        let thread = std::thread::spawn(|| {
            confine().unwrap();
            let sets = capabilities(None).unwrap();
            assert!((sets.permitted & !NEEDED).is_empty() && sets.effective == sets.permitted, "{sets:?}");
            let program = std::process::Command::new("/bin/true").spawn();
            assert_eq!(program.unwrap_err().raw_os_error(), Some(libc::EPERM));
            assert!(!std::fs::read("/proc/self/maps").unwrap().is_empty());
        });
        thread.join().unwrap();
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    }
}
