//! The allocators of one process: found, planned and armed when it is taken up, and looked for again while it runs.
//!
//! Why again: `dlopen` may bring one with a library at any time. It must not know the interpreter.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::SessionError;
use super::target::{KnownPlans, PROC};
use crate::attach::{Armed, AttachError, FilePlan, Kernel, Pops, Slot, Watch, arm};
use crate::discover::{DiscoverError, MallocFile, MallocSearch, Target};
use crate::plan::Plan;

/// How long between two looks at least.
const EVERY: Duration = Duration::from_secs(1);

/// What is said of a process without any.
const NONE_FOUND: &str = "no malloc was found: memory that does not come from pymalloc is not recorded";

/// The allocators of a process.
#[derive(Debug)]
pub struct Mallocs {
    search: MallocSearch,
    looked: Instant,
    /// What is armed as soon as it is found; `None`: windows arm it.
    watch: Option<Watch>,
    /// Files whose functions are armed, as the process names them.
    files: Vec<(MallocFile, Rc<Plan>)>,
    /// There was none at first.
    were_missing: bool,
    armed: Vec<Armed>,
    notes: Vec<String>,
}

impl Mallocs {
    /// Arms what is mapped now.
    pub fn arm(
        kernel: &mut Kernel,
        slot: Slot,
        target: &Target,
        known: &mut KnownPlans,
        watch: Option<Watch>,
    ) -> Result<Self, SessionError> {
        let mut search = MallocSearch::default();
        let found = search.new_files(Path::new(PROC), slot.pid);
        let mut files = found.map_err(|source| unreadable(slot, source))?;
        // Whatever its symbols look like: a plan without points does no harm.
        if let Some(library) = &target.c_library
            && !files.iter().any(|file| file.name == library.name)
        {
            files.push(MallocFile { path: library.path.clone(), name: library.name.clone() });
        }
        let mut mallocs = Self {
            search,
            looked: Instant::now(),
            watch,
            files: Vec::new(),
            were_missing: false,
            armed: Vec::new(),
            notes: Vec::new(),
        };
        mallocs.arm_files(kernel, slot, files, known)?;
        if mallocs.files.is_empty() {
            mallocs.were_missing = true;
            mallocs.notes.push(format!("process {}: {NONE_FOUND}", slot.pid));
        }
        Ok(mallocs)
    }

    /// None, and none is looked for.
    pub fn none() -> Self {
        Self {
            search: MallocSearch::default(),
            looked: Instant::now(),
            watch: None,
            files: Vec::new(),
            were_missing: false,
            armed: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Arms the same in a process that is a copy of this one, process `parent`.
    pub fn arm_fork(&self, kernel: &mut Kernel, parent: u32, slot: Slot) -> Result<Self, SessionError> {
        let of_fork = |(file, plan): &(MallocFile, Rc<Plan>)| (file.of_fork(parent, slot.pid), plan.clone());
        let mut fork = Self {
            search: self.search.clone(),
            looked: self.looked,
            watch: self.watch,
            files: self.files.iter().map(of_fork).collect(),
            were_missing: self.were_missing,
            armed: Vec::new(),
            notes: Vec::new(),
        };
        fork.armed = fork.arm_now(kernel, slot, &fork.files)?;
        Ok(fork)
    }

    /// Arms what has been mapped since the last look, which is seldom repeated; what cannot be armed is told.
    pub fn look_again(&mut self, kernel: &mut Kernel, slot: Slot, known: &mut KnownPlans) {
        if self.looked.elapsed() < EVERY {
            return;
        }
        self.looked = Instant::now();
        // A process that has ended has nothing new.
        for file in self.search.new_files(Path::new(PROC), slot.pid).unwrap_or_default() {
            let (name, before) = (file.name.clone(), self.files.len());
            let note = match self.arm_files(kernel, slot, vec![file], known) {
                Ok(()) if self.files.len() == before => continue,
                Ok(()) => {
                    format!("process {} has loaded `{name}`: its malloc is recorded from now on", slot.pid)
                }
                Err(SessionError::Attach(AttachError::Gone { .. })) => return,
                Err(error) => {
                    format!("the malloc in `{name}` of process {} is not recorded: {error}", slot.pid)
                }
            };
            self.notes.push(note);
        }
    }

    fn arm_files(
        &mut self,
        kernel: &mut Kernel,
        slot: Slot,
        files: Vec<MallocFile>,
        known: &mut KnownPlans,
    ) -> Result<(), SessionError> {
        let mut planned: Vec<(MallocFile, Rc<Plan>)> = Vec::new();
        for file in files {
            let plan = known.malloc(&file.path, &file.name)?;
            if !plan.points.is_empty() {
                tracing::debug!(file = file.name, points = plan.points.len(), "planned a malloc");
                planned.push((file, plan));
            }
        }
        let armed = self.arm_now(kernel, slot, &planned)?;
        self.armed.extend(armed);
        self.files.extend(planned);
        Ok(())
    }

    fn arm_now(
        &self,
        kernel: &mut Kernel,
        slot: Slot,
        files: &[(MallocFile, Rc<Plan>)],
    ) -> Result<Vec<Armed>, AttachError> {
        self.watch.map_or(Ok(Vec::new()), |watch| arm(kernel, slot, &plans(files), watch))
    }

    /// Arms what a window needs.
    pub fn open(&self, kernel: &mut Kernel, slot: Slot, watch: Watch) -> Result<Vec<Armed>, AttachError> {
        arm(kernel, slot, &plans(&self.files), watch)
    }

    /// How many points that is.
    pub fn points(&self, watch: Watch) -> usize {
        self.files.iter().map(|(_, plan)| watch.points(plan)).sum()
    }

    /// What is armed, to be disarmed together with others'.
    pub fn take_armed(&mut self) -> Vec<Armed> {
        std::mem::take(&mut self.armed)
    }

    /// What is found from now on windows arm.
    pub fn leave_to_windows(&mut self) {
        self.watch = None;
    }

    /// What the user should know, a line each; once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Files whose functions are armed.
    pub fn names(&self) -> Vec<String> {
        self.files.iter().map(|(file, _)| file.name.clone()).collect()
    }

    /// What of the process was not recorded.
    pub fn unseen(&self) -> Option<&'static str> {
        self.were_missing.then_some(NONE_FOUND)
    }
}

fn plans(files: &[(MallocFile, Rc<Plan>)]) -> Vec<FilePlan<'_>> {
    files.iter().map(|(file, plan)| FilePlan { path: &file.path, plan, pops: Pops::default() }).collect()
}

fn unreadable(slot: Slot, source: std::io::Error) -> SessionError {
    let path = Path::new(PROC).join(slot.pid.to_string()).join("maps");
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => AttachError::Gone { pid: slot.pid }.into(),
        _ => DiscoverError::Read { path, source }.into(),
    }
}
