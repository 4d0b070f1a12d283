//! One process of a recording: found, planned, armed, and measured against its own pools.

use std::path::Path;

use crate::attach::{Armed, FilePlan, Kernel, Slot, arm, kernel_layout};
use crate::discover::layout::InterpreterLayout;
use crate::discover::memory::{ProcessMemory, ReadMemory as _};
use crate::discover::{MappedFile, Target};
use crate::plan::cache::PlanCache;
use crate::plan::{Plan, plan_free_threaded, plan_interpreter, plan_malloc};
use crate::session::SessionError;

const PROC: &str = "/proc";

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
}

impl Traced {
    /// Plans and arms a process.
    pub fn arm(kernel: &mut Kernel, target: Target, number: u16, bare: bool) -> Result<Self, SessionError> {
        let interpreter = &target.interpreter;
        let cache = PlanCache::usual();
        let interpreter_plan = plan_file(&interpreter.file, |bytes| {
            let found = match (&cache, interpreter.layout.free_threading.is_some()) {
                (Some(cache), false) => cache.interpreter(bytes),
                (None, false) => plan_interpreter(bytes),
                (Some(cache), true) => cache.free_threaded(bytes),
                (None, true) => plan_free_threaded(bytes),
            }?;
            for note in &found.checks.notes {
                tracing::warn!(file = interpreter.file.name, "{note}");
            }
            Ok(found.plan)
        })?;
        if interpreter_plan.points.is_empty() {
            return Err(SessionError::NoPoints { file: interpreter.file.name.clone() });
        }
        let mut plans = vec![FilePlan { path: &interpreter.file.path, plan: &interpreter_plan }];
        let malloc_plan = target
            .c_library
            .as_ref()
            .map(|file| {
                plan_file(file, |bytes| {
                    cache.as_ref().map_or_else(|| plan_malloc(bytes), |cache| cache.malloc(bytes))
                })
            })
            .transpose()?;
        if let (Some(file), Some(plan)) = (&target.c_library, &malloc_plan) {
            plans.push(FilePlan { path: &file.path, plan });
        }
        let slot = Slot { pid: target.pid, number };
        let pointer = current_pointer(&target).unwrap_or_else(|| start_pointer(&target));
        kernel.set_layout(u32::from(number), &kernel_layout(&target, pointer))?;
        let armed = arm(kernel, slot, &plans, bare)?;
        Ok(Self { target, slot, thread_state_pointer: pointer, armed })
    }

    /// Disarms; what the kernel counted stays.
    pub fn disarm(&mut self) {
        self.armed.clear();
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

fn plan_file(
    file: &MappedFile,
    plan: impl FnOnce(&[u8]) -> Result<Plan, crate::plan::PlanError>,
) -> Result<Plan, SessionError> {
    let bytes = std::fs::read(&file.path)
        .map_err(|source| crate::discover::DiscoverError::Read { path: file.path.clone(), source })?;
    plan(&bytes).map_err(|source| SessionError::Plan { file: file.name.clone(), source })
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
