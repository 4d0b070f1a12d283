//! What is installed here: interpreters, other programs, and the right to trace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// One installed interpreter.
#[derive(Debug, Clone)]
pub struct Interpreter {
    pub label: String,
    pub python: PathBuf,
    pub minor: u8,
    pub is_free_threaded: bool,
}

/// Every interpreter with a lock that should be traced: pyenv's, and the system's.
pub fn interpreters() -> Vec<Interpreter> {
    of_kind(false)
}

/// Every free-threaded one of a version that is not refused.
pub fn free_threaded() -> Vec<Interpreter> {
    of_kind(true).into_iter().filter(|interpreter| matches!(interpreter.minor, 13 | 14)).collect()
}

fn of_kind(is_free_threaded: bool) -> Vec<Interpreter> {
    let mut found: Vec<Interpreter> = installed()
        .filter(|interpreter| (8..=15).contains(&interpreter.minor))
        .filter(|interpreter| interpreter.is_free_threaded == is_free_threaded)
        .collect();
    found.sort_by_key(|interpreter| (interpreter.minor, interpreter.label.clone()));
    found
}

/// Interpreters that are too old.
pub fn unsupported() -> Vec<Interpreter> {
    installed()
        .filter(|interpreter| matches!(interpreter.minor, 6 | 7)) // the minor version of 2.7 is 7, too
        .collect()
}

/// The system's own, the hardest to trace; else the newest.
pub fn preferred(found: &[Interpreter]) -> Option<Interpreter> {
    found.iter().find(|interpreter| interpreter.label.ends_with("system")).or_else(|| found.last()).cloned()
}

/// pyenv's folder.
pub fn pyenv_root() -> Option<PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    root.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv"))).filter(|root| root.exists())
}

fn installed() -> impl Iterator<Item = Interpreter> {
    let versions = pyenv_root().and_then(|root| fs::read_dir(root.join("versions")).ok());
    let pyenv = versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python"));
    let system = (8..=15).map(|minor| PathBuf::from(format!("/usr/bin/python3.{minor}")));
    pyenv.chain(system).chain(unpacked()).filter_map(|python| probe(&python))
}

/// The scripts that run what `cargo xtask setup` has unpacked, each in a root and a mount namespace of its own.
fn unpacked() -> impl Iterator<Item = PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons/bin");
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// What was built and not unpacked stands beside those scripts and says so in its name.
fn built(python: &Path) -> Option<&'static str> {
    let name = python.file_name()?.to_str()?;
    ["musl", "clang", "source"].into_iter().find(|kind| name.starts_with(&format!("{kind}-")))
}

/// Interpreters built with `--with-pydebug`: what `cargo xtask setup` has unpacked, and the system's.
pub fn debug_builds() -> Vec<Interpreter> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons/debug");
    let unpacked = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let system = (8..=15).map(|minor| PathBuf::from(format!("/usr/bin/python3.{minor}d")));
    unpacked.chain(system).filter_map(|python| probe(&python)).collect()
}

fn probe(python: &Path) -> Option<Interpreter> {
    let program = "import sys; print(sys.version_info[1], sys.version.split()[0], hasattr(sys, '_is_gil_enabled') and not sys._is_gil_enabled())";
    let output = Command::new(python).args(["-E", "-s", "-c", program]).output().ok()?;
    // 2.7 prints a tuple.
    let text = String::from_utf8(output.stdout).ok()?.replace(['(', ')', ',', '\''], "");
    let [minor, version, free_threaded] = text.trim().splitn(3, ' ').collect::<Vec<_>>().try_into().ok()?;
    let is_unpacked = python.ends_with(Path::new("pythons/bin").join(python.file_name()?));
    let origin = match built(python) {
        Some(kind) if is_unpacked => kind,
        _ if is_unpacked => "debian",
        _ if python.starts_with("/usr") => "system",
        _ => "pyenv",
    };
    Some(Interpreter {
        label: format!("{version}_{origin}"),
        python: python.to_owned(),
        minor: minor.parse().ok()?,
        is_free_threaded: free_threaded == "True",
    })
}

/// Why nothing can be traced here, from what the system says of us and of itself.
pub fn cannot_trace() -> Option<String> {
    if env::var_os("ALLOCTRACE_UNPRIVILEGED").is_some() {
        return Some("left out on request".to_owned());
    }
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Some("probe points are found in x86_64 and arm64 code only".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no type information".to_owned());
    }
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let lacks = [
        ("CAP_SYS_PTRACE", 19),
        ("CAP_SYS_ADMIN", 21),
        ("CAP_SETUID", 7),
        ("CAP_BPF", 39),
        ("CAP_PERFMON", 38),
    ];
    let lacks: Vec<&str> =
        lacks.iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| *name).collect();
    (!lacks.is_empty()).then(|| format!("without {}", lacks.join(", ")))
}

/// Whether a program is in `PATH`.
pub fn has_program(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(name).exists()))
}
