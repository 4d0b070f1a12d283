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
    layout::{InterpreterLayout, layout},
    memory::{Mapping, ProcessMemory, mappings},
};
use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// One installed interpreter.
#[derive(Debug, Clone)]
pub struct Interpreter {
    pub label: String,
    pub python: PathBuf,
    pub layout: &'static InterpreterLayout,
    /// Folder of `Python.h`, if it is installed.
    pub headers: Option<PathBuf>,
}

/// Every interpreter with a row in the table: pyenv's, and the system's.
pub fn interpreters() -> Vec<Interpreter> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")));
    let versions = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let pyenv = versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python3"));
    let system = (8..=13).map(|minor| PathBuf::from(format!("/usr/bin/python3.{minor}")));
    let mut found: Vec<Interpreter> = pyenv.chain(system).filter_map(|python| probe(&python)).collect();
    found.sort_by_key(|interpreter| (interpreter.layout.minor, interpreter.label.clone()));
    found
}

fn probe(python: &Path) -> Option<Interpreter> {
    let program = "import sys, sysconfig; print(sys.version_info[1], sys.version.split()[0], \
                   bool(sysconfig.get_config_var('Py_GIL_DISABLED')), sysconfig.get_path('include'))";
    let output = Command::new(python).args(["-I", "-c", program]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let [minor, version, free_threaded, include] =
        text.trim().splitn(4, ' ').collect::<Vec<_>>().try_into().ok()?;
    let headers = Some(PathBuf::from(include)).filter(|include| include.join("Python.h").exists());
    let origin = if python.starts_with("/usr") { "system" } else { "pyenv" };
    let label = format!("{version}_{origin}");
    let layout = layout(3, minor.parse().ok()?).filter(|_| free_threaded == "False")?;
    Some(Interpreter { label, python: python.to_owned(), layout, headers })
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
        let mut command = Command::new(&interpreter.python);
        command.arg("-I").arg(program(name)).args(arguments).env_clear();
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn()?;
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
