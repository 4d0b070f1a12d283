//! What the host says of itself and of us, in `/proc` and `/sys`: facts, no verdicts.
//!
//! Everything may be missing or unreadable; then it is unknown. It must not know what follows from a fact.

use std::fs;
use std::path::{Path, PathBuf};

/// Capabilities by their bit (include/uapi/linux/capability.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Tracing other processes.
    pub const SYS_PTRACE: u32 = 19;
    /// Nearly everything.
    pub const SYS_ADMIN: u32 = 21;
    /// Performance events and tracing programs.
    pub const PERFMON: u32 = 38;
    /// bpf(2).
    pub const BPF: u32 = 39;
    /// Links in `map_files`.
    pub const CHECKPOINT_RESTORE: u32 = 40;

    /// Whether that one is there.
    pub const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Whether it is there, or CAP_SYS_ADMIN, which stands for those that were split off from it: `bpf_capable`,
    /// `perfmon_capable` and `checkpoint_restore_ns_capable` in include/linux/capability.h.
    pub const fn covers(self, bit: u32) -> bool {
        self.has(bit) || self.has(Self::SYS_ADMIN)
    }
}

/// What `/proc` and `/sys` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// As `uname -r` has it; empty where it is not known.
    pub release: String,
    /// Whether the kernel describes its types.
    pub has_kernel_types: bool,
    /// Whether the kernel lists uprobes among its event sources.
    pub has_uprobes: Option<bool>,
    /// What we may do.
    pub capabilities: Option<Capabilities>,
    /// Whether our user namespace is the host's.
    pub is_initial_user_namespace: Option<bool>,
    /// Whether our PID namespace is the host's.
    pub is_initial_pid_namespace: Option<bool>,
    /// Mode of the seccomp filter on us: 0 is none, 2 a filter.
    pub seccomp: Option<u64>,
    /// `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i64>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<i64>,
    /// `net.core.bpf_jit_enable`.
    pub bpf_jit_enable: Option<i64>,
    /// `kernel.yama.ptrace_scope`.
    pub ptrace_scope: Option<i64>,
    /// The option of that name of the mount at `/proc`.
    pub hidepid: Option<String>,
    /// Bytes that we may lock; `None`: unlimited or not known.
    pub locked_memory_limit: Option<u64>,
}

/// Numbers of the host's own namespaces (`PROC_USER_INIT_INO` and `PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_USER: &str = "user:[4026531837]";
const INITIAL_PID: &str = "pid:[4026531836]";

impl Facts {
    /// Reads them below `root` (`/`).
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let number = |path: &str| text(path)?.trim().parse::<i64>().ok();
        let status = text("proc/self/status").unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let namespace = |kind: &str, initial: &str| {
            let link = fs::read_link(root.join("proc/self/ns").join(kind)).ok()?;
            Some(link.as_os_str() == initial)
        };
        let sources = root.join("sys/bus/event_source/devices");
        Self {
            release: text("proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            has_kernel_types: root.join("sys/kernel/btf/vmlinux").exists(),
            has_uprobes: sources.exists().then(|| sources.join("uprobe").exists()),
            capabilities: field("CapEff")
                .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
                .map(Capabilities),
            is_initial_user_namespace: namespace("user", INITIAL_USER),
            is_initial_pid_namespace: namespace("pid", INITIAL_PID),
            seccomp: field("Seccomp").and_then(|mode| mode.trim().parse().ok()),
            lockdown: text("sys/kernel/security/lockdown").and_then(|modes| chosen(&modes)),
            perf_event_paranoid: number("proc/sys/kernel/perf_event_paranoid"),
            unprivileged_bpf_disabled: number("proc/sys/kernel/unprivileged_bpf_disabled"),
            bpf_jit_enable: number("proc/sys/net/core/bpf_jit_enable"),
            ptrace_scope: number("proc/sys/kernel/yama/ptrace_scope"),
            hidepid: text("proc/self/mountinfo").and_then(|mounts| hidepid(&mounts)),
            locked_memory_limit: text("proc/self/limits").and_then(|limits| locked_memory(&limits)),
        }
    }
}

