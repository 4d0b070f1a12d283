//! One process of a recording: found, planned, armed, and measured against its own pools.

use std::path::Path;

use crate::attach::{Armed, FilePlan, Kernel, Slot, arm, kernel_layout};
use crate::discover::layout::InterpreterLayout;
use crate::discover::memory::{ProcessMemory, ReadMemory as _};
use crate::discover::{MappedFile, Target};
use crate::plan::cache::PlanCache;
use crate::plan::{AllocatorTables, Plan, ThreadSlot, plan_interpreter, plan_malloc};
use crate::session::SessionError;
use crate::session::thread_slot::distance;

const PROC: &str = "/proc";

/// A process that is being traced.
#[derive(Debug)]
pub struct Traced {
    /// What was found in it.
    pub target: Target,
    /// Its place in the kernel's tables.
    pub slot: Slot,
    /// Where its interpreter keeps its tables of allocators.
    pub allocators: AllocatorTables,
    /// Address of the pointer to the running thread's state, as the kernel half knows it.
    thread_state_pointer: u64,
    /// Where its threads' own states are, as the plan says.
    planned_slot: Option<ThreadSlot>,
    /// The same as the kernel half knows it; 0 while it is not known.
    thread_slot: i64,
    armed: Vec<Armed>,
}

impl Traced {
    /// Plans and arms a process.
    pub fn arm(kernel: &mut Kernel, target: Target, number: u16, bare: bool) -> Result<Self, SessionError> {
        let interpreter = &target.interpreter;
        let cache = PlanCache::usual();
        let mut allocators = AllocatorTables::default();
        let mut planned_slot = None;
        let interpreter_plan = plan_file(&interpreter.file, |bytes| {
            let found =
                cache.as_ref().map_or_else(|| plan_interpreter(bytes), |cache| cache.interpreter(bytes))?;
            for note in &found.checks.notes {
                tracing::warn!(file = interpreter.file.name, "{note}");
            }
            allocators = found.allocators;
            planned_slot = found.thread_slot;
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
        let thread_slot = current_slot(&target, planned_slot);
        kernel.set_layout(u32::from(number), &kernel_layout(&target, pointer, thread_slot))?;
        let armed = arm(kernel, slot, &plans, bare)?;
        Ok(Self { target, slot, allocators, thread_state_pointer: pointer, planned_slot, thread_slot, armed })
    }

    /// Disarms; what the kernel counted stays.
    pub fn disarm(&mut self) {
        self.armed.clear();
    }

    /// Stops counting for a process whose memory is not what it was: it has replaced itself.
    pub fn retire(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        self.disarm();
        let mut layout = kernel_layout(&self.target, self.thread_state_pointer, self.thread_slot);
        layout.active = 0;
        Ok(kernel.set_layout(u32::from(self.slot.number), &layout)?)
    }

    /// Once the interpreter has started, asks it where its thread states are, and corrects the kernel half if the table's
    /// row was of another patch level.
    pub fn confirm_pointer(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        self.confirm_slot(kernel)?;
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
            self.tell(kernel)?;
        }
        Ok(())
    }

    /// Finds the place of the threads' own states as soon as there is one: before, the lock's holder is taken for the running thread,
    /// which is right as long as there is one interpreter.
    pub fn confirm_slot(&mut self, kernel: &mut Kernel) -> Result<(), SessionError> {
        if self.thread_slot == 0 && self.planned_slot.is_some() {
            self.thread_slot = current_slot(&self.target, self.planned_slot);
            if self.thread_slot != 0 {
                self.tell(kernel)?;
            }
        }
        Ok(())
    }

    fn tell(&self, kernel: &mut Kernel) -> Result<(), SessionError> {
        let layout = kernel_layout(&self.target, self.thread_state_pointer, self.thread_slot);
        Ok(kernel.set_layout(u32::from(self.slot.number), &layout)?)
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

/// The distance from `pthread_self` to a thread's own state; 0 while it is not known.
fn current_slot(target: &Target, planned: Option<ThreadSlot>) -> i64 {
    let find = || distance(&ProcessMemory::open(Path::new(PROC), target.pid).ok()?, target, planned?);
    find().unwrap_or(0)
}

/// Where the pointer will be once the interpreter has started.
fn start_pointer(target: &Target) -> u64 {
    let offset = target.interpreter.layout.runtime.thread_state_pointer_offset;
    target.interpreter.runtime.wrapping_add(u64::from(offset))
}
