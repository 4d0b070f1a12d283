//! One process of a recording: found, planned, armed, and measured against its own pools.

use std::cell::Cell;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::attach::{Armed, FilePlan, Kernel, Pops, Slot, Watch, arm, disarm, kernel_layout};
use crate::census::mimalloc::PageLayout;
use crate::discover::layout::InterpreterLayout;
use crate::discover::memory::{ProcessMemory, ReadMemory as _};
use crate::discover::{DiscoverError, Interpreter, MappedFile, Target};
use crate::plan::cache::PlanCache;
use crate::plan::{
    AllocatorTables, InterpreterPlan, Plan, PlanError, ThreadSlot, plan_free_threaded, plan_interpreter,
    plan_malloc, plan_with_mimalloc,
};
use crate::session::allocators::uses_mimalloc;
use crate::session::growth::Beginning;
use crate::session::mallocs::Mallocs;
use crate::session::run::process_descriptor;
use crate::session::thread_slot::distance;
use crate::session::windows::Dropped;
use crate::session::{Mode, Request, SessionError};

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
    /// Readable once the process has ended, and only then, whoever has its number by then.
    process: OwnedFd,
    /// The interpreter's.
    plan: Rc<InterpreterPlan>,
    /// Distance from `pthread_self` to a thread's own state, as the kernel half knows it; 0 while it is not known.
    thread_slot: i64,
    armed: Vec<Armed>,
    /// Its allocators besides pymalloc.
    pub mallocs: Mallocs,
    /// In growth mode, where nothing is armed: what there was at the beginning.
    pub beginning: Option<Beginning>,
    /// In budget mode, where not everything is armed all the time.
    pub is_windowed: bool,
    /// A window could not arm it.
    has_failed: Cell<bool>,
}

/// Why growth mode has no coverage of allocations.
const PAGES_ONLY: &str = "pages are counted, and no blocks";
/// Why budget mode has none.
const WINDOWS_ONLY: &str = "blocks are counted in windows only";

impl Traced {
    /// Plans and arms a process.
    ///
    /// `parent`: whose fork it is; its plans are the same. `watch`: what is armed now; `None`: windows arm it.
    pub fn arm(
        kernel: &mut Kernel,
        target: Target,
        number: u16,
        parent: Option<&Self>,
        known: &mut KnownPlans,
        request: &Request,
        watch: Option<Watch>,
    ) -> Result<Self, SessionError> {
        let process = process_descriptor(target.pid)?;
        let slot = Slot { pid: target.pid, number };
        let file = &target.interpreter.file;
        let plan = match parent {
            Some(parent) => parent.plan.clone(),
            None if request.mode == Mode::Growth => known.interpreter(&target.interpreter)?,
            None => known.of(&target)?,
        };
        let pointer = current_pointer(&target).unwrap_or_else(|| start_pointer(&target));
        let thread_slot = current_slot(&target, plan.thread_slot);
        kernel.set_layout(u32::from(number), &kernel_layout(&target, pointer, thread_slot))?;
        let (beginning, mallocs) = match parent {
            _ if request.mode == Mode::Growth => (Some(Beginning::of(target.pid)), Mallocs::none()),
            Some(parent) => (None, parent.mallocs.arm_fork(kernel, parent.slot.pid, slot)?),
            None => (None, Mallocs::arm(kernel, slot, &target, known, watch)?),
        };
        let armed = match watch {
            Some(watch) => arm(
                kernel,
                slot,
                &[FilePlan { path: &file.path, plan: &plan.plan, pops: Pops::default() }],
                watch,
            )?,
            None => Vec::new(),
        };
        let thread_state_pointer = pointer;
        let is_windowed = matches!(request.mode, Mode::Budget { .. });
        Ok(Self {
            target,
            slot,
            thread_state_pointer,
            process,
            plan,
            thread_slot,
            armed,
            mallocs,
            beginning,
            is_windowed,
            has_failed: Cell::new(false),
        })
    }

    /// Arms the points of a window. Nothing counts until the window is open.
    pub fn open(
        &self,
        kernel: &mut Kernel,
        watch: Watch,
        pops: Pops<'_>,
    ) -> Result<Vec<Armed>, SessionError> {
        let path = &self.target.interpreter.file.path;
        let interpreter = [FilePlan { path, plan: &self.plan.plan, pops }];
        let mut armed = arm(kernel, self.slot, &interpreter, watch)?;
        armed.append(&mut self.mallocs.open(kernel, self.slot, watch)?);
        Ok(armed)
    }

