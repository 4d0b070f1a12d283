//! `alloctrace record`: watches processes or a command and writes what holds their memory.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanCount};

use super::{FAILED, NOTHING_RECORDED, values};
use crate::{
    attach::{Mechanism, TableSizes},
    output::{self, Format, Options, summary, text},
    profile::{Metric, Profile, Unit},
    session::{self, Observer, Progress, Request, Subject},
};

/// Record a profile
#[derive(Debug, Args)]
pub struct Arguments {
    /// Record this process; may be given more than once
    #[arg(
        short,
        long = "pid",
        value_name = "PID",
        required_unless_present_any = ["command", "all", "cgroup"],
        conflicts_with = "command"
    )]
    pids: Vec<u32>,
    /// Record every Python process of the host, also those that start later
    #[arg(short, long, conflicts_with_all = ["pids", "command", "no_follow"])]
    all: bool,
    /// Record every Python process of a control group (version 2), also those that start later
    #[arg(long, value_name = "PATH", conflicts_with_all = ["pids", "command", "all", "no_follow"])]
    cgroup: Option<PathBuf>,
    /// Leave children alone
    #[arg(long)]
    no_follow: bool,
    /// Run this command and record it from its first allocation
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<OsString>,
    /// Where to write; the ending says what: .pb.gz (pprof), .svg, .folded, .json, .speedscope.json
    /// [default: alloctrace-NAME-TIME.pb.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to watch [default: budget]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// What budget mode may cost, in percent of the CPU time that the processes use for themselves [default: 1; 100 for a COMMAND]
    #[arg(long, value_name = "PERCENT", value_parser = values::percent)]
    budget: Option<f64>,
    /// Stop recording after this time, such as 30s or 5m; the process goes on
    #[arg(short, long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    #[command(flatten)]
    what: values::What,
    /// Say nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Say what is found and done on the way; twice: everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Record also on a kernel that is known to crash
    #[arg(long)]
    any_kernel: bool,
    /// Arm points one by one, as on kernels before 6.6
    #[arg(long, hide = true)]
    perf_events: bool,
    /// Arm points in all processes of an interpreter, as on kernels 6.6 to 6.9
    #[arg(long, hide = true, conflicts_with = "perf_events")]
    no_process_filter: bool,
    /// Room for this many live blocks, at 18 bytes each of the kernel's memory; past half of it blocks are sampled [default: 2064384]
    #[arg(long, value_name = "N")]
    live_blocks: Option<u32>,
    /// Room for this many stacks, at 128 bytes each of the kernel's memory; imports of a large program take 50,000 for each process [default: 130048]
    #[arg(long, value_name = "N")]
    stacks: Option<u32>,
    /// Start programs that do nothing: the floor that benches compare with
    #[arg(long, hide = true)]
    bench_empty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Every allocation and free
    Exact,
    /// Page faults and no allocator: whose stacks make resident memory grow
    Growth,
    /// Everything while that fits --budget, then estimates from short windows
    Budget,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    log_to_standard_error(arguments.verbose);
    let path = arguments.output.clone().unwrap_or_else(|| default_path(arguments));
    let format = Format::of(&path)?;
    output::check_writable(&path)?;
    let mode = mode(arguments)?;
    let request = Request {
        subject: subject(arguments),
        duration: arguments.duration,
        mechanism: mechanism(arguments),
        sizes: sizes(arguments)?,
        follow: !arguments.no_follow,
        any_kernel: arguments.any_kernel,
        bare: arguments.bench_empty,
        mode,
        is_usual_mode: arguments.mode.is_none() && arguments.budget.is_none(),
        steering: session::Steering::default(),
    };
    let mut console = Console::new(arguments, mode, path, format);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start")?;
    let recorded = runtime.block_on(session::record(&request, &mut console))?;
    std::mem::replace(&mut console.written, Ok(()))?;
    let status = recorded.status.map(|status| ExitCode::from(code_of(status)));
    if !recorded.anything && recorded.ran {
        console.line("nothing was recorded: no supported Python interpreter ran");
    }
    Ok(status.unwrap_or(if recorded.anything { ExitCode::SUCCESS } else { ExitCode::from(NOTHING_RECORDED) }))
}

