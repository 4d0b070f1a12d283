//! Other mallocs than the C library's: preloaded, linked, linked statically, several in one process, loaded later, and none.
//!
//! The oracles are programs whose totals are known whatever allocator they use, and what an allocator says of itself.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use alloctrace::profile::{Domain, Metric, Profile};
use anyhow::{Context as _, Result, ensure};

use crate::asked::{Asked, amount};
use crate::exact;
use crate::machine::{Interpreter, has_program, interpreters};
use crate::support::{Finished, Running, alloctrace, folder, load, program, record, run, say, tracer};
use crate::{Test, once, one};

pub const TESTS: &[Test] = &[
    one("mallocs::preloaded", preloaded).only_if(have_allocators),
    once("mallocs::preloaded_in_a_pyenv_build", preloaded_in_a_pyenv_build).only_if(have_allocators),
    one("mallocs::preloaded_before_we_came", preloaded_before_we_came).only_if(have_allocators),
    one("mallocs::a_wrapper_that_jumps", a_wrapper_that_jumps).only_if(|| has_program("gcc")),
    once("mallocs::linked", linked).only_if(can_embed),
    once("mallocs::linked_statically", linked_statically).only_if(can_embed),
    one("mallocs::loaded_later", loaded_later).only_if(have_allocators),
    one("mallocs::says_itself", says_itself).only_if(have_allocators),
    once("mallocs::in_a_static_program", in_a_static_program).only_if(can_link_statically),
];

/// Libraries that `cargo xtask setup` unpacks, and what `mallocs.py` must have found in each besides the C library's names.
const PRELOADED: [(&str, &[&str]); 3] = [
    (
        "libjemalloc.so.2",
        &["by_new", "by_new_aligned", "by_mallocx", "by_rallocx", "frees:sdallocx", "frees:_ZdlPvm"],
    ),
    (
        "libtcmalloc_minimal.so.4",
        &["by_new", "by_new_nothrow", "by_memalign", "frees:_ZdaPv", "frees:_ZdlPvm"],
    ),
    ("libmimalloc.so.2", &["by_new", "by_new_array", "by_memalign", "frees:_ZdlPv", "frees:_ZdlPvm"]),
];

/// What each function of `mallocs.py` leaves: 50 blocks of so many bytes. A buffer has a byte more than was asked for.
const LEFT: [(&str, u64); 16] = [
    ("by_malloc", 1000),
    ("by_calloc", 700),
    ("by_posix_memalign", 900),
    ("by_aligned_alloc", 640),
    ("by_memalign", 1100),
    ("by_valloc", 5000),
    ("by_realloc", 200_000),
    ("by_new", 1200),
    ("by_new_array", 1210),
    ("by_new_aligned", 1220),
    ("by_new_nothrow", 1230),
    ("by_mallocx", 1240),
    ("by_rallocx", 1250),
    ("by_zalloc", 1260),
    ("by_malloc_aligned", 1270),
    ("by_realloc_aligned", 1280),
];

fn library(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/allocators/usr/lib");
    let folder = folder.canonicalize().unwrap_or(folder);
    folder.join(format!("{}-linux-gnu", std::env::consts::ARCH)).join(name)
}

fn have_allocators() -> bool {
    PRELOADED.iter().all(|(name, _)| library(name).exists())
}

/// `env NAME=VALUE... PROGRAM ARGUMENTS...`, recorded: the environment is the program's, not ours.
fn record_under(
    environment: &[(&str, &OsStr)],
    program: &Path,
    arguments: &[&OsStr],
) -> Result<(Profile, Finished)> {
    let folder = folder()?;
    let output = folder.path().join("profile.pb.gz");
    let mut command = record(&output, &[]);
    command.args(under(environment, program)).args(arguments);
    let finished = run(command)?.succeeded()?;
    Ok((load(&output).with_context(|| finished.stderr.clone())?, finished))
}

fn under(environment: &[(&str, &OsStr)], program: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["env".into()];
    for (name, value) in environment {
        let mut word = OsString::from(name);
        word.push("=");
        word.push(value);
        words.push(word);
    }
    words.push(program.into());
    words
}

