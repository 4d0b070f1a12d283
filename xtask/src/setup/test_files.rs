//! Programs that the finder of probe points is tested with, unpacked from Debian's packages: arm64 interpreters and C libraries, and large programs of
//! other kinds for both architectures. They are read, never run, so any machine with apt can bring them, whatever its own architecture.

use super::debian::{PrivateApt, Sources};
use crate::command::Runner;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;

/// What is taken from a release: a package, and the part of it, `./` for all.
type Parts = &'static [(&'static str, &'static str)];

/// Architectures, their releases, and what is taken from each. `tracer-user/tests/plan_arm64.rs` and `tracer-user/tests/plan_others.rs` name the files.
const RELEASES: [(&str, &str, Parts); 4] = [
    ("arm64", "bookworm", ARM64_BOOKWORM),
    ("arm64", "trixie", &[("python3.13-minimal", "./"), ("libpython3.13", "./"), ("libc6", "./")]),
    ("arm64", "sid", ARM64_SID),
    ("amd64", "bookworm", OTHERS),
];

const ARM64_BOOKWORM: Parts = &[
    ("python3.11-minimal", "./"),
    ("libpython3.11", "./"),
    ("libc6", "./"),
    ("libjemalloc2", "./"),
    ("libmimalloc2.0", "./"),
    ("libtcmalloc-minimal4", "./"),
    ("musl", "./"),
    ("cmake", "./"),
    ("gdb", "./"),
    ("git", "./"),
    ("libllvm14", "./"),
    ("libnode108", "./"),
    ("libruby3.1", "./"),
    ("libsqlite3-0", "./"),
    ("libssl3", "./"),
    ("perl-base", "./"),
    ("php8.2-cli", "./"),
    ("postgresql-15", "./"),
    ("vim", "./"),
];

const ARM64_SID: Parts = &[
    ("python3.14-minimal", "./"),
    ("libpython3.14", "./"),
    ("python3.15-minimal", "./"),
    ("libpython3.15", "./"),
    ("libc6", "./"),
];

/// Large programs that hold no pymalloc: 220 MB to download, and the one file of each that is searched.
const OTHERS: Parts = &[
    ("cmake", "./usr/bin/cmake"),
    ("cpp-12", "./usr/lib/gcc/x86_64-linux-gnu/12/cc1"),
    ("emacs-nox", "./usr/bin/emacs-nox"),
    ("erlang-base", "./usr/lib/erlang/erts-13.1.5/bin/beam.smp"),
    ("gdb", "./usr/bin/gdb"),
    ("git", "./usr/bin/git"),
    ("guile-3.0-libs", "./usr/lib/x86_64-linux-gnu/libguile-3.0.so.1.5.0"),
    ("libavcodec59", "./usr/lib/x86_64-linux-gnu/libavcodec.so.59.37.100"),
    ("libclang-cpp14", "./usr/lib/llvm-14/lib/libclang-cpp.so.14"),
    ("libgs10", "./usr/lib/x86_64-linux-gnu/libgs.so.10.00"),
    ("libicu72", "./usr/lib/x86_64-linux-gnu/libicui18n.so.72.1"),
    ("libllvm14", "./usr/lib/x86_64-linux-gnu/libLLVM-14.so.1"),
    ("liblua5.4-0", "./usr/lib/x86_64-linux-gnu/liblua5.4.so.0.0.0"),
    ("libmozjs-102-0", "./usr/lib/x86_64-linux-gnu/libmozjs-102.so.102.15.1"),
    ("libnode108", "./usr/lib/x86_64-linux-gnu/libnode.so.108"),
    ("libruby3.1", "./usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1.2"),
    ("libsqlite3-0", "./usr/lib/x86_64-linux-gnu/libsqlite3.so.0.8.6"),
    ("libssl3", "./usr/lib/x86_64-linux-gnu/libcrypto.so.3"),
    ("libtcl8.6", "./usr/lib/x86_64-linux-gnu/libtcl8.6.so"),
    ("mariadb-server-core", "./usr/sbin/mariadbd"),
    ("nginx", "./usr/sbin/nginx"),
    ("openjdk-17-jre-headless", "./usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so"),
    ("perl-base", "./usr/bin/perl"),
    ("php8.2-cli", "./usr/bin/php8.2"),
    ("postgresql-15", "./usr/lib/postgresql/15/bin/postgres"),
    ("qemu-system-x86", "./usr/bin/qemu-system-x86_64"),
    ("r-base-core", "./usr/lib/R/lib/libR.so"),
    ("redis-tools", "./usr/bin/redis-check-rdb"),
    ("vim", "./usr/bin/vim.basic"),
];

/// Each package has a folder of its own here, below that of its architecture and release.
fn folder(architecture: &str, suite: &str) -> PathBuf {
    workspace::scratch().join(architecture).join(suite)
}

/// Unpack what is missing. A machine that is no Debian goes without.
pub fn bring(runner: &impl Runner, sources: &Sources) -> Result<String> {
    if !sources.has_mirror() {
        return Ok("this machine has no apt sources of Debian; tests of its files will be skipped".to_owned());
    }
    let mut brought = 0;
    for (architecture, suite, parts) in RELEASES {
        brought += bring_release(runner, sources, (architecture, suite), parts)
            .with_context(|| format!("cannot bring the {architecture} packages of Debian's {suite}"))?;
    }
    Ok(if brought == 0 { "all there".to_owned() } else { format!("brought {brought} packages") })
}

/// How many packages were missing and have been brought.
fn bring_release(
    runner: &impl Runner,
    sources: &Sources,
    (architecture, suite): (&str, &str),
    parts: Parts,
) -> Result<usize> {
    let home = folder(architecture, suite);
    let missing: Vec<_> = parts.iter().filter(|(package, _)| !home.join(package).exists()).collect();
    if missing.is_empty() {
        return Ok(0);
    }
    let lists = workspace::scratch().join(architecture).join("apt").join(suite);
    let apt = PrivateApt::with(sources, &[suite], Some(architecture), &lists)?;
    apt.update(runner)?;
    for (package, part) in &missing {
        // Renamed when whole: a folder that is there is complete.
        let (incomplete, whole) = (home.join(format!("{package}.part")), home.join(package));
        apt.unpack_into(runner, suite, &[package], &incomplete, part)?;
        fs::rename(&incomplete, &whole)
            .with_context(|| format!("failed to rename `{}`", incomplete.display()))?;
    }
    Ok(missing.len())
}
