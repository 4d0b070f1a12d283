//! `alloctrace serve`: the sidecar.

use std::fs;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::values;
use crate::attach::TableSizes;
use crate::serve::access::{Access, AccessFiles};
use crate::serve::engine::Engine;
use crate::serve::history::{History, Limits};
use crate::serve::keeper::{Keeper, Sink};
use crate::serve::push::{Labeller, Push, Settings};
use crate::serve::redact::Redactor;
use crate::serve::state::{Kind, State};
use crate::serve::watch::Condition;
use crate::serve::watcher::Watcher;
use crate::serve::{confine, http};
use crate::session::{Mode, Request, Steering, Subject};

/// News that wait; a keeper that writes to a slow disk holds recordings up rather than taking more memory.
const WAITING: usize = 4;
/// For what waits to be pushed when the sidecar ends.
const LAST_PUSH: Duration = Duration::from_secs(5);
/// Tables of the recording of allocations, 24 MiB: its windows keep no live blocks.
const OF_ALLOCATIONS: TableSizes = TableSizes {
    live_buckets: 1_024,
    index_buckets: 24_576,
    code_buckets: 8_192,
    accounts: 98_304,
    ring_bytes: 8 << 20,
};
/// Tables of the recording of resident memory, 33 MiB: a million pages by their own count, and more by a sample of them.
const OF_RESIDENT: TableSizes = TableSizes {
    live_buckets: 147_200,
    index_buckets: 16_384,
    code_buckets: 4_096,
    accounts: 65_536,
    ring_bytes: 4 << 20,
};

