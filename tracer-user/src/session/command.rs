//! A COMMAND that we start: held at each exec until its program is known and armed, so that the first allocation is seen.
//!
//! The launcher is this very binary: it stops itself, and replaces itself with COMMAND once it is continued. From then on
//! the kernel half stops the process (and never any other) when it execs, at its program's entry point, and on its way
//! out; see docs/decisions/0003-hold-a-command.md. Only our own child is ever stopped.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use tracer_ebpf::abi::Cookie;

use super::{SessionError, system};
use crate::attach::{Armed, Kernel, ProbePoint, Program};
use crate::discover::{MappedFile, Target};
use crate::plan::FileOffset;
use crate::plan::elf::Elf;

/// Shells answer with this for a command that does not exist, and with 126 for one that cannot be run.
pub const NOT_FOUND: u8 = 127;
/// See [`NOT_FOUND`].
pub const NOT_EXECUTABLE: u8 = 126;

/// The hidden verb's work: stop, then become the command. Returns only when that fails.
pub fn launch(command: &[OsString]) -> (u8, io::Error) {
    let Some((program, arguments)) = command.split_first() else {
        return (NOT_FOUND, io::ErrorKind::InvalidInput.into());
    };
    if let Err(error) = kill_process(getpid(), Signal::STOP) {
        return (NOT_EXECUTABLE, error.into());
    }
    let error = Command::new(program).args(arguments).exec();
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    (code, error)
}

/// What happened to the child.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The kernel half holds it: it has a new program.
    HeldAfterExec,
    /// The kernel half holds it at its program's entry point.
    HeldAtEntry,
    /// The kernel half holds it on its way out.
    HeldAtExit,
    /// It has ended.
    Ended(ExitStatus),
}

/// The child.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    handled: (u64, u64),
    entry: Option<Armed>,
    exit: Option<Armed>,
    /// Waited for: its number may be another's by now.
    has_ended: bool,
}

/// Whatever becomes of the recording, the command is not left stopped.
impl Drop for Child {
    fn drop(&mut self) {
        self.entry = None;
        self.exit = None;
        if !self.has_ended {
            let _ = self.go_on();
        }
    }
}

impl Child {
    /// Starts the launcher and lets it become the command; the first hold comes when it does.
    pub fn start(kernel: &mut Kernel, command: &[OsString]) -> Result<Self, SessionError> {
        let name =
            || command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |source| SessionError::Start { program: name(), source };
        let child =
            Command::new("/proc/self/exe").arg("launch").arg("--").args(command).spawn().map_err(failed)?;
        let raw = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = raw.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        // It stops itself; anything else means that it has died.
        waitpid(Some(pid), WaitOptions::UNTRACED).map_err(system("wait for the command's launcher"))?;
        kernel.set_held(child.id())?;
        let child = Self { pid, handled: kernel.holds()?, entry: None, exit: None, has_ended: false };
        child.go_on()?;
        Ok(child)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Lets it run.
    pub fn go_on(&self) -> Result<(), SessionError> {
        self.send(Signal::CONT)
    }

    /// Sends it a signal; one that has ended needs none.
    pub fn send(&self, signal: Signal) -> Result<(), SessionError> {
        match kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(system("signal the command")(error)),
        }
    }

    /// What has happened since the last call; never waits. A stop that is not ours is left to whoever made it.
    pub fn change(&mut self, kernel: &Kernel) -> Result<Option<Change>, SessionError> {
        loop {
            let options = WaitOptions::UNTRACED | WaitOptions::NOHANG;
            let Some((_, status)) =
                waitpid(Some(self.pid), options).map_err(system("wait for the command"))?
            else {
                return Ok(None);
            };
            if !status.stopped() {
                self.has_ended = true;
                return Ok(Some(Change::Ended(ExitStatus::from_raw(status.as_raw()))));
            }
            let (after_exec, at_point) = kernel.holds()?;
            let (handled_execs, handled_points) =
                std::mem::replace(&mut self.handled, (after_exec, at_point));
            if after_exec > handled_execs {
                return Ok(Some(Change::HeldAfterExec));
            }
            if at_point > handled_points {
                return Ok(Some(if self.entry.is_some() { Change::HeldAtEntry } else { Change::HeldAtExit }));
            }
        }
    }

    /// The program it runs.
    pub fn program(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", self.id()))
    }

    /// After an exec: holds it again at the new program's entry point, when the loader has mapped what it links.
    pub fn hold_at_entry(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        self.exit = None;
        self.entry = None;
        let program = self.program();
        let Ok(bytes) = fs::read(&program) else { return Ok(()) };
        let Some(offset) = Elf::parse(&bytes).ok().and_then(|elf| elf.offset_of(elf.entry())) else {
            return Ok(());
        };
        self.entry = Some(self.hold_at(kernel, &program, offset)?);
        Ok(())
    }

    /// Holds it once more when it leaves, while its memory can still be read: at `_Exit`. In glibc that is another name of `_exit`
    /// (posix/_exit.c); in musl `exit` calls `_Exit`, and so does `_exit` (src/exit/exit.c, src/unistd/_exit.c).
    pub fn hold_at_exit(&mut self, kernel: &mut Kernel, target: &Target) -> Result<(), SessionError> {
        self.entry = None;
        let Some(MappedFile { path, .. }) = &target.c_library else { return Ok(()) };
        let Ok(bytes) = fs::read(path) else { return Ok(()) };
        let offset = Elf::parse(&bytes).ok().and_then(|elf| {
            let symbol = elf.symbol("_Exit").or_else(|| elf.symbol("_exit"))?;
            elf.offset_of(symbol.address)
        });
        if let Some(offset) = offset {
            self.exit = Some(self.hold_at(kernel, path, offset)?);
        }
        Ok(())
    }

    /// No more holds.
    pub fn release(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        kernel.set_held(0)?;
        self.entry = None;
        self.exit = None;
        // It may have been held just before.
        self.go_on()
    }

    /// Forgets the point at the entry.
    pub fn passed_entry(&mut self) {
        self.entry = None;
    }

    fn hold_at(&self, kernel: &mut Kernel, path: &Path, offset: FileOffset) -> Result<Armed, SessionError> {
        let point = ProbePoint { offset, cookie: Cookie(0) };
        Ok(kernel.arm(Program::Hold, path, self.id(), &[point])?)
    }
}