/// Compares the profile of `mallocs.py` with what it says that it did.
fn check_family(profile: &Profile, ran: &str, required: &[&str], minor: u8) -> Result<()> {
    let asked = Asked(profile);
    asked.has_lost_nothing()?;
    let ran: Vec<&str> = ran.split_whitespace().collect();
    for name in required {
        ensure!(ran.contains(name), "`{name}` was not run: {ran:?}");
    }
    let of = |metric, name: &str| {
        asked.sum(metric, |sample| {
            sample.domain == Domain::Malloc && asked.frames(sample).any(|frame| frame.function == name)
        })
    };
    let equal = |name: &str, metric, bytes: u64, count: u64| -> Result<()> {
        let found = of(metric, name);
        ensure!(
            found == amount(bytes, count),
            "{metric} of {name}: {found:?}, expected {count} of {bytes} bytes"
        );
        Ok(())
    };
    let buffer = if minor >= 15 { 100_033 } else { 100_001 };
    equal("by_bytearray", Metric::Live, 50 * buffer, 50)?;
    equal("by_bytearray", Metric::Allocated, 50 * buffer, 50)?;
    for (name, bytes) in LEFT.iter().filter(|(name, _)| ran.contains(name)) {
        equal(name, Metric::Live, 50 * bytes, 50)?;
    }
    let frees = ran.iter().filter(|name| name.starts_with("frees:")).count() as u64;
    equal("to_be_freed", Metric::Live, 0, 0)?;
    equal("to_be_freed", Metric::Allocated, 50 * 950 * frees, 50 * frees)?;
    let resizes =
        ran.iter().filter(|name| name.contains("realloc") || name.contains("rallocx")).count() as u64;
    equal("to_be_resized", Metric::Live, 0, 0)?;
    equal("to_be_resized", Metric::Allocated, 50 * 700 * resizes, 50 * resizes)
}

fn watched(profile: &Profile, name: &str) -> Result<()> {
    let mallocs: Vec<&String> = profile.processes.iter().flat_map(|process| &process.mallocs).collect();
    ensure!(mallocs.iter().any(|file| file.contains(name)), "`{name}` is not among {mallocs:?}");
    Ok(())
}

fn preloaded(interpreter: &Interpreter) -> Result<()> {
    for (name, required) in PRELOADED {
        let path = library(name);
        let environment = [("LD_PRELOAD", path.as_os_str())];
        let script = program("mallocs.py");
        let (profile, finished) =
            record_under(&environment, &interpreter.python, &["-I".as_ref(), script.as_os_str()])?;
        watched(&profile, name)?;
        check_family(&profile, &finished.stdout, required, interpreter.minor).context(name)?;
        let script = program("exact.py");
        let (profile, _) =
            record_under(&environment, &interpreter.python, &["-I".as_ref(), script.as_os_str()])?;
        exact::check_amounts(interpreter, &profile).context(name)?;
    }
    Ok(())
}

fn preloaded_in_a_pyenv_build() -> Result<()> {
    let found = interpreters().into_iter().rfind(|interpreter| interpreter.label.ends_with("pyenv"));
    found.map_or(Ok(()), |interpreter| preloaded(&interpreter))
}

fn preloaded_before_we_came(interpreter: &Interpreter) -> Result<()> {
    let (name, required) = PRELOADED[0];
    let mut command = Command::new(&interpreter.python);
    command.arg("-I").arg(program("mallocs.py")).args(["", "", "wait"]).env("LD_PRELOAD", library(name));
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "loaded");
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    running.write("\n")?;
    let ran = running.line()?;
    tracing.finish()?.succeeded()?;
    let profile = load(&output)?;
    watched(&profile, name)?;
    check_family(&profile, &ran, required, interpreter.minor)
}

/// Each call passes two mallocs, and is counted once; a realloc that was jumped to ends the block that it was called with.
fn a_wrapper_that_jumps(interpreter: &Interpreter) -> Result<()> {
    let folder = folder()?;
    let wrapper = folder.path().join("wrapper.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-fno-builtin", "-shared", "-fPIC", "-o"]).arg(&wrapper).arg(program("wrapper.c"));
    run(gcc)?.succeeded()?;
    let environment = [("LD_PRELOAD", wrapper.as_os_str())];
    for name in ["exact.py", "mallocs.py"] {
        let script = program(name);
        let (profile, finished) =
            record_under(&environment, &interpreter.python, &["-I".as_ref(), script.as_os_str()])?;
        watched(&profile, "wrapper.so")?;
        watched(&profile, "libc.so")?;
        match name {
            "exact.py" => exact::check_amounts(interpreter, &profile)?,
            _ => check_family(&profile, &finished.stdout, &["by_realloc", "frees:free"], interpreter.minor)?,
        }
    }
    Ok(())
}

/// Where an interpreter has its headers and its library, for programs that embed it.
struct Embedded {
    interpreter: Interpreter,
    headers: String,
    libraries: String,
    library: String,
}

