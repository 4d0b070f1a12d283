//! From facts about the host to checks: what is well, what is not, why, and what to do.
//!
//! Pure. The order is that in which a reader should mend things.

use super::facts::{CacheFolder, Capabilities, Facts, KernelAnswers};
use super::processes::PythonProcess;
use super::verdict::{Obstacle, Tracing};
use crate::attach::known_kernels::{Verdict, series, verdict};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All is well.
    Ok,
    /// Tracing works, with something to know.
    Warning,
    /// Tracing cannot work.
    Fails,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it ended.
    pub health: Health,
    /// What was found, and what that means.
    pub finding: String,
    /// What to do; `None` where there is nothing to be done.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, health: Health::Ok, finding: finding.into(), remedy: None }
    }

    fn not_ok(name: &'static str, health: Health, finding: impl Into<String>, remedy: &str) -> Self {
        Self { name, health, finding: finding.into(), remedy: Some(remedy.to_owned()) }
    }

    fn warning(name: &'static str, finding: impl Into<String>, remedy: &str) -> Self {
        Self::not_ok(name, Health::Warning, finding, remedy)
    }

    fn fails(name: &'static str, finding: impl Into<String>, remedy: &str) -> Self {
        Self::not_ok(name, Health::Fails, finding, remedy)
    }

    /// What a failed check means for every process.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let remedy = self.remedy.clone().unwrap_or_default();
        (self.health == Health::Fails)
            .then(|| Obstacle::new(format!("{}: {}", self.name, self.finding), remedy))
    }
}

/// The oldest kernel that recordings were tested on.
const OLDEST_TESTED: (u32, u32) = (6, 1);
/// From here on maps are not counted as locked memory (commit 97306be45fbe and those before it).
const FIRST_WITHOUT_LOCKED_MAPS: (u32, u32) = (5, 11);
/// What the tables of a recording take; see docs/ARCHITECTURE.md.
const TABLE_BYTES: u64 = 64 << 20;
const AS_ROOT: &str = "run as root, or give it CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE";

/// All checks of the host, in the order in which things should be mended.
pub fn checks(facts: &Facts, answers: &KernelAnswers, cache: &CacheFolder) -> Vec<Check> {
    let mut all = vec![architecture(), kernel(facts), kernel_types(facts)];
    all.extend(capabilities(facts));
    all.push(user_namespace(facts));
    all.push(pid_namespace(facts, answers));
    all.push(lockdown(facts));
    all.push(seccomp(facts, answers));
    all.push(uprobes(facts));
    all.push(mechanism(answers));
    all.extend(answers.trial.as_ref().map(trial));
    all.push(ptrace_scope(facts));
    all.push(hidepid(facts));
    all.push(locked_memory(facts));
    all.push(jit(facts));
    all.extend(settings(facts));
    all.push(plan_cache(cache));
    all
}

/// What the processes of the host come to.
pub fn processes(found: &[PythonProcess]) -> Check {
    const NAME: &str = "python processes";
    let count = |is: fn(&Tracing) -> bool| found.iter().filter(|process| is(&process.tracing)).count();
    let whole = count(|tracing| *tracing == Tracing::Yes);
    let partly = count(|tracing| matches!(tracing, Tracing::Partly(_)));
    let none = found.len() - whole - partly;
    let finding = format!("{} found: {whole} can be traced, {partly} partly, {none} cannot", found.len());
    match (partly, none) {
        (0, 0) => Check::ok(NAME, finding),
        _ => Check::warning(NAME, finding, "see `alloctrace ps`"),
    }
}

fn architecture() -> Check {
    let name = std::env::consts::ARCH;
    if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Check::ok("architecture", name);
    }
    Check::fails("architecture", format!("{name} is not supported"), "use a host with x86_64 or arm64")
}

