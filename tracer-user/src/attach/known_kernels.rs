//! Kernels that are known to crash, or to harm a target, when uprobes are used: what `uname -r` says to a verdict.
//!
//! Pure. The list is short because the rest is kept out by how the programs are made. Kernels since 6.13 with preemption give
//! uprobe programs a per-CPU private stack that a second run overwrites (opentelemetry-ebpf-instrumentation #3056 crashed by it); a program with a tail
//! call gets none, and each of ours has one (docs/decisions/0002-no-per-cpu-scratch.md), so these are not refused.

/// What to do on a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is known against it.
    Fine,
    /// It can fail together with something that we do not do ourselves: go on, and say this.
    Warned(&'static str),
    /// It can fail by what we do, and no later release of its series is known to be good: do not go on.
    Refused(&'static str),
}

/// Series `(major, minor)`, its first bad patch level, and what is known.
const KNOWN: [((u32, u32), u32, Verdict); 2] = [
    // uprobe_free_utask frees what perf_callchain_user may read in an interrupt: a panic. Introduced by cfa7f3d2c526, mended by b583ef82b671 in 6.13-rc1;
    // seen on 6.6.58 (pyroscope #3673, talos #9671) and on 6.11 (coroot #275). 6.11 also sends uretprobes through a system call that older seccomp
    // filters kill the process for (systemd #34615), and is maintained by nobody.
    (
        (6, 11),
        0,
        Verdict::Refused(
            "ending threads that have probes can panic it while a profiler walks stacks, and services with a seccomp filter may be killed",
        ),
    ),
    (
        (6, 6),
        47,
        Verdict::Warned(
            "it may panic when threads that have probes end while a profiler walks their stacks, unless its maker has backported b583ef82b671",
        ),
    ),
];

/// What is known of the kernel with this release, such as `6.11.0-29-generic`. A release that cannot be read is not known.
#[must_use]
pub fn verdict(release: &str) -> Verdict {
    let Some((series, patch)) = version(release) else { return Verdict::Fine };
    let known = KNOWN.iter().find(|(bad, first, _)| *bad == series && patch >= *first);
    known.map_or(Verdict::Fine, |(_, _, verdict)| *verdict)
}

/// The series of a release, such as `(6, 11)`.
#[must_use]
pub fn series(release: &str) -> Option<(u32, u32)> {
    version(release).map(|(series, _)| series)
}

/// Series and patch level; a missing patch level is 0.
fn version(release: &str) -> Option<((u32, u32), u32)> {
    let numbers = release.split(|character: char| !character.is_ascii_digit() && character != '.').next()?;
    let mut parts = numbers.split('.').map(str::parse::<u32>);
    let series = (parts.next()?.ok()?, parts.next()?.ok()?);
    Some((series, parts.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(release: &str, expected: &str) {
        let found = match verdict(release) {
            Verdict::Fine => "fine",
            Verdict::Warned(_) => "warned",
            Verdict::Refused(_) => "refused",
        };
        assert_eq!(found, expected, "{release}");
    }

    #[test]
    fn kernels_that_crash_are_refused() {
        is("6.11.0-29-generic", "refused");
        is("6.11", "refused");
        is("6.11.11-amd64", "refused");
    }

    #[test]
    fn kernels_that_crash_with_others_are_warned_of() {
        is("6.6.58-talos", "warned");
        is("6.6.47", "warned");
    }

    #[test]
    fn the_others_are_fine() {
        for release in [
            "6.1.0-50-cloud-amd64",
            "6.6.30",
            "6.12.107+deb13-cloud-arm64",
            "6.18.44",
            "7.2.13+deb14-cloud-amd64",
            "6.110.1",
            "16.11.2",
        ] {
            is(release, "fine");
        }
    }

    #[test]
    fn what_is_no_release_is_not_known() {
        for release in ["", "6", "x.y", "6.", "6.11extra", "99999999999.1"] {
            let _ = verdict(release);
        }
        is("", "fine");
        is("99999999999.1", "fine");
    }
}