fn embedded() -> Option<Embedded> {
    let question =
        "import sysconfig as s; print(*map(s.get_config_var, ('INCLUDEPY', 'LIBDIR', 'LDLIBRARY')))";
    let of = |interpreter: Interpreter| {
        let answer = Command::new(&interpreter.python).args(["-I", "-c", question]).output().ok()?;
        let answer = String::from_utf8(answer.stdout).ok()?;
        let [headers, libraries, library] = answer.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
        let is_here = Path::new(headers).join("Python.h").exists()
            && library.ends_with(".so")
            && Path::new(libraries).join(library).exists();
        is_here.then(|| Embedded {
            headers: headers.to_owned(),
            libraries: libraries.to_owned(),
            library: library.to_owned(),
            interpreter,
        })
    };
    interpreters().into_iter().rev().filter(|interpreter| !interpreter.label.ends_with("debian")).find_map(of)
}

fn can_embed() -> bool {
    has_program("gcc") && have_allocators() && embedded().is_some()
}

/// Builds a program with an interpreter in it, linked with `more`.
fn embed(embedded: &Embedded, into: &Path, more: &[&OsStr]) -> Result<()> {
    let mut gcc = Command::new("gcc");
    gcc.arg("-o").arg(into).arg(program("embed.c")).arg("-I").arg(&embedded.headers).args(more);
    gcc.arg(Path::new(&embedded.libraries).join(&embedded.library));
    gcc.arg(format!("-Wl,-rpath,{}", embedded.libraries)).args(["-lm", "-ldl", "-lpthread", "-lstdc++"]);
    run(gcc)?.succeeded().map(drop)
}

fn check_embedded(python: &Path, interpreter: &Interpreter, name: &str, required: &[&str]) -> Result<()> {
    let script = program("mallocs.py");
    let (profile, finished) = record_under(&[], python, &["-I".as_ref(), script.as_os_str()])?;
    watched(&profile, name)?;
    check_family(&profile, &finished.stdout, required, interpreter.minor)
}

fn linked() -> Result<()> {
    let embedded = embedded().context("nothing to embed")?;
    let folder = folder()?;
    let python = folder.path().join("python-of-somebody");
    let (name, required) = PRELOADED[0];
    let path = library(name);
    let mut where_it_is = OsString::from("-Wl,-rpath,");
    where_it_is.push(path.parent().unwrap_or(&path));
    embed(&embedded, &python, &["-Wl,--no-as-needed".as_ref(), path.as_os_str(), &where_it_is])?;
    check_embedded(&python, &embedded.interpreter, name, required)
}

/// What libraries use of it, the linker exports, and that outlives stripping.
fn linked_statically() -> Result<()> {
    let embedded = embedded().context("nothing to embed")?;
    let folder = folder()?;
    let python = folder.path().join("python-of-somebody");
    let archive = library("libjemalloc.a");
    embed(&embedded, &python, &["-Wl,--undefined=malloc".as_ref(), archive.as_os_str()])?;
    let required = ["by_malloc", "by_posix_memalign", "by_realloc", "frees:free"];
    check_embedded(&python, &embedded.interpreter, "python-of-somebody", &required)?;
    let mut strip = Command::new("strip");
    strip.arg(&python);
    run(strip)?.succeeded()?;
    check_embedded(&python, &embedded.interpreter, "python-of-somebody", &required).context("stripped")
}

/// Two in one process, one of which comes while we record.
fn loaded_later(interpreter: &Interpreter) -> Result<()> {
    let (first, second) = (library("libtcmalloc_minimal.so.4"), library("libmimalloc.so.2"));
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.args(under(&[("LD_PRELOAD", first.as_os_str())], &interpreter.python));
    command.arg("-I").arg(program("mallocs.py")).arg(&second).args(["mi_", "wait"]);
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "loaded");
    running.wait_for("its malloc is recorded from now on")?;
    running.write("\n")?;
    let ran = running.line()?;
    running.finish()?.succeeded()?;
    let profile = load(&output)?;
    watched(&profile, "libtcmalloc_minimal")?;
    watched(&profile, "libmimalloc")?;
    let required =
        ["by_zalloc", "by_malloc_aligned", "by_realloc_aligned", "frees:free_size", "frees:_ZdlPv"];
    check_family(&profile, &ran, &required, interpreter.minor)
}

/// jemalloc counts its calls itself. What is compared is the difference of two runs: before a program's first instruction, when we
/// begin, it has been called already.
fn says_itself(interpreter: &Interpreter) -> Result<()> {
    let (ours, its) = counts_of(interpreter, 50_000)?;
    let (ours_of_none, its_of_none) = counts_of(interpreter, 0)?;
    let (ours, its) = (ours - ours_of_none, its - its_of_none);
    say(&format!("allocations of 50,000 rounds: {ours}, jemalloc says {its}"));
    // A number and a block each; small numbers are there already.
    ensure!(its >= 99_000, "only {its}");
    ensure!(ours.abs_diff(its) <= its / 10_000, "{ours} allocations, jemalloc says {its}");
    Ok(())
}