    /// Notes that a window could not arm it; whether that is new.
    pub fn is_first_failure(&self) -> bool {
        !self.has_failed.replace(true)
    }

    /// How many points a window arms, if it arms all pops.
    pub fn points(&self, watch: Watch) -> usize {
        watch.points(&self.plan.plan) + self.mallocs.points(watch)
    }

    /// How many of them are pops that may be left out.
    pub fn pops(&self) -> usize {
        Watch::pops(&self.plan.plan)
    }

    /// The same for all processes of the same interpreter.
    pub fn plan_number(&self) -> usize {
        Rc::as_ptr(&self.plan).addr()
    }

    /// Why its blocks cannot be compared with its pools, if so.
    pub fn unmeasured(&self) -> Option<&'static str> {
        match (&self.beginning, self.is_windowed) {
            (Some(_), _) => Some(PAGES_ONLY),
            (None, true) => Some(WINDOWS_ONLY),
            (None, false) => None,
        }
    }

    /// Where its mimalloc keeps things, if its blocks are recorded.
    pub fn pages(&self) -> Option<PageLayout> {
        let is_free_threaded = self.layout().free_threading.is_some();
        self.plan.mimalloc.map(|version| PageLayout::new(version, is_free_threaded))
    }

    /// Where its interpreter keeps its tables of allocators.
    pub fn allocators(&self) -> AllocatorTables {
        self.plan.allocators
    }

    /// Arms allocators that the process has loaded since.
    pub fn look_for_mallocs(&mut self, kernel: &mut Kernel, known: &mut KnownPlans) {
        if self.beginning.is_none() {
            self.mallocs.look_again(kernel, self.slot, known);
        }
    }

    /// Removes the copies of this process's breakpoints from a child that is not recorded: the kernel removes a breakpoint when
    /// the last probe that wants it in a process goes, so one is made that does.
    pub fn wipe(&self, kernel: &mut Kernel, pid: u32) {
        if self.beginning.is_some() {
            return;
        }
        // Number 0 is no process: nothing would be counted even if something ran.
        let slot = Slot { pid, number: 0 };
        let file = self.target.interpreter.file.of_fork(self.slot.pid, pid);
        let mut armed = arm(
            kernel,
            slot,
            &[FilePlan { path: &file.path, plan: &self.plan.plan, pops: Pops::default() }],
            Watch::Bare,
        )
        .unwrap_or_default();
        // One that has ended meanwhile has none.
        if let Ok(mut mallocs) = self.mallocs.arm_fork(kernel, self.slot.pid, slot) {
            armed.append(&mut mallocs.take_armed());
        }
        disarm(armed);
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.process, PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Whether its interpreter has started.
    pub fn has_started(&self) -> bool {
        current_pointer(&self.target).is_some()
    }

    /// What is armed, to be disarmed together with others'.
    pub fn take_armed(&mut self) -> Vec<Armed> {
        let mut armed = std::mem::take(&mut self.armed);
        armed.append(&mut self.mallocs.take_armed());
        armed
    }

    /// What was armed all the time beside windows; windows arm the rest from now on.
    pub fn drop_kept(&mut self, dropped: Dropped) -> Vec<Armed> {
        self.mallocs.leave_to_windows();
        match dropped {
            Dropped::Malloc => self.mallocs.take_armed(),
            Dropped::All => self.take_armed(),
        }
    }

    /// Stops counting for a process whose memory is not what it was: it has replaced itself, or ended. What was armed is to be
    /// disarmed.
    pub fn retire(&mut self, kernel: &mut Kernel) -> Result<Vec<Armed>, SessionError> {
        self.stop(kernel)?;
        Ok(self.take_armed())
    }

    /// Stops counting.
    pub fn stop(&self, kernel: &mut Kernel) -> Result<(), SessionError> {
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
        if self.thread_slot == 0 && self.plan.thread_slot.is_some() {
            self.thread_slot = current_slot(&self.target, self.plan.thread_slot);
            if self.thread_slot != 0 {
                self.tell(kernel)?;
            }
        }
        Ok(())
    }

    /// Tells the kernel half what is known now. Not of a process that it has told off: that has another program by now.
    fn tell(&self, kernel: &mut Kernel) -> Result<(), SessionError> {
        if !kernel.is_active(u32::from(self.slot.number))? {
            return Ok(());
        }
        let layout = kernel_layout(&self.target, self.thread_state_pointer, self.thread_slot);
        Ok(kernel.set_layout(u32::from(self.slot.number), &layout)?)
    }

    /// Where the interpreter keeps things.
    pub fn layout(&self) -> &InterpreterLayout {
        &self.target.interpreter.layout
    }
}