/// The mode in brackets: `none [integrity] confidentiality`.
fn chosen(modes: &str) -> Option<String> {
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// The option of the topmost `proc` at `/proc`. Options of the file system come last in a line, its type behind ` - ` (proc(5)).
fn hidepid(mounts: &str) -> Option<String> {
    let line = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some("/proc"))?;
    let options = line.split_once(" - proc ")?.1.split(' ').nth(1)?;
    let value = options.split(',').find_map(|option| option.strip_prefix("hidepid="))?;
    Some(value.to_owned())
}

/// The soft limit of `Max locked memory`.
fn locked_memory(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What only the kernel itself can answer: how it arms probes, and whether it takes our programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelAnswers {
    /// How probes are armed and what to know about that, or why no program may be loaded.
    pub mechanism: Result<Option<&'static str>, String>,
    /// Whether all programs were loaded and a probe was armed in this very process; `None`: not tried.
    pub trial: Option<Result<(), String>>,
}

/// The folder of the plan cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFolder {
    /// Where it is; `None`: no place is known.
    pub path: Option<PathBuf>,
    /// Why nothing can be kept there.
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_as_its_files_have_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/sys/kernel/osrelease", "6.12.0-test\n");
        write("proc/self/status", "Name:\tx\nCapEff:\t000000c000080000\nSeccomp:\t2\n");
        write("proc/sys/kernel/perf_event_paranoid", "4\n");
        write("proc/sys/kernel/yama/ptrace_scope", "1\n");
        write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
        write("sys/kernel/btf/vmlinux", "");
        write(
            "proc/self/mountinfo",
            "20 1 0:19 / /proc rw,relatime shared:5 - proc proc rw,gid=4,hidepid=invisible\n21 1 0:20 / /sys rw - sysfs sysfs rw\n",
        );
        write(
            "proc/self/limits",
            "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         8388608              8388608              bytes\n",
        );
        fs::create_dir_all(root.path().join("sys/bus/event_source/devices/cpu")).unwrap();
        fs::create_dir_all(root.path().join("proc/self/ns")).unwrap();
        std::os::unix::fs::symlink("pid:[4026532000]", root.path().join("proc/self/ns/pid")).unwrap();
        std::os::unix::fs::symlink(INITIAL_USER, root.path().join("proc/self/ns/user")).unwrap();
        let facts = Facts::read(root.path());
        let capabilities = facts.capabilities.unwrap();
        assert!(capabilities.has(Capabilities::BPF) && capabilities.has(Capabilities::PERFMON));
        assert!(
            capabilities.has(Capabilities::SYS_PTRACE)
                && !capabilities.covers(Capabilities::CHECKPOINT_RESTORE)
        );
        let expected = Facts {
            release: "6.12.0-test".to_owned(),
            has_kernel_types: true,
            has_uprobes: Some(false),
            capabilities: Some(capabilities),
            is_initial_user_namespace: Some(true),
            is_initial_pid_namespace: Some(false),
            seccomp: Some(2),
            lockdown: Some("integrity".to_owned()),
            perf_event_paranoid: Some(4),
            ptrace_scope: Some(1),
            hidepid: Some("invisible".to_owned()),
            locked_memory_limit: Some(8 << 20),
            ..Facts::default()
        };
        assert_eq!(facts, expected);
    }

    #[test]
    fn an_empty_host_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Facts::read(root.path()), Facts::default());
    }

    #[test]
    fn this_host_knows_itself() {
        let facts = Facts::read(Path::new("/"));
        assert!(!facts.release.is_empty() && facts.capabilities.is_some() && facts.seccomp.is_some());
        assert!(facts.is_initial_pid_namespace.is_some());
    }

    #[test]
    fn unlimited_memory_is_no_limit() {
        assert_eq!(
            locked_memory("Max locked memory         unlimited            unlimited            bytes\n"),
            None
        );
    }
}