/// Allocations as we count them, and as jemalloc does, without its caches, which do not.
fn counts_of(interpreter: &Interpreter, rounds: u32) -> Result<(u64, u64)> {
    let path = library("libjemalloc.so.2");
    let environment: [(&str, &OsStr); 4] = [
        ("LD_PRELOAD", path.as_os_str()),
        ("MALLOC_CONF", "tcache:false,stats_print:true,stats_print_opts:Jgdablxeh".as_ref()),
        ("PYTHONMALLOC", "malloc".as_ref()),
        ("PYTHONHASHSEED", "0".as_ref()),
    ];
    let code = format!("kept = [None] * 50_000\nfor number in range({rounds}): kept[number] = bytes(600)");
    let (profile, finished) =
        record_under(&environment, &interpreter.python, &["-s".as_ref(), "-c".as_ref(), code.as_ref()])?;
    let text = finished.stderr.get(finished.stderr.find('{').context("no statistics")?..).unwrap_or_default();
    let said: serde_json::Value =
        serde_json::Deserializer::from_str(text).into_iter().next().context("no statistics")??;
    let merged = &said["jemalloc"]["stats.arenas"]["merged"];
    let its = ["small", "large"].iter().map(|size| merged[size]["nmalloc"].as_u64()).sum::<Option<u64>>();
    let ours = Asked(&profile).sum(Metric::Allocated, |sample| sample.domain == Domain::Malloc).count;
    Ok((ours, its.with_context(|| said.to_string())?))
}

const ARCHIVE: &str = "/usr/lib/python3.11/config-3.11-x86_64-linux-gnu/libpython3.11.a";

fn can_link_statically() -> bool {
    let libraries = Path::new("/usr/lib/x86_64-linux-gnu");
    let has = ["libc.a", "libexpat.a", "libz.a"].iter().all(|name| libraries.join(name).exists());
    has && has_program("gcc") && has_program("objcopy") && Path::new(ARCHIVE).exists()
}

/// Its malloc is found by the program's own symbols. Without those there is none, and that is said wherever a figure is.
fn in_a_static_program() -> Result<()> {
    let folder = folder()?;
    let python = folder.path().join("python-of-somebody");
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-w", "-o"]).arg(&python).arg(program("embed.c"));
    gcc.args(["-I/usr/include/python3.11", ARCHIVE, "-lexpat", "-lz", "-lm"]);
    run(gcc)?.succeeded()?;
    let code = "import os\ndef buffers(): return [bytearray(100_000) for _ in range(50)]\nkept = buffers()\nos._exit(0)";
    let arguments: [&OsStr; 4] = ["-I".as_ref(), "-S".as_ref(), "-c".as_ref(), code.as_ref()];
    let buffers = |profile: &Profile| {
        let asked = Asked(profile);
        asked.sum(Metric::Live, |sample| {
            sample.domain == Domain::Malloc && asked.frames(sample).any(|frame| frame.function == "buffers")
        })
    };
    let (profile, finished) = record_under(&[], &python, &arguments)?;
    ensure!(buffers(&profile) == amount(50 * 100_001, 50), "{:?}", buffers(&profile));
    ensure!(!finished.stderr.contains("no malloc was found"), "{}", finished.stderr);

    let mut objcopy = Command::new("objcopy");
    objcopy.args(["--strip-all", "--keep-symbol=_PyRuntime", "--keep-symbol=Py_Version"]).arg(&python);
    run(objcopy)?.succeeded()?;
    let output = folder.path().join("x.pb.gz");
    let mut command = record(&output, &[]);
    command.arg(&python).args(arguments);
    let finished = run(command)?.succeeded()?;
    ensure!(finished.stderr.contains("no malloc was found"), "{}", finished.stderr);
    ensure!(finished.stderr.contains("some memory was not seen"), "{}", finished.stderr);
    let mut report = alloctrace();
    report.arg("report").arg(&output).args(["--by", "line", "--format", "json"]);
    let said: serde_json::Value = serde_json::from_str(&run(report)?.succeeded()?.stdout)?;
    let unseen = said["processes"][0]["unseen"][0].as_str().unwrap_or_default();
    ensure!(unseen.starts_with("no malloc was found"), "{said}");
    Ok(())
}