/// Run beside services for months: history, HTTP, metrics, push
#[derive(Debug, Args)]
pub struct Arguments {
    /// Watch this process; may be given more than once
    #[arg(short, long = "pid", value_name = "PID", conflicts_with_all = ["all", "cgroup", "names"])]
    pids: Vec<u32>,
    /// Watch every Python process, also those that start later [default]
    #[arg(short, long, conflicts_with_all = ["cgroup", "names"])]
    all: bool,
    /// Watch every Python process of a control group (version 2), also those that start later
    #[arg(long, value_name = "PATH", conflicts_with = "names")]
    cgroup: Option<PathBuf>,
    /// Watch every Python process whose command line holds this, also those that start later; may be given more than once
    #[arg(long = "name", value_name = "TEXT")]
    names: Vec<String>,
    /// Where to answer; other than on a loopback address only with a token or certificates
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Ask for the token in this file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Answer over TLS with this certificate
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Ask for certificates of this authority
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Where the history is kept [default: /var/lib/alloctrace, or $STATE_DIRECTORY]
    #[arg(long, value_name = "FOLDER")]
    history: Option<PathBuf>,
    /// Most that the history takes on disk
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = values::size)]
    history_size: u64,
    /// What is older goes
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
    history_age: Duration,
    /// What windows may cost, in percent of the CPU time that the processes use for themselves
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = values::percent)]
    budget: f64,
    /// Leave resident memory out
    #[arg(long)]
    no_growth: bool,
    /// Leave children alone
    #[arg(long, requires = "pids")]
    no_follow: bool,
    /// Push each minute to this OpenTelemetry collector
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Push each minute to this Pyroscope
    #[arg(long, value_name = "URL")]
    pyroscope: Option<String>,
    /// The token for that
    #[arg(long, value_name = "FILE")]
    push_token_file: Option<PathBuf>,
    /// A label of all that is pushed; may be given more than once
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = values::label)]
    labels: Vec<(String, String)>,
    /// Keep a profile when this begins, such as `live>2GiB` or `share>90% for 30s`; may be given more than once
    #[arg(long, value_name = "CONDITION")]
    snapshot_when: Vec<Condition>,
    /// Answer and push without names of files, functions and commands
    #[arg(long)]
    redact: bool,
    /// Keep all capabilities and system calls, where giving them up does not work
    #[arg(long)]
    unconfined: bool,
    /// Record also on a kernel that is known to crash
    #[arg(long)]
    any_kernel: bool,
    /// Say what is found and done on the way; twice: everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    log(arguments.verbose);
    let files = AccessFiles {
        token: arguments.token_file.clone(),
        certificate: arguments.tls_certificate.clone(),
        key: arguments.tls_key.clone(),
        client_authority: arguments.tls_client_ca.clone(),
    };
    let access = Access::choose(arguments.listen, &files)?;
    // Later they may end; that none is there at all is better said now.
    if let Some(pid) = arguments.pids.iter().find(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
        bail!("no process {pid}: it may have ended; `ps` shows those that run");
    }
    let folder = folder(arguments);
    let limits = Limits { bytes: arguments.history_size, age: arguments.history_age };
    let state = State::new(History::open(&folder, limits)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .context("failed to start")?;
    // Before anything is armed: an address that is taken costs nothing then.
    let listener = runtime
        .block_on(TcpListener::bind(arguments.listen))
        .with_context(|| format!("failed to listen on `{}`: choose another by --listen", arguments.listen))?;
    let redactor = redactor(arguments)?;
    let _statistics = confine(arguments)?;
    let push = Arc::new(push(arguments)?);
    let sinks = sinks(&push, redactor.clone());
    let ended = runtime.block_on(async { told_to_end() })?;
    let recording = Recording::start(arguments, &state, sinks)?;
    tracing::warn!("answering on {}", arguments.listen);
    let router = http::router(Arc::new(state), access.clone(), redactor);
    runtime.block_on(http::serve(listener, router, access, ended));
    recording.stop();
    let waiting = Arc::try_unwrap(push).map_or(0, |push| push.finish(LAST_PUSH).waiting);
    if waiting > 0 {
        tracing::warn!("{waiting} profiles could not be pushed before the end");
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives up what is not needed, before any thread is started. What comes back keeps the kernel's account of our programs going, which a process without CAP_SYS_ADMIN cannot ask for.
fn confine(arguments: &Arguments) -> anyhow::Result<Option<OwnedFd>> {
    let missing = confine::missing()?;
    if !missing.is_empty() {
        tracing::warn!("without {}: tracing may not work (alloctrace doctor says more)", missing.join(", "));
    }
    let statistics = crate::attach::keep_statistics().ok();
    if !arguments.unconfined {
        confine::confine()?;
    }
    Ok(statistics)
}

/// All that records.
struct Recording {
    engines: Vec<Engine>,
    watcher: Watcher,
    keeper: std::thread::JoinHandle<()>,
}

impl Recording {
    fn start(arguments: &Arguments, state: &State, sinks: Vec<Sink>) -> anyhow::Result<Self> {
        let (sender, news) = sync_channel(WAITING);
        let mut engines =
            vec![(Kind::Allocations, Mode::Budget { percent: arguments.budget }, OF_ALLOCATIONS)];
        if !arguments.no_growth {
            engines.push((Kind::Resident, Mode::Growth, OF_RESIDENT));
        }
        let mut started = Vec::new();
        let mut controls = Vec::new();
        for (kind, mode, sizes) in engines {
            let request = request(arguments, mode, sizes);
            let engine = Engine::start(kind, request, state.clone(), sender.clone())
                .context("failed to start a recording")?;
            if kind == Kind::Allocations {
                // What `seconds` of /debug/pprof asks for.
                state.add_recording(engine.control());
            }
            controls.push((kind, engine.control()));
            started.push(engine);
        }
        let watcher = Watcher::start(state.clone(), arguments.snapshot_when.clone(), sender)
            .context("failed to start the watcher")?;
        let keeper = Keeper::new(state.clone(), sinks, controls);
        let keeper = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || keeper.run(&news))
            .context("failed to start the keeper")?;
        Ok(Self { engines: started, watcher, keeper })
    }

    /// What was seen since the last minute is kept too.
    fn stop(self) {
        self.watcher.stop();
        self.engines.iter().for_each(Engine::ask_to_stop);
        self.engines.into_iter().for_each(Engine::stop);
        if self.keeper.join().is_err() {
            tracing::error!("the keeper has failed; please report this");
        }
    }
}

fn request(arguments: &Arguments, mode: Mode, sizes: TableSizes) -> Request {
    Request {
        subject: subject(arguments),
        duration: None,
        mechanism: None,
        sizes,
        follow: !arguments.no_follow,
        any_kernel: arguments.any_kernel,
        bare: false,
        mode,
        is_usual_mode: false,
        steering: Steering::default(),
    }
}

fn subject(arguments: &Arguments) -> Subject {
    if !arguments.pids.is_empty() {
        return Subject::Processes(arguments.pids.clone());
    }
    if let Some(path) = &arguments.cgroup {
        return Subject::Cgroup(path.clone());
    }
    match arguments.names.is_empty() {
        true => Subject::Everything,
        false => Subject::Named(arguments.names.clone()),
    }
}

fn push(arguments: &Arguments) -> anyhow::Result<Push> {
    let settings = Settings {
        otlp: arguments.otlp.clone(),
        pyroscope: arguments.pyroscope.clone(),
        token_file: arguments.push_token_file.clone(),
        certificates: std::env::var_os("SSL_CERT_FILE").map(PathBuf::from),
        ..Settings::default()
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let labeller = Labeller::gather(Path::new("/"), environment, &arguments.labels);
    Ok(Push::start(&settings, labeller)?)
}

fn sinks(push: &Arc<Push>, redactor: Option<Redactor>) -> Vec<Sink> {
    let push = Arc::clone(push);
    vec![Box::new(move |kind, span, profile| {
        let profile = match &redactor {
            Some(redactor) => Arc::new(redactor.profile(profile)),
            None => Arc::clone(profile),
        };
        push.offer(kind, span, profile);
    })]
}

/// A key of our own for each start: hashes of one day say nothing about those of another.
fn redactor(arguments: &Arguments) -> anyhow::Result<Option<Redactor>> {
    if !arguments.redact {
        return Ok(None);
    }
    let mut key = [0; 32];
    let mut source = fs::File::open("/dev/urandom").context("failed to open `/dev/urandom`")?;
    std::io::Read::read_exact(&mut source, &mut key).context("failed to read `/dev/urandom`")?;
    Ok(Some(Redactor::new(&key)))
}

/// As systemd says (systemd.exec, `StateDirectory=`), or the usual one.
fn folder(arguments: &Arguments) -> PathBuf {
    let of_systemd = || std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    arguments.history.clone().or_else(of_systemd).unwrap_or_else(|| PathBuf::from("/var/lib/alloctrace"))
}

/// Ends with SIGTERM or SIGINT, from now on.
fn told_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to catch signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to catch signals")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn log(verbose: u8) {
    let ours = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::new(ours);
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// What packages' manifests are checked against, which another crate keeps, is what we take.
    #[test]
    fn packages_know_our_flags() {
        let known = include_str!("../../../xtask/src/package/manifests/flags.rs");
        let table = known.split("const FLAGS").nth(1).unwrap().split("];").next().unwrap();
        let rows: Vec<(&str, bool)> = table
            .lines()
            .filter_map(|line| line.trim().strip_prefix("(\"--")?.split_once("\", "))
            .map(|(name, rest)| (name, rest.starts_with("true")))
            .collect();
        assert!(rows.len() >= 20, "{rows:?}");
        let command = crate::cli::Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for (name, takes_value) in rows {
            let flag = serve.get_arguments().find(|argument| argument.get_long() == Some(name));
            let takes = flag.map(|flag| flag.get_action().takes_values());
            assert_eq!(takes, Some(takes_value), "--{name}");
        }
    }
}