fn kernel(facts: &Facts) -> Check {
    const NAME: &str = "kernel";
    const ANOTHER: &str = "use another kernel, or take the risk with `record --any-kernel`";
    let release = &facts.release;
    match verdict(release) {
        Verdict::Refused(reason) => Check::fails(NAME, format!("{release}: {reason}"), ANOTHER),
        Verdict::Warned(reason) => Check::warning(NAME, format!("{release}: {reason}"), ANOTHER),
        Verdict::Fine => match series(release) {
            Some(found) if found < OLDEST_TESTED => Check::warning(
                NAME,
                format!("{release} is older than any that was tested"),
                "use Linux 6.1 or later",
            ),
            Some(_) => Check::ok(NAME, format!("{release}; nothing is known against it")),
            None => Check::warning(NAME, format!("cannot tell the version of `{release}`"), "see `uname -r`"),
        },
    }
}

fn kernel_types(facts: &Facts) -> Check {
    const NAME: &str = "kernel type information";
    if facts.has_kernel_types {
        return Check::ok(NAME, "/sys/kernel/btf/vmlinux is there");
    }
    Check::fails(
        NAME,
        "/sys/kernel/btf/vmlinux is missing",
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys",
    )
}

fn capabilities(facts: &Facts) -> Vec<Check> {
    let Some(found) = facts.capabilities else {
        return vec![Check::warning("capabilities", "unknown: /proc/self/status cannot be read", AS_ROOT)];
    };
    let needed = |name, bit, purpose: &str| match found.covers(bit) {
        true => Check::ok(name, format!("present; {purpose}")),
        false => Check::fails(name, format!("missing; {purpose}"), AS_ROOT),
    };
    let mut all = vec![
        needed("CAP_BPF", Capabilities::BPF, "for maps and programs"),
        needed("CAP_PERFMON", Capabilities::PERFMON, "for probes, and for reading a target's memory in them"),
    ];
    // The one that CAP_SYS_ADMIN does not stand for (`ptrace_has_cap`, kernel/ptrace.c).
    all.push(match found.has(Capabilities::SYS_PTRACE) {
        true => Check::ok("CAP_SYS_PTRACE", "present; for reading what other users' processes have mapped"),
        false => Check::fails(
            "CAP_SYS_PTRACE",
            "missing; for reading what other users' processes have mapped",
            AS_ROOT,
        ),
    });
    all.push(match found.covers(Capabilities::CHECKPOINT_RESTORE) {
        true => Check::ok("CAP_CHECKPOINT_RESTORE", "present, or CAP_SYS_ADMIN; for interpreters whose file was deleted or replaced"),
        false => Check::warning(
            "CAP_CHECKPOINT_RESTORE",
            "missing; interpreters whose file was deleted or replaced, or that run below a plain chroot, cannot be read",
            "add CAP_CHECKPOINT_RESTORE, or run as root",
        ),
    });
    all
}

fn user_namespace(facts: &Facts) -> Check {
    const NAME: &str = "user namespace";
    match facts.is_initial_user_namespace {
        Some(true) => Check::ok(NAME, "the host's"),
        Some(false) => Check::fails(
            NAME,
            "not the host's: capabilities are worth nothing outside of it",
            "run outside of rootless containers and `unshare --user`",
        ),
        None => Check::warning(NAME, "unknown", "mount /proc"),
    }
}

/// Without the links' own filter by process the kernel half would have to know the host's numbers.
fn pid_namespace(facts: &Facts, answers: &KernelAnswers) -> Check {
    const NAME: &str = "PID namespace";
    match facts.is_initial_pid_namespace {
        Some(true) => Check::ok(NAME, "the host's"),
        Some(false) if matches!(answers.mechanism, Ok(Some(_))) => Check::fails(
            NAME,
            "not the host's, and this kernel cannot tell processes apart in one",
            "run on the host or in its PID namespace (`docker run --pid=host`, `hostPID: true`), or use Linux 6.10 or later",
        ),
        Some(false) => Check::ok(NAME, "not the host's; processes have the numbers that they have here"),
        None => Check::warning(NAME, "unknown", "mount /proc"),
    }
}

/// `confidentiality` keeps programs from reading kernel memory (LOCKDOWN_BPF_READ_KERNEL, kernel/bpf/helpers.c), which we do for the
/// thread pointer.
fn lockdown(facts: &Facts) -> Check {
    const NAME: &str = "lockdown";
    match facts.lockdown.as_deref() {
        Some("confidentiality") => Check::fails(
            NAME,
            "confidentiality: programs may not read the kernel's memory",
            "boot with lockdown=integrity or without lockdown",
        ),
        Some(mode) => Check::ok(NAME, mode),
        None => Check::ok(NAME, "none, or not readable"),
    }
}

