//! One process of a recording: found, planned, armed, and measured against its own pools.

use std::path::Path;

use crate::attach::{Armed, FilePlan, Kernel, Slot, arm, kernel_layout};
use crate::discover::layout::InterpreterLayout;
use crate::discover::memory::{ProcessMemory, ReadMemory as _};
use crate::discover::{DiscoverError, Target};
use crate::plan::cache::PlanCache;
use crate::plan::{Plan, PlanError, plan_interpreter};
use crate::session::SessionError;
use crate::session::mallocs::Mallocs;

pub(super) const PROC: &str = "/proc";

/// A process that is being traced.
#[derive(Debug)]
pub struct Traced {
    /// What was found in it.
    pub target: Target,
    /// Its place in the kernel's tables.
    pub slot: Slot,
    /// Address of the pointer to the running thread's state, as the kernel half knows it.
    thread_state_pointer: u64,
    armed: Vec<Armed>,
    /// Its allocators besides pymalloc.
    pub mallocs: Mallocs,
}

impl Traced {
    /// Plans and arms a process.
    pub fn arm(kernel: &mut Kernel, target: Target, number: u16, bare: bool) -> Result<Self, SessionError> {
        let interpreter = &target.interpreter;
        let cache = PlanCache::usual();
        let interpreter_plan = plan_file(&interpreter.file.path, &interpreter.file.name, |bytes| {
            let found =
                cache.as_ref().map_or_else(|| plan_interpreter(bytes), |cache| cache.interpreter(bytes))?;
            for note in &found.checks.notes {
                tracing::warn!(file = interpreter.file.name, "{note}");
            }
            Ok(found.plan)
        })?;
        if interpreter_plan.points.is_empty() {
            return Err(SessionError::NoPoints { file: interpreter.file.name.clone() });
        }
        let slot = Slot { pid: target.pid, number };
        let pointer = current_pointer(&target).unwrap_or_else(|| start_pointer(&target));
        kernel.set_layout(u32::from(number), &kernel_layout(&target, pointer))?;
        let mallocs = Mallocs::arm(kernel, slot, &target, bare)?;
        let plans = [FilePlan { path: &interpreter.file.path, plan: &interpreter_plan }];
        let armed = arm(kernel, slot, &plans, bare)?;
        Ok(Self { target, slot, thread_state_pointer: pointer, armed, mallocs })
    }

    /// Disarms; what the kernel counted stays.
    pub fn disarm(&mut self) {
        self.armed.clear();
        self.mallocs.disarm();
    }

    /// Arms allocators that the process has loaded since.
    pub fn look_for_mallocs(&mut self, kernel: &mut Kernel) {
        self.mallocs.look_again(kernel, self.slot);
    }

    /// Stops counting for a process whose memory is not what it was: it has replaced itself.
    pub fn retire(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        self.disarm();
        let mut layout = kernel_layout(&self.target, self.thread_state_pointer);
        layout.active = 0;
        Ok(kernel.set_layout(u32::from(self.slot.number), &layout)?)
    }

    /// Once the interpreter has started, asks it where its thread states are, and corrects the kernel half if the table's
    /// row was of another patch level.
    pub fn confirm_pointer(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        if let Some(pointer) = current_pointer(&self.target)
            && pointer != self.thread_state_pointer
        {
            tracing::warn!(
                pid = self.slot.pid,
                pointer,
                was = self.thread_state_pointer,
                "moved the thread state pointer"
            );
            self.thread_state_pointer = pointer;
            kernel.set_layout(u32::from(self.slot.number), &kernel_layout(&self.target, pointer))?;
        }
        Ok(())
    }

    /// Where the interpreter keeps things.
    pub fn layout(&self) -> &InterpreterLayout {
        &self.target.interpreter.layout
    }
}

/// Makes the plan of a file.
pub(super) fn plan_file(
    path: &Path,
    name: &str,
    plan: impl FnOnce(&[u8]) -> Result<Plan, PlanError>,
) -> Result<Plan, SessionError> {
    let bytes =
        std::fs::read(path).map_err(|source| DiscoverError::Read { path: path.to_owned(), source })?;
    plan(&bytes).map_err(|source| SessionError::Plan { file: name.to_owned(), source })
}

/// The pointer's address as the running interpreter gives it; `None` before it has started.
fn current_pointer(target: &Target) -> Option<u64> {
    let memory = ProcessMemory::open(Path::new(PROC), target.pid).ok()?;
    target
        .interpreter
        .layout
        .thread_state_pointer(target.interpreter.runtime, |address| memory.read_u64(address).ok())
}

/// Where the pointer will be once the interpreter has started.
fn start_pointer(target: &Target) -> u64 {
    let offset = target.interpreter.layout.runtime.thread_state_pointer_offset;
    target.interpreter.runtime.wrapping_add(u64::from(offset))
}
