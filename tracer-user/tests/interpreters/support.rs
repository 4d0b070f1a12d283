//! Finds interpreters and runs programs in them.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use alloctrace::discover::{
    self,
    layout::InterpreterLayout,
    memory::{Mapping, ProcessMemory, mappings},
};
use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// One installed interpreter.
#[derive(Debug, Clone)]
pub struct Interpreter {
    pub label: String,
    pub python: PathBuf,
    pub layout: InterpreterLayout,
    /// Folders of `Python.h` and of what it includes, if they are installed.
    pub headers: Option<Vec<PathBuf>>,
}

/// Every interpreter of a supported version: pyenv's, the system's, and those that `cargo xtask setup` has unpacked; and what we could
/// not look into, which is a failure.
pub fn interpreters() -> (Vec<Interpreter>, Vec<String>) {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")));
    let versions = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let pyenv = versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python3"));
    let system = (8..=15).map(|minor| PathBuf::from(format!("/usr/bin/python3.{minor}")));
    let mut refused = Vec::new();
    let mut found = Vec::new();
    for probed in pyenv.chain(system).chain(unpacked()).filter_map(|python| probe(&python)) {
        match probed {
            Ok(interpreter) => found.push(interpreter),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    found.sort_by_key(|interpreter: &Interpreter| (interpreter.layout.minor, interpreter.label.clone()));
    (found, refused)
}

/// Folder of the scripts that run unpacked interpreters.
fn unpacked_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/pythons")
}

fn unpacked() -> impl Iterator<Item = PathBuf> {
    fs::read_dir(unpacked_folder().join("bin")).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// `None` for what is not there or none of ours.
fn probe(python: &Path) -> Option<Result<Interpreter>> {
    let program = "import sys, sysconfig; print(sys.version_info[1], sys.version.split()[0], \
                   bool(sysconfig.get_config_var('Py_GIL_DISABLED')), sysconfig.get_path('include'))";
    let output = Command::new(python).args(["-I", "-c", program]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let [minor, version, free_threaded, include] =
        text.trim().splitn(4, ' ').collect::<Vec<_>>().try_into().ok()?;
    let is_supported = minor.parse().is_ok_and(|minor: u8| (8..=15).contains(&minor));
    if !is_supported || free_threaded != "False" {
        return None;
    }
    let (origin, root) = match python.strip_prefix(unpacked_folder()).ok() {
        // `bin/SUITE-pythonVERSION`, and its root is `SUITE`.
        Some(script) => {
            let suite = script.file_name()?.to_str()?.split_once('-')?.0;
            match suite {
                // That is built here against musl and runs where it is.
                "musl" => ("musl", PathBuf::from("/")),
                suite => ("debian", unpacked_folder().join(suite)),
            }
        }
        None if python.starts_with("/usr") => ("system", PathBuf::from("/")),
        None => ("pyenv", PathBuf::from("/")),
    };
    let include = root.join(include.trim_start_matches('/'));
    let has_headers = include.join("Python.h").exists();
    let folders = vec![include.clone(), include.join("internal"), root.join("usr/include")];
    let label = format!("{version}_{origin}");
    let headers = has_headers.then_some(folders);
    let found = layout_of(python).with_context(|| label.clone());
    Some(found.map(|layout| Interpreter { label, python: python.to_owned(), layout, headers }))
}

/// What we find when we look into one that runs: the row of its version, with what it publishes itself.
fn layout_of(python: &Path) -> Result<InterpreterLayout> {
    let mut command = Command::new(python);
    command.args(["-I", "-c", "import sys; print(flush=True); sys.stdin.read()"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut String::new())?;
    let found = discover::Target::inspect(Path::new("/proc"), child.id());
    drop(child.stdin.take());
    child.wait()?;
    Ok(found?.interpreter.layout)
}

/// A test program.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// A running target; killed when dropped.
pub struct Target {
    pub child: Child,
    output: BufReader<ChildStdout>,
}

impl Target {
    pub fn start(interpreter: &Interpreter, name: &str, arguments: &[&str], stderr: Stdio) -> Result<Self> {
        Self::start_with(interpreter, name, arguments, Stdio::inherit(), stderr)
    }

    /// One that is asked by its standard input.
    pub fn start_asked(
        interpreter: &Interpreter,
        name: &str,
        arguments: &[&str],
        stderr: Stdio,
    ) -> Result<Self> {
        Self::start_with(interpreter, name, arguments, Stdio::piped(), stderr)
    }

    fn start_with(
        interpreter: &Interpreter,
        name: &str,
        arguments: &[&str],
        stdin: Stdio,
        stderr: Stdio,
    ) -> Result<Self> {
        let mut command = Command::new(&interpreter.python);
        command.arg("-I").arg(program(name)).args(arguments).env_clear();
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, output })
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the target ended early");
        Ok(line)
    }

    /// Waits until it is in a state of /proc/PID/stat, such as `S`, asleep, and `T`, stopped.
    pub fn wait_until(&self, state: char) -> Result<()> {
        for _ in 0..1000 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
            // The state stands behind the name, which may hold anything (fs/proc/array.c, do_task_stat).
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(state)) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("the target did not come into state {state}")
    }

    pub fn memory(&self) -> Result<ProcessMemory> {
        Ok(ProcessMemory::open(Path::new("/proc"), self.child.id())?)
    }

    pub fn mappings(&self) -> Result<Vec<Mapping>> {
        Ok(mappings(Path::new("/proc"), self.child.id())?)
    }

    /// Address of a symbol in any file that is mapped.
    pub fn symbol(&self, name: &str) -> Result<u64> {
        let maps = self.mappings()?;
        let files = maps.iter().filter(|mapping| mapping.inode != 0 && mapping.name.contains("python"));
        for mapping in files.filter(|mapping| mapping.offset == 0) {
            let bytes = fs::read(&mapping.name)?;
            let Ok(file) = object::File::parse(&*bytes) else { continue };
            let base = file.segments().map(|segment| segment.address()).min().unwrap_or(0);
            let symbol =
                file.dynamic_symbols().chain(file.symbols()).find(|symbol| symbol.name() == Ok(name));
            if let Some(symbol) = symbol.filter(|symbol| symbol.address() != 0) {
                return Ok(mapping.start - (base & !0xfff) + symbol.address());
            }
        }
        anyhow::bail!("symbol `{name}` not found in the files of process {}", self.child.id())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