fn seccomp(facts: &Facts, answers: &KernelAnswers) -> Check {
    const NAME: &str = "seccomp";
    match (facts.seccomp, &answers.mechanism) {
        (Some(0), _) => Check::ok(NAME, "no filter"),
        (_, Ok(_)) => Check::ok(NAME, "a filter, which lets bpf(2) pass"),
        (_, Err(_)) => Check::warning(
            NAME,
            "a filter, which may be what refuses bpf(2)",
            "let it allow bpf and perf_event_open, as container runtimes do for CAP_BPF, CAP_PERFMON or --privileged",
        ),
    }
}

fn uprobes(facts: &Facts) -> Check {
    const NAME: &str = "uprobes";
    match facts.has_uprobes {
        Some(true) => Check::ok(NAME, "the kernel has them"),
        Some(false) => Check::fails(NAME, "the kernel has none", "use a kernel with CONFIG_UPROBE_EVENTS=y"),
        None => Check::warning(NAME, "unknown: /sys/bus/event_source is missing", "mount /sys"),
    }
}

fn mechanism(answers: &KernelAnswers) -> Check {
    const NAME: &str = "probe links";
    match &answers.mechanism {
        Ok(None) => Check::ok(NAME, "uprobe_multi, with a filter by process"),
        Ok(Some(note)) => Check::warning(NAME, *note, "use Linux 6.10 or later"),
        Err(error) => Check::fails(NAME, error.clone(), AS_ROOT),
    }
}

fn trial(outcome: &Result<(), String>) -> Check {
    const NAME: &str = "trial";
    match outcome {
        Ok(()) => Check::ok(NAME, "all programs were loaded, and a probe was armed in this process"),
        Err(error) => {
            Check::fails(NAME, error.clone(), "mend what is named above; if nothing is, please report it")
        }
    }
}

/// `yama_ptrace_access_check`, security/yama/yama_lsm.c: it is asked for memory (PTRACE_MODE_ATTACH) and not for mappings.
fn ptrace_scope(facts: &Facts) -> Check {
    const NAME: &str = "Yama";
    match facts.ptrace_scope {
        None => Check::ok(NAME, "not there"),
        Some(scope @ ..=2) => Check::ok(NAME, format!("ptrace_scope {scope}: no obstacle to CAP_SYS_PTRACE")),
        Some(scope) => Check::warning(
            NAME,
            format!(
                "ptrace_scope {scope}: nobody may read another process's memory, so coverage cannot be measured"
            ),
            "it can only be changed by a boot with kernel.yama.ptrace_scope=2 or less",
        ),
    }
}

fn hidepid(facts: &Facts) -> Check {
    const NAME: &str = "hidepid";
    let is_able = facts.capabilities.is_some_and(|found| found.has(Capabilities::SYS_PTRACE));
    match facts.hidepid.as_deref() {
        None | Some("0" | "off") => Check::ok(NAME, "/proc shows all processes"),
        Some(mode) if is_able => Check::ok(NAME, format!("{mode}, which CAP_SYS_PTRACE sees through")),
        Some(mode) => Check::warning(NAME, format!("{mode}: /proc hides processes of others"), AS_ROOT),
    }
}

fn locked_memory(facts: &Facts) -> Check {
    const NAME: &str = "locked memory";
    let is_counted = series(&facts.release).is_some_and(|found| found < FIRST_WITHOUT_LOCKED_MAPS);
    match facts.locked_memory_limit {
        Some(limit) if is_counted && limit < TABLE_BYTES => Check::fails(
            NAME,
            format!("the limit is {limit} bytes, and before Linux 5.11 the tables count"),
            "ulimit -l unlimited",
        ),
        _ => Check::ok(NAME, "the limit does not matter here"),
    }
}