/// The first release that has mimalloc.
const FIRST_WITH_MIMALLOC: (u8, u8) = (3, 13);

/// Device, inode, size and time of a file.
type Identity = (u64, u64, u64, i64);

/// Plans of files that were read: a host may run the same interpreter in hundreds of processes.
#[derive(Debug, Default)]
pub struct KnownPlans {
    interpreters: FxHashMap<Identity, Rc<InterpreterPlan>>,
    /// The same with their mimalloc.
    with_mimalloc: FxHashMap<Identity, Rc<InterpreterPlan>>,
    mallocs: FxHashMap<Identity, Rc<Plan>>,
}

impl KnownPlans {
    /// The plan for a process.
    fn of(&mut self, target: &Target) -> Result<Rc<InterpreterPlan>, SessionError> {
        let interpreter = &target.interpreter;
        let has_choice = interpreter.layout.free_threading.is_none()
            && (interpreter.version.major, interpreter.version.minor) >= FIRST_WITH_MIMALLOC;
        let mut plan = self.interpreter(interpreter)?;
        // Others need not wait until a second allocator has been searched for and armed.
        if has_choice && uses_mimalloc(target, plan.allocators) {
            let cache = PlanCache::usual();
            plan = planned(&mut self.with_mimalloc, &interpreter.file, |bytes| {
                cache.as_ref().map_or_else(|| plan_with_mimalloc(bytes), |cache| cache.with_mimalloc(bytes))
            })?;
        }
        match plan.plan.points.is_empty() {
            true => Err(SessionError::NoPoints { file: interpreter.file.name.clone() }),
            false => Ok(plan),
        }
    }

    /// The plan of an interpreter.
    fn interpreter(&mut self, interpreter: &Interpreter) -> Result<Rc<InterpreterPlan>, SessionError> {
        let cache = PlanCache::usual();
        planned(&mut self.interpreters, &interpreter.file, |bytes| {
            match (&cache, interpreter.layout.free_threading.is_some()) {
                (Some(cache), false) => cache.interpreter(bytes),
                (None, false) => plan_interpreter(bytes),
                (Some(cache), true) => cache.free_threaded(bytes),
                (None, true) => plan_free_threaded(bytes),
            }
        })
    }

    /// The plan of a malloc.
    pub(super) fn malloc(&mut self, path: &Path, name: &str) -> Result<Rc<Plan>, SessionError> {
        let cache = PlanCache::usual();
        known(&mut self.mallocs, path, name, |bytes| {
            cache.as_ref().map_or_else(|| plan_malloc(bytes), |cache| cache.malloc(bytes))
        })
    }
}

/// What is known of an interpreter, or what `plan` makes of its bytes; then what speaks against it is said.
fn planned(
    plans: &mut FxHashMap<Identity, Rc<InterpreterPlan>>,
    file: &MappedFile,
    plan: impl FnOnce(&[u8]) -> Result<InterpreterPlan, PlanError>,
) -> Result<Rc<InterpreterPlan>, SessionError> {
    known(plans, &file.path, &file.name, |bytes| {
        let found = plan(bytes)?;
        for note in &found.checks.notes {
            tracing::warn!(file = file.name, "{note}");
        }
        Ok(found)
    })
}

/// What is known of a file, or what `plan` makes of its bytes.
fn known<P>(
    plans: &mut FxHashMap<Identity, Rc<P>>,
    path: &Path,
    name: &str,
    plan: impl FnOnce(&[u8]) -> Result<P, PlanError>,
) -> Result<Rc<P>, SessionError> {
    let failed = |source| DiscoverError::Read { path: path.to_owned(), source };
    let about = fs::metadata(path).map_err(failed)?;
    let identity = (about.dev(), about.ino(), about.size(), about.mtime_nsec());
    if let Some(known) = plans.get(&identity) {
        return Ok(known.clone());
    }
    let bytes = fs::read(path).map_err(failed)?;
    let plan = plan(&bytes).map_err(|source| SessionError::Plan { file: name.to_owned(), source })?;
    let plan = Rc::new(plan);
    plans.insert(identity, plan.clone());
    Ok(plan)
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
