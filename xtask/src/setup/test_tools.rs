//! Programs that tests and benches call, from Debian, and the mount of tracefs. Brought where we are root; elsewhere the tests that need them skip themselves.

use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A program and the package that has it. `go` reads our pprof files, `gcc` builds allocation programs in C, `make` and `xz` an interpreter, Prometheus, a browser, curl and openssl ask the sidecar; the rest is for benches and for inspection of loaded programs.
const TOOLS: [(&str, &str); 13] = [
    ("go", "golang-go"),
    ("gcc", "gcc"),
    ("clang", "clang"),
    ("make", "make"),
    ("xz", "xz-utils"),
    ("bpftrace", "bpftrace"),
    ("bpftool", "bpftool"),
    ("wrk", "wrk"),
    ("promtool", "prometheus"),
    ("prometheus", "prometheus"),
    ("chromium", "chromium"),
    ("curl", "curl"),
    ("openssl", "openssl"),
];
const TRACEFS: &str = "/sys/kernel/tracing";

/// What decides whether something can be brought here.
pub struct Host {
    pub is_root: bool,
    pub path: Vec<PathBuf>,
}

impl Host {
    /// This machine and user.
    pub fn detect() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
        let mut path: Vec<PathBuf> =
            std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
        path.push(PathBuf::from("/usr/sbin"));
        Self { is_root: effective == Some("0"), path }
    }

    fn has(&self, program: &str) -> bool {
        self.path.iter().any(|folder| folder.join(program).is_file())
    }
}

/// Install what is missing; what cannot be installed is told and no error.
pub fn bring(runner: &impl Runner, host: &Host) -> Result<String> {
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| !host.has(program)).collect();
    if missing.is_empty() {
        return Ok("all there".to_owned());
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    if !host.is_root || !host.has("apt-get") {
        return Ok(format!(
            "{} missing, and bringing them takes root and apt; tests that need them will be skipped",
            programs.join(", ")
        ));
    }
    let packages = missing.iter().map(|(_, package)| *package);
    let apt = |words: &[&str]| {
        Invocation::new("apt-get").args(words.iter().copied()).env("DEBIAN_FRONTEND", "noninteractive")
    };
    runner.output(&apt(&["update", "-qq"])).context("cannot update apt's lists")?;
    runner
        .output(&apt(&["install", "-qq", "-y", "--no-install-recommends"]).args(packages))
        .context("cannot install tools for tests")?;
    Ok(format!("installed {}", programs.join(", ")))
}

/// Mount tracefs, which bpftrace and the perf path of uprobes look at.
pub fn mount_tracefs(runner: &impl Runner, host: &Host) -> Result<String> {
    if Path::new(TRACEFS).join("uprobe_events").exists() {
        return Ok("mounted".to_owned());
    }
    if !host.is_root {
        return Ok("not mounted, and mounting it takes root".to_owned());
    }
    let mounted = runner.succeeds(&Invocation::new("mount").args(["-t", "tracefs", "tracefs", TRACEFS]));
    Ok(if mounted {
        "mounted now".to_owned()
    } else {
        format!("cannot be mounted at `{TRACEFS}`; tests that need it will be skipped")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    fn host(is_root: bool, programs: &[&str]) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        programs.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        let path = vec![folder.path().to_path_buf()];
        (folder, Host { is_root, path })
    }

    fn all_but(missing: &str) -> Vec<&'static str> {
        TOOLS.iter().map(|(program, _)| *program).filter(|name| *name != missing).chain(["apt-get"]).collect()
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let (_folder, host) = host(true, &all_but("go"));
        let machine = Script::default().says("apt-get", "");
        assert_eq!(bring(&machine, &host).unwrap(), "installed go");
        assert!(machine.ran("apt-get install -qq -y --no-install-recommends golang-go"));
    }

    #[test]
    fn a_user_without_root_is_told_what_is_missing() {
        let (_folder, host) = host(false, &all_but("bpftrace"));
        let text = bring(&Script::default(), &host).unwrap();
        assert_eq!(
            text,
            "bpftrace missing, and bringing them takes root and apt; tests that need them will be skipped"
        );
    }

    #[test]
    fn an_apt_that_fails_is_quoted() {
        let (_folder, host) = host(true, &["apt-get"]);
        let machine = Script::default()
            .says("apt-get update", "")
            .fails("apt-get install", "E: Unable to locate package");
        let text = format!("{:#}", bring(&machine, &host).unwrap_err());
        assert!(text.starts_with("cannot install tools for tests: `apt-get install"), "{text}");
        assert!(text.ends_with("failed: E: Unable to locate package"), "{text}");
    }
}