fn jit(facts: &Facts) -> Check {
    const NAME: &str = "BPF compiler";
    match facts.bpf_jit_enable {
        Some(0) => Check::warning(
            NAME,
            "switched off: programs are interpreted, and each event takes many times as long",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Some(_) => Check::ok(NAME, "switched on"),
        None => Check::ok(NAME, "always on, or not readable"),
    }
}

/// Settings that people ask about and that do not matter to whoever has the capabilities: `perfmon_capable` and `bpf_capable`
/// are asked first (`perf_allow_kernel`, kernel/events/core.c; `bpf_prog_load`, kernel/bpf/syscall.c).
fn settings(facts: &Facts) -> Vec<Check> {
    let value = |name: &str, value: Option<i64>| value.map(|value| format!("{name} {value}"));
    let paranoid = value("perf_event_paranoid", facts.perf_event_paranoid);
    let unprivileged = value("unprivileged_bpf_disabled", facts.unprivileged_bpf_disabled);
    [("perf_event_paranoid", paranoid), ("unprivileged BPF", unprivileged)]
        .into_iter()
        .filter_map(|(name, text)| {
            Some(Check::ok(name, format!("{}; does not matter beside the capabilities", text?)))
        })
        .collect()
}

fn plan_cache(cache: &CacheFolder) -> Check {
    const NAME: &str = "plan cache";
    const REMEDY: &str =
        "without it, each recording searches the interpreter anew, for some tens of milliseconds";
    match (&cache.path, &cache.problem) {
        (Some(path), None) => Check::ok(NAME, path.display().to_string()),
        (Some(path), Some(problem)) => Check::warning(NAME, format!("{}: {problem}", path.display()), REMEDY),
        (None, _) => Check::warning(NAME, "no folder: neither XDG_CACHE_HOME nor HOME is set", REMEDY),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const ALL: u64 = 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39 | 1 << 40;

    /// A host where all is well.
    fn well() -> (Facts, KernelAnswers, CacheFolder) {
        let facts = Facts {
            release: "6.18.44".to_owned(),
            has_kernel_types: true,
            has_uprobes: Some(true),
            capabilities: Some(Capabilities(ALL)),
            is_initial_user_namespace: Some(true),
            is_initial_pid_namespace: Some(true),
            seccomp: Some(0),
            ..Facts::default()
        };
        let answers = KernelAnswers { mechanism: Ok(None), trial: Some(Ok(())) };
        let cache = CacheFolder { path: Some(PathBuf::from("/var/cache/alloctrace")), problem: None };
        (facts, answers, cache)
    }

    fn found(change: impl FnOnce(&mut Facts, &mut KernelAnswers, &mut CacheFolder)) -> Vec<Check> {
        let (mut facts, mut answers, mut cache) = well();
        change(&mut facts, &mut answers, &mut cache);
        checks(&facts, &answers, &cache)
    }

    /// The one check that is not well, and how it ended.
    #[track_caller]
    fn only(change: impl FnOnce(&mut Facts, &mut KernelAnswers, &mut CacheFolder)) -> (&'static str, Health) {
        let all = found(change);
        let bad: Vec<&Check> = all.iter().filter(|check| check.health != Health::Ok).collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad[0].remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()), "{bad:?}");
        (bad[0].name, bad[0].health)
    }

    #[test]
    fn where_all_is_well_nothing_is_to_be_done() {
        for check in found(|_, _, _| {}) {
            assert_eq!((check.health, &check.remedy), (Health::Ok, &None), "{check:?}");
        }
    }

    #[test]
    fn each_lack_is_named_with_its_remedy() {
        use Health::{Fails, Warning};
        let lacks = |bits: u64| {
            move |facts: &mut Facts, _: &mut KernelAnswers, _: &mut CacheFolder| {
                facts.capabilities = Some(Capabilities(ALL & !bits));
            }
        };
        assert_eq!(only(lacks(1 << 39 | 1 << 21)), ("CAP_BPF", Fails));
        assert_eq!(only(lacks(1 << 38 | 1 << 21)), ("CAP_PERFMON", Fails));
        assert_eq!(only(lacks(1 << 19)), ("CAP_SYS_PTRACE", Fails));
        assert_eq!(only(lacks(1 << 40 | 1 << 21)), ("CAP_CHECKPOINT_RESTORE", Warning));
        assert_eq!(only(|facts, _, _| facts.has_kernel_types = false), ("kernel type information", Fails));
        assert_eq!(only(|facts, _, _| facts.has_uprobes = Some(false)), ("uprobes", Fails));
        assert_eq!(only(|facts, _, _| facts.release = "6.11.2".to_owned()), ("kernel", Fails));
        assert_eq!(only(|facts, _, _| facts.release = "6.6.60".to_owned()), ("kernel", Warning));
        assert_eq!(only(|facts, _, _| facts.release = "5.15.1".to_owned()), ("kernel", Warning));
        let namespaced = |mechanism| {
            found(move |facts, answers, _| {
                facts.is_initial_pid_namespace = Some(false);
                answers.mechanism = mechanism;
            })
        };
        let of_namespace = |all: Vec<Check>| {
            all.into_iter().find(|check| check.name == "PID namespace").map(|check| check.health)
        };
        assert_eq!(of_namespace(namespaced(Ok(None))), Some(Health::Ok));
        assert_eq!(of_namespace(namespaced(Ok(Some("without a filter")))), Some(Fails));
        assert_eq!(
            only(|facts, _, _| facts.is_initial_user_namespace = Some(false)),
            ("user namespace", Fails)
        );
        assert_eq!(
            only(|facts, _, _| facts.lockdown = Some("confidentiality".to_owned())),
            ("lockdown", Fails)
        );
        assert_eq!(only(|facts, _, _| facts.ptrace_scope = Some(3)), ("Yama", Warning));
        assert_eq!(only(|facts, _, _| facts.bpf_jit_enable = Some(0)), ("BPF compiler", Warning));
        assert_eq!(only(|_, answers, _| answers.mechanism = Ok(Some("slow"))), ("probe links", Warning));
        assert_eq!(only(|_, answers, _| answers.mechanism = Err("no".to_owned())), ("probe links", Fails));
        assert_eq!(only(|_, answers, _| answers.trial = Some(Err("no".to_owned()))), ("trial", Fails));
        assert_eq!(only(|_, _, cache| cache.problem = Some("read-only".to_owned())), ("plan cache", Warning));
    }

    #[test]
    fn settings_that_do_not_matter_to_us_are_no_fault() {
        let all = found(|facts, _, _| {
            facts.perf_event_paranoid = Some(4);
            facts.unprivileged_bpf_disabled = Some(2);
            facts.hidepid = Some("invisible".to_owned());
            facts.lockdown = Some("integrity".to_owned());
            facts.seccomp = Some(2);
            facts.ptrace_scope = Some(2);
        });
        assert!(all.iter().all(|check| check.health == Health::Ok), "{all:?}");
    }

    #[test]
    fn a_filter_is_suspected_only_where_something_is_refused() {
        let refused = found(|facts, answers, _| {
            facts.seccomp = Some(2);
            answers.mechanism = Err("refused".to_owned());
        });
        let seccomp = refused.iter().find(|check| check.name == "seccomp").unwrap();
        assert_eq!(seccomp.health, Health::Warning);
    }

    #[test]
    fn locked_memory_matters_on_old_kernels_only() {
        let health = |release: &str, limit| {
            let all = found(|facts, _, _| {
                facts.release = release.to_owned();
                facts.locked_memory_limit = limit;
            });
            all.into_iter().find(|check| check.name == "locked memory").unwrap().health
        };
        assert_eq!(health("5.10.1", Some(65_536)), Health::Fails);
        assert_eq!(health("5.10.1", None), Health::Ok);
        assert_eq!(health("6.1.0", Some(65_536)), Health::Ok);
    }

    #[test]
    fn hidden_processes_matter_without_the_right_to_trace() {
        let all = found(|facts, _, _| {
            facts.capabilities = Some(Capabilities(ALL & !(1 << 19)));
            facts.hidepid = Some("2".to_owned());
        });
        assert!(all.iter().any(|check| check.name == "hidepid" && check.health == Health::Warning));
    }

    #[test]
    fn a_failed_check_is_an_obstacle_to_all() {
        let all = found(|facts, _, _| facts.capabilities = Some(Capabilities(0)));
        let obstacle = all.iter().find_map(Check::obstacle).unwrap();
        assert!(obstacle.reason.starts_with("CAP_BPF: missing"), "{obstacle:?}");
        assert_eq!(found(|_, _, _| {}).iter().find_map(Check::obstacle), None);
    }
}
