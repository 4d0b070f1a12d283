//! What was measured of each interpreter, as lines of JSON: the raw material of the table in docs/COMPATIBILITY.md.
//!
//! Lines are added to a file below the target folder; `cargo xtask compatibility` takes the last of each kind.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use alloctrace::profile::{FrameKind, Metric, Profile, Sample};
use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::asked::Asked;
use crate::machine::Interpreter;

/// Says how an interpreter was built: whether it has a library, by what is mapped (Debian configures for one and links its programs without), and whether
/// with profiles, by its own configuration.
const BUILD: &str = "import sysconfig, sys; is_shared = any('libpython' in line for line in open('/proc/self/maps')); \
                     print(sys.version.split()[0], 'shared' if is_shared else 'static', \
                     '--enable-optimizations' in (sysconfig.get_config_var('CONFIG_ARGS') or ''))";
/// What stands in a stack that is not whole; other markers say that no Python function ran.
const BROKEN: [&str; 7] =
    ["truncated", "unreadable", "not received", "not read", "other stacks", "not known", "unknown kind"];

/// Adds a line about an interpreter: `measured`, and what the interpreter and this host are.
pub fn note(interpreter: &Interpreter, measured: &Map<String, Value>) -> Result<()> {
    let output = Command::new(&interpreter.python).args(["-I", "-c", BUILD]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut words = text.split_whitespace();
    let mut word = || words.next().context("the interpreter does not know its build");
    let (version, build, optimised) = (word()?, word()?, word()? == "True");
    let origin = interpreter.label.rsplit('_').next().unwrap_or_default();
    // Debian's rules build with profiles by a make target, of which the configuration says nothing.
    let optimised = optimised || matches!(origin, "debian" | "system");
    let mut line = json!({
        "interpreter": version,
        "origin": origin,
        "build": if optimised { format!("{build}, PGO") } else { build.to_owned() },
        "c_library": if origin == "musl" { "musl" } else { "glibc" },
        "architecture": std::env::consts::ARCH,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
    });
    line.as_object_mut().context("no object")?.extend(measured.clone());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask");
    fs::create_dir_all(&folder)?;
    let mut file = OpenOptions::new().create(true).append(true).open(folder.join("compatibility.jsonl"))?;
    // One write, so that lines of tests that run at once do not mix.
    Ok(file.write_all(format!("{line}\n").as_bytes())?)
}

/// The share of allocated blocks whose stack is whole.
pub fn whole_stacks(profile: &Profile) -> f64 {
    let asked = Asked(profile);
    let is_broken = |sample: &Sample| {
        asked.frames(sample).any(|frame| {
            frame.kind == FrameKind::Marker && BROKEN.iter().any(|words| frame.function.contains(words))
        })
    };
    let all = asked.sum(Metric::Allocated, |_| true).count;
    let broken = asked.sum(Metric::Allocated, is_broken).count;
    if all == 0 { 0.0 } else { (all - broken) as f64 / all as f64 }
}
