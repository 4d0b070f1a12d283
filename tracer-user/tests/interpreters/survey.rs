//! What `alloctrace ps` says of a process, against what the interpreter says of itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use alloctrace::plan::cache::PlanCache;
use alloctrace::survey::{Build, CLibrary, Tracing, pythons};
use anyhow::{Context as _, Result, ensure};

use crate::support::{Interpreter, Target};

/// More than any plan takes.
const PLANNING: Duration = Duration::from_secs(60);
/// Debian's are configured with `--enable-shared`, and their programs are static all the same.
const IS_SHARED: &str = "print(int(any('libpython' in line for line in open('/proc/self/maps'))))";

pub fn check(interpreter: &Interpreter) -> Result<()> {
    let answer = Command::new(&interpreter.python).args(["-I", "-c", IS_SHARED]).output()?;
    let build = if answer.stdout.starts_with(b"1") { Build::Shared } else { Build::Static };
    let mut target = Target::start(interpreter, "nested.py", &[], Stdio::inherit())?;
    target.line()?;
    let folder = tempfile::tempdir()?;
    let cache = PlanCache::at(folder.path());
    let look = |planning| -> Result<_> {
        let found = pythons(Path::new("/proc"), None, Some(&cache), planning)?;
        found.into_iter().find(|process| process.pid == target.child.id()).context("it is not in the list")
    };
    let unplanned = look(Duration::ZERO)?;
    ensure!(unplanned.points.is_none() && unplanned.tracing == Tracing::Yes, "{unplanned:?}");
    let found = look(PLANNING)?;
    let version = found.version.as_deref().context("no version")?;
    ensure!(interpreter.label.starts_with(version), "{version}");
    ensure!(found.build == Some(build) && !found.embedded, "{found:?}");
    let (c_library, malloc) = match interpreter.label.ends_with("_musl") {
        true => (CLibrary::Musl, "musl"),
        false => (CLibrary::Glibc, "glibc"),
    };
    ensure!(found.c_library == Some(c_library) && found.malloc == Some(malloc), "{found:?}");
    ensure!(found.points.is_some_and(|points| points >= 4), "{found:?}");
    ensure!(found.tracing == Tracing::Yes && found.command.contains("nested.py"), "{found:?}");
    ensure!(found.resident_bytes > 4 << 20, "{found:?}");
    Ok(())
}
