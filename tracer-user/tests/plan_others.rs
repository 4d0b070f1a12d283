//! No false probe point: in large programs of all kinds that hold no pymalloc the finder finds nothing, and has nothing to note.
//!
//! A false point would be a trap in somebody's program, and numbers out of nowhere. The files come from Debian's packages, which `cargo xtask setup`
//! unpacks; those that are on the machine anyway are searched too. What is not there is reported as ignored, but fails where `CI` is set.

#[path = "plan_files/golden.rs"]
#[expect(dead_code, reason = "golden files are for plan_files")]
mod golden;

use std::path::{Path, PathBuf};

use golden::no_points;
use libtest_mimic::{Arguments, Trial};

/// Packages of Debian's bookworm for amd64 and their files; see `xtask/src/setup/test_files.rs`.
const UNPACKED: [(&str, &str); 29] = [
    ("cmake", "usr/bin/cmake"),
    ("cpp-12", "usr/lib/gcc/x86_64-linux-gnu/12/cc1"),
    ("emacs-nox", "usr/bin/emacs-nox"),
    ("erlang-base", "usr/lib/erlang/erts-13.1.5/bin/beam.smp"),
    ("gdb", "usr/bin/gdb"),
    ("git", "usr/bin/git"),
    ("guile-3.0-libs", "usr/lib/x86_64-linux-gnu/libguile-3.0.so.1.5.0"),
    ("libavcodec59", "usr/lib/x86_64-linux-gnu/libavcodec.so.59.37.100"),
    ("libclang-cpp14", "usr/lib/llvm-14/lib/libclang-cpp.so.14"),
    ("libgs10", "usr/lib/x86_64-linux-gnu/libgs.so.10.00"),
    ("libicu72", "usr/lib/x86_64-linux-gnu/libicui18n.so.72.1"),
    ("libllvm14", "usr/lib/x86_64-linux-gnu/libLLVM-14.so.1"),
    ("liblua5.4-0", "usr/lib/x86_64-linux-gnu/liblua5.4.so.0.0.0"),
    ("libmozjs-102-0", "usr/lib/x86_64-linux-gnu/libmozjs-102.so.102.15.1"),
    ("libnode108", "usr/lib/x86_64-linux-gnu/libnode.so.108"),
    ("libruby3.1", "usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1.2"),
    ("libsqlite3-0", "usr/lib/x86_64-linux-gnu/libsqlite3.so.0.8.6"),
    ("libssl3", "usr/lib/x86_64-linux-gnu/libcrypto.so.3"),
    ("libtcl8.6", "usr/lib/x86_64-linux-gnu/libtcl8.6.so"),
    ("mariadb-server-core", "usr/sbin/mariadbd"),
    ("nginx", "usr/sbin/nginx"),
    ("openjdk-17-jre-headless", "usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so"),
    ("perl-base", "usr/bin/perl"),
    ("php8.2-cli", "usr/bin/php8.2"),
    ("postgresql-15", "usr/lib/postgresql/15/bin/postgres"),
    ("qemu-system-x86", "usr/bin/qemu-system-x86_64"),
    ("r-base-core", "usr/lib/R/lib/libR.so"),
    ("redis-tools", "usr/bin/redis-check-rdb"),
    ("vim", "usr/bin/vim.basic"),
];

/// What a machine may have itself.
const INSTALLED: [&str; 14] = [
    "/bin/bash",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/x86_64-linux-gnu/libglib-2.0.so.0",
    "/lib/x86_64-linux-gnu/libperl.so.5.36",
    "/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/lib/x86_64-linux-gnu/libxml2.so.2",
    "/usr/bin/go",
    "/usr/bin/node",
    "/usr/bin/openssl",
    "/usr/bin/perf",
    "/usr/bin/tmux",
    "/usr/lib/gcc/x86_64-linux-gnu/12/lto1",
    "/usr/lib/systemd/systemd",
    "/usr/local/bin/postgres",
];

fn main() {
    let arguments = Arguments::from_args();
    let is_ci = std::env::var_os("CI").is_some();
    let mut trials: Vec<Trial> = UNPACKED
        .into_iter()
        .map(|(package, file)| {
            let path = unpacked(package, file);
            let is_ignored = !path.exists() && !is_ci;
            nothing_in(path).with_ignored_flag(is_ignored)
        })
        .collect();
    trials.extend(INSTALLED.into_iter().map(|path| {
        let is_here = Path::new(path).exists();
        nothing_in(PathBuf::from(path)).with_ignored_flag(!is_here)
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

fn unpacked(package: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/amd64/bookworm").join(package).join(file)
}

fn nothing_in(path: PathBuf) -> Trial {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Trial::test(format!("nothing_in::{name}"), move || no_points(&path))
}
