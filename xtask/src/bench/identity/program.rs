//! The programs whose blocks are looked at, running under the reuse oracle.

use super::super::production::service::{Kind, Service};
use super::super::production::wrk;
use crate::command::{Invocation, Machine, Runner};
use crate::workspace;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

/// A cache that lives a minute would see no reuse in the ten seconds that a block is followed.
const LIFETIME_S: &str = "3";
/// Until caches are full and imports are over.
const WARM_UP_S: u32 = 8;

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// Parses JSON documents
    Json,
    /// Makes pydantic instances, dataclasses and plain objects
    Models,
    /// FastAPI on uvicorn
    Fastapi,
    /// Django on gunicorn
    Django,
}

impl Program {
    pub fn label(self) -> &'static str {
        match self {
            Self::Json => "JSON loop",
            Self::Models => "models",
            Self::Fastapi => "FastAPI",
            Self::Django => "Django",
        }
    }

    /// Start it, and wait until it is warm. It lasts as long as so many windows take.
    pub fn start(self, python: &Path, oracle: &Oracle, windows: u32) -> Result<Running> {
        // A window each 0.155 s, ten seconds for the last blocks, and some for a busy machine.
        let seconds = WARM_UP_S + windows / 4 + 30;
        let body = match self {
            Self::Json => Body::start_script("json_loop.py", python, oracle)?,
            Self::Models => Body::start_script("models.py", python, oracle)?,
            Self::Fastapi => Body::start_service(Kind::Fastapi, python, oracle, seconds)?,
            Self::Django => Body::start_service(Kind::Django, python, oracle, seconds)?,
        };
        sleep(Duration::from_secs(WARM_UP_S.into()));
        let pid = body.pid();
        Ok(Running { table: oracle.folder.join(format!("{pid}.oracle")), pid, body })
    }
}

/// The library, and where its tables go.
pub struct Oracle {
    library: PathBuf,
    folder: PathBuf,
}

impl Oracle {
    /// Compile it.
    pub fn build(runner: &impl Runner) -> Result<Self> {
        let folder = workspace::scratch().join("identity");
        fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
        let library = folder.join("reuse_oracle.so");
        let source = workspace::root().join("xtask/bench/identity/reuse_oracle.c").display().to_string();
        let output = library.display().to_string();
        let words = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", &output, &source];
        runner.output(&Invocation::new("gcc").args(words)).context("cannot build the reuse oracle")?;
        Ok(Self { library, folder })
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("PYTHONPATH", workspace::root().join("xtask/bench/identity").display().to_string()),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
            ("ORACLE_LIBRARY", self.library.display().to_string()),
            ("ORACLE_FOLDER", self.folder.display().to_string()),
        ]
    }
}

/// A program that runs; it ends when this is dropped.
pub struct Running {
    pub pid: u32,
    /// The oracle's table of it.
    pub table: PathBuf,
    body: Body,
}

enum Body {
    Script(Child),
    /// The service, and the load on it.
    Service(Service, JoinHandle<Result<wrk::Figures>>),
}

impl Body {
    fn start_script(name: &str, python: &Path, oracle: &Oracle) -> Result<Self> {
        let script = workspace::root().join("xtask/bench/identity").join(name).display().to_string();
        let mut invocation = Invocation::new(python.display().to_string()).args([script]);
        for (name, value) in oracle.environment() {
            invocation = invocation.env(name, value);
        }
        let child = invocation.to_command().stdout(Stdio::null()).spawn();
        Ok(Self::Script(child.with_context(|| format!("failed to start `{invocation}`"))?))
    }

    fn start_service(kind: Kind, python: &Path, oracle: &Oracle, seconds: u32) -> Result<Self> {
        let mut environment = oracle.environment().to_vec();
        environment.push(("SHOP_LIFETIME_S", LIFETIME_S.to_owned()));
        let service = Service::start(kind, python, &environment)?;
        let port = service.port;
        Ok(Self::Service(service, thread::spawn(move || wrk::load(&Machine, port, seconds))))
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Script(child) => child.id(),
            Self::Service(service, _) => service.pid,
        }
    }
}

impl Running {
    /// End it; an error if it did not run to here, for then it was not what was measured.
    pub fn end(mut self) -> Result<()> {
        match &mut self.body {
            Body::Script(child) => {
                if let Some(status) = child.try_wait().context("cannot wait for the program")? {
                    bail!("the program ended early, {status}");
                }
            }
            Body::Service(_, load) if load.is_finished() => bail!("the load on the service ended early"),
            Body::Service(..) => {}
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        let _ = fs::remove_file(&self.table);
        match &mut self.body {
            Body::Script(child) => {
                let _ = child.kill();
                child.wait().map(drop).context("cannot wait for the program")
            }
            Body::Service(..) => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A second time after `end`, which does no harm.
        let _ = self.finish();
    }
}