/// `alloctrace launch`: the hidden verb that becomes the command.
#[derive(Debug, Args)]
pub struct LaunchArguments {
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Becomes the command; comes back only when that is impossible.
pub(super) fn launch(arguments: &LaunchArguments) -> ExitCode {
    let (code, error) = session::launch(&arguments.command);
    let name = arguments.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let error = anyhow::Error::new(error).context(format!("failed to run `{name}`"));
    let _ = writeln!(io::stderr(), "{}", super::error_line(&error));
    ExitCode::from(code)
}

/// Warnings always, more when asked for.
fn log_to_standard_error(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let logger = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(level).with_target(false);
    // A second recording in one process keeps the first one's.
    let _ = logger.try_init();
}

fn mode(arguments: &Arguments) -> anyhow::Result<session::Mode> {
    let is_command = !arguments.command.is_empty();
    let metric = arguments.what.metric();
    // What needs every event, and kernels that have no windows.
    let needs_all = arguments.bench_empty || arguments.perf_events || metric == Some(Metric::Temporary);
    let default = match arguments.budget {
        None if needs_all => Mode::Exact,
        _ => Mode::Budget,
    };
    let mode = arguments.mode.unwrap_or(default);
    if mode != Mode::Budget && arguments.budget.is_some() {
        bail!("--budget is for `--mode budget`: leave one of them out");
    }
    check_metric(mode, is_command, metric)?;
    let usual = if is_command { 100.0 } else { 1.0 };
    Ok(match mode {
        Mode::Exact => session::Mode::Exact,
        Mode::Growth => session::Mode::Growth,
        Mode::Budget => session::Mode::Budget { percent: arguments.budget.unwrap_or(usual) },
    })
}

/// Finds a metric that the mode will not know, before anything is recorded.
fn check_metric(mode: Mode, is_command: bool, metric: Option<Metric>) -> anyhow::Result<()> {
    match (mode, metric) {
        (Mode::Budget, Some(Metric::Temporary)) => bail!(
            "budget mode does not see which blocks are temporary: use another metric, or `--mode exact`"
        ),
        (Mode::Budget, Some(Metric::Peak)) if !is_command => bail!(
            "budget mode does not know the peak of processes that run: use `--metric live`, or `--mode exact`"
        ),
        (Mode::Budget, Some(Metric::Retained)) if is_command => bail!(
            "`retained` is told from blocks that windows saw, which are followed in processes that run and not in a COMMAND: use `--metric live`, or attach with `-p PID`"
        ),
        (Mode::Exact | Mode::Growth, Some(Metric::Retained)) => {
            bail!("only budget mode knows `retained`: use `--metric live`, or `--mode budget`")
        }
        _ => Ok(()),
    }
}

fn subject(arguments: &Arguments) -> Subject {
    if arguments.all {
        Subject::Everything
    } else if let Some(path) = &arguments.cgroup {
        Subject::Cgroup(path.clone())
    } else if arguments.command.is_empty() {
        let mut pids = arguments.pids.clone();
        pids.sort_unstable();
        pids.dedup();
        Subject::Processes(pids)
    } else {
        Subject::Command(arguments.command.clone())
    }
}

/// `None`: the best that the kernel has.
fn mechanism(arguments: &Arguments) -> Option<Mechanism> {
    let everywhere = arguments.no_process_filter.then_some(Mechanism::MultiEverywhere);
    everywhere.or_else(|| arguments.perf_events.then_some(Mechanism::Perf))
}

fn sizes(arguments: &Arguments) -> anyhow::Result<TableSizes> {
    let mut sizes = TableSizes::default();
    if let Some(blocks) = arguments.live_blocks {
        sizes.live_buckets = (blocks / 7).max(16);
    }
    if let Some(stacks) = arguments.stacks {
        if stacks >= 1 << 20 {
            bail!("--stacks {stacks} is more than an entry of the live table can name; at most 1048575");
        }
        sizes.accounts = stacks + tracer_ebpf::abi::PROCESSES;
        sizes.index_buckets = (stacks / 4).max(16);
    }
    Ok(sizes)
}

/// A shell's rule: the exit code, or 128 and the signal's number.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    u8::try_from(code.unwrap_or_default()).unwrap_or(FAILED)
}

fn default_path(arguments: &Arguments) -> PathBuf {
    let name = arguments.command.first().map_or_else(
        || arguments.pids.iter().map(u32::to_string).collect::<Vec<_>>().join("-"),
        |program| Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned(),
    );
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace([':', '-'], "");
    PathBuf::from(format!("alloctrace-{}-{time}.pb.gz", text::visible(&name).replace('/', "_")))
}

/// What the user sees while it records, and where the profile goes.
struct Console {
    path: PathBuf,
    format: Format,
    what: values::What,
    quiet: bool,
    terminal: bool,
    shows_live: bool,
    written: anyhow::Result<()>,
}

impl Console {
    fn new(arguments: &Arguments, mode: session::Mode, path: PathBuf, format: Format) -> Self {
        let terminal = io::stderr().is_terminal() && !arguments.quiet;
        let shows_live = !matches!(mode, session::Mode::Budget { .. });
        Self {
            path,
            format,
            what: arguments.what,
            quiet: arguments.quiet,
            terminal,
            shows_live,
            written: Ok(()),
        }
    }

    /// A metric that turns out not to be known is no reason to lose the recording.
    fn write(&self, profile: &Profile) -> anyhow::Result<()> {
        let options = self.what.options(profile).unwrap_or_else(|error| {
            let metric = profile.default_metric();
            // This format has all metrics.
            if self.format != Format::Pprof {
                self.line(&format!("{error}; wrote `{metric}` instead"));
            }
            Options { metric, unit: Unit::Bytes }
        });
        Ok(output::write_as(profile, self.format, &self.path, options)?)
    }

    fn line(&self, line: &str) {
        if self.quiet {
            return;
        }
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        // Standard error may be closed; the profile matters more.
        let _ = writeln!(io::stderr(), "{clear}alloctrace: {}", text::visible(line));
    }
}

impl Observer for Console {
    fn progress(&mut self, progress: Progress) {
        if !self.terminal {
            return;
        }
        let Progress { elapsed, events, live_bytes, losses } = progress;
        // Nothing is known of what lives where frees are not seen.
        let live = if self.shows_live { format!("{} live, ", HumanBytes(live_bytes)) } else { String::new() };
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{:.0} s, {} events, {live}{losses} lost",
            elapsed.as_secs_f64(),
            HumanCount(events),
        );
    }

    fn note(&mut self, line: &str) {
        self.line(line);
    }

    fn finished(&mut self, profile: Profile) {
        self.written = self.write(&profile);
        for line in summary::lines(&profile) {
            self.line(&line);
        }
        if self.written.is_ok() {
            self.line(&format!("wrote {}", self.path.display()));
        }
    }
}
