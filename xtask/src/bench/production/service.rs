//! The services of the production bench: starting one, asking it for what it measures itself, and ending it.

use crate::command::Invocation;
use crate::workspace;
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A service takes a second to start; one that is traced from its start, or on a busy machine, longer.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Longest answer that is waited for: a service under tracemalloc with 25 frames takes a second for a request.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// FastAPI on uvicorn, one process
    Fastapi,
    /// Django on gunicorn, one worker
    Django,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Fastapi, Self::Django];

    pub fn label(self) -> &'static str {
        match self {
            Self::Fastapi => "FastAPI on uvicorn",
            Self::Django => "Django on gunicorn",
        }
    }

    fn command(self, python: &Path, port: u16) -> Invocation {
        let words = match self {
            Self::Fastapi => {
                format!(
                    "uvicorn fastapi_shop:app --host 127.0.0.1 --port {port} --no-access-log --log-level warning"
                )
            }
            Self::Django => {
                format!(
                    "gunicorn django_shop:application --workers 1 --bind 127.0.0.1:{port} --timeout 120 --log-level warning"
                )
            }
        };
        Invocation::new(python.display().to_string()).args(["-m"]).args(words.split_whitespace())
    }
}

/// A running service; it ends when this is dropped.
pub struct Service {
    child: Child,
    pub port: u16,
    /// The process that serves; gunicorn's first process only watches it.
    pub pid: u32,
}

impl Service {
    /// Start it, with these variables in its environment, and wait until it answers. Its standard error goes to a file in its folder.
    pub fn start(kind: Kind, python: &Path, environment: &[(&str, String)]) -> Result<Self> {
        let folder = workspace::scratch().join("services").join(format!("{kind:?}").to_lowercase());
        fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
        let log = folder.join("errors.log");
        let errors = File::create(&log).with_context(|| format!("failed to create `{}`", log.display()))?;
        let port = free_port()?;
        let mut invocation = kind
            .command(python, port)
            .directory(workspace::root().join("xtask/bench/services"))
            .env("SHOP_FOLDER", folder.display().to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        invocation
            .environment
            .extend(environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let mut command = invocation.to_command();
        let child = command
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("failed to start `{invocation}`"))?;
        let mut service = Self { child, port, pid: 0 };
        service.pid = service.first_answer().with_context(|| format!("see `{}`", log.display()))?;
        Ok(service)
    }

    fn first_answer(&mut self) -> Result<u32> {
        let until = Instant::now() + STARTS_WITHIN;
        loop {
            match self.ask("pid", "x") {
                Ok(answer) => {
                    let pid = answer["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                    return pid.with_context(|| format!("the service said `{answer}`, without its pid"));
                }
                Err(error) if Instant::now() > until => {
                    return Err(error.context("the service does not answer"));
                }
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait().context("cannot wait for the service")? {
                bail!("the service ended at once, {status}");
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Ask `/bench/VERB/ARGUMENT`, which answers JSON.
    pub fn ask(&self, verb: &str, argument: &str) -> Result<serde_json::Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("failed to connect")?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).context("failed to set a time limit")?;
        let request =
            format!("GET /bench/{verb}/{argument} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).context("failed to ask")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("failed to read the answer")?;
        body(&answer).with_context(|| format!("the service did not do `{verb} {argument}`"))
    }

    /// The longest stall since this was asked last, in milliseconds.
    pub fn longest_stall_ms(&self) -> Result<f64> {
        let answer = self.ask("stalls", "x")?;
        let nanoseconds = answer["longest_ns"].as_f64();
        Ok(nanoseconds.with_context(|| format!("the service said `{answer}`, without its stalls"))? / 1e6)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The first process of gunicorn takes its worker along only when it is asked politely.
        let polite = Invocation::new("kill").args(["-TERM".to_owned(), self.child.id().to_string()]);
        let _ = polite.to_command().status();
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody had a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("failed to find a free port")?;
    Ok(listener.local_addr().context("failed to find a free port")?.port())
}

/// The JSON of an HTTP answer that says that all is well.
fn body(answer: &str) -> Result<serde_json::Value> {
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "it said `{status}`");
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    serde_json::from_str(body).with_context(|| format!("it said `{body}`, which is no JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_json() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"pid\":7}";
        assert_eq!(body(answer).unwrap()["pid"], 7);
        let error = body("HTTP/1.1 500 Internal Server Error\r\n\r\nno").unwrap_err();
        assert_eq!(error.to_string(), "it said `HTTP/1.1 500 Internal Server Error`");
        assert!(body("").is_err());
        assert!(body("HTTP/1.1 200 OK\r\n\r\nno").is_err());
    }
}
