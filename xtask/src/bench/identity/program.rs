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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

/// A cache that lives a minute would see no reuse in the ten seconds that a block is followed.
const LIFETIME_S: &str = "3";
/// Until caches are full and imports are over.
const WARM_UP: Duration = Duration::from_secs(8);
/// The load is put on in runs of wrk so long; when the program is to end, the last one is waited for.
const LOAD_S: u32 = 2;

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

    /// Start it, and wait until it is warm.
    pub fn start(self, python: &Path, oracle: &Oracle) -> Result<Running> {
        oracle.forget()?;
        let body = match self {
            Self::Json => Body::start_script("json_loop.py", python, oracle)?,
            Self::Models => Body::start_script("models.py", python, oracle)?,
            Self::Fastapi => Body::start_service(Kind::Fastapi, python, oracle)?,
            Self::Django => Body::start_service(Kind::Django, python, oracle)?,
        };
        sleep(WARM_UP);
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

    /// Remove the tables of earlier programs, also of those that only started another.
    fn forget(&self) -> Result<()> {
        let failed = || format!("failed to empty `{}`", self.folder.display());
        for entry in fs::read_dir(&self.folder).with_context(failed)?.flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "oracle") {
                fs::remove_file(entry.path()).with_context(failed)?;
            }
        }
        Ok(())
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
    /// The load goes first.
    Service {
        load: Load,
        service: Service,
    },
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

    fn start_service(kind: Kind, python: &Path, oracle: &Oracle) -> Result<Self> {
        let mut environment = oracle.environment().to_vec();
        environment.push(("SHOP_LIFETIME_S", LIFETIME_S.to_owned()));
        let service = Service::start(kind, python, &environment)?;
        Ok(Self::Service { load: Load::start(service.port), service })
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Script(child) => child.id(),
            Self::Service { service, .. } => service.pid,
        }
    }
}

impl Running {
    /// End it; an error if it did not run to here, for then it was not what was measured.
    pub fn end(mut self) -> Result<()> {
        match &mut self.body {
            Body::Service { load, .. } => load.stop(),
            Body::Script(child) => match child.try_wait().context("cannot wait for the program")? {
                Some(status) => bail!("the program ended early, {status}"),
                None => Ok(()),
            },
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Body::Script(child) = &mut self.body {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(&self.table);
    }
}

/// Load on a service, until it is told to stop.
struct Load {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                wrk::load(&Machine, port, LOAD_S)?;
            }
            Ok(())
        });
        Self { is_over, thread: Some(thread) }
    }

    /// An error if it ended before, as when requests failed.
    fn stop(&mut self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => bail!("the thread that puts load on the service is gone"),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
