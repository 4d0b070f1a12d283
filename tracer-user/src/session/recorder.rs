//! Gathers what the kernel half sends while it records, and makes the profile of it at the end.

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::abi::{PROCESSES, end};
use tracer_ebpf::growth::PAGE;

use crate::attach::Kernel;
use crate::drain::{
    AccountRow, BlockSeen, Event, PoolOpening, ProcessEvent, Totals, decode, live_bytes_error, read_accounts,
    read_totals,
};
use crate::profile::{
    Amount, Domain, Estimated, Followed, FrameId, Losses, Part, Process, ProcessIndex, Profile, Recording,
    Sample, Series, Stack, Values,
};
use crate::resolve::{Limits, RawFrame, Resolver};
use crate::session::SessionError;
use crate::session::ended::{Ended, MERGED};
use crate::session::estimates::Known;
use crate::session::growth::{NO_FAULT, Reckoning};
use crate::session::processes::Gone;
use crate::session::target::Traced;

/// Line tables that may wait for their code object at one time.
const MAX_PENDING_TABLES: usize = 4096;

/// Stacks that may wait for their next part at one time: as many threads as can be in their traps.
const MAX_PENDING_PARTS: usize = 4096;

/// A code object's identity: process slot, address, fingerprint.
type CodeKey = (u32, u64, u32);

/// Most bytes of packed stacks: 100,000 of 128 frames at 1.3 bytes each. Past it they lose their outer frames, so that the
/// tracer stays under 60 MB whatever the target does.
const MAX_STACK_BYTES: usize = 16 << 20;

/// Most bytes of stacks of those that run and samples of those that have ended together: 100,000 of these of 40 frames each, if there
/// are few of those. A quarter of it is always theirs.
const MAX_SAMPLE_BYTES: usize = 18 << 20;

/// In place of the stack that opened a pool, where its record was lost.
const UNTOLD_POOL: &str = "a pool that was opened unseen";

/// Processes of one recording, with those that have ended: 8 MB of them.
const MAX_PROCESSES: usize = 16_384;

/// Frames that are kept of a stack past [`MAX_STACK_BYTES`].
const KEPT_FRAMES: usize = 16;

/// Everything received so far.
#[derive(Debug, Clone)]
pub struct Recorder {
    accounts: usize,
    resolver: Resolver,
    /// By account; empty where none has come.
    stacks: Vec<Stack>,
    stack_bytes: usize,
    tables: FxHashMap<CodeKey, Vec<u8>>,
    /// By account: the parts of stacks whose last part has not come.
    parts: FxHashMap<u32, Vec<RawFrame>>,
    processes: Vec<Process>,
    /// By process slot: the one that has it.
    owners: Vec<Option<ProcessIndex>>,
    /// What is left of those that have given back their slots.
    ended: Ended,
    /// Whether we see other numbers than the host.
    is_namespaced: bool,
    /// By account: the thread's number as we see it, where that is not the host's.
    threads: FxHashMap<u32, u32>,
    truncated_stacks: u64,
    unreceived_stacks: u64,
    unknown_records: u64,
    /// Budget mode: pools that were opened and have not been asked for.
    openings: Vec<PoolOpening>,
    /// Budget mode: blocks that windows saw and that have not been asked for.
    blocks: Vec<BlockSeen>,
    /// Growth mode, by account: what it held no more when its process was compared.
    gone_pages: FxHashMap<u32, Amount>,
    /// Growth mode: pages without a stack.
    unseen_pages: Vec<Sample>,
    /// Growth mode: pages are counted, and no blocks.
    counts_pages: bool,
    /// Accounts that were given back and have not been asked for.
    given_back: Vec<u32>,
    /// Budget mode: what is known of each account, in place of what was counted.
    estimates: Option<FxHashMap<u32, Values>>,
    /// Budget mode, by account: what windows say beside that.
    estimated: FxHashMap<u32, Estimated>,
    /// See [`Known::missed`].
    missed: FxHashSet<u16>,
    /// Slots of ended processes whose accounts need no estimates.
    exact: FxHashSet<u16>,
}

impl Recorder {
    /// Nothing received yet. `accounts`: how many the kernel half has room for.
    #[must_use]
    pub fn new(accounts: u32, is_namespaced: bool) -> Self {
        Self {
            accounts: accounts as usize,
            resolver: Resolver::new(Limits::default()),
            stacks: Vec::new(),
            stack_bytes: 0,
            tables: FxHashMap::default(),
            parts: FxHashMap::default(),
            processes: Vec::new(),
            owners: vec![None; PROCESSES as usize],
            ended: Ended::default(),
            is_namespaced,
            threads: FxHashMap::default(),
            truncated_stacks: 0,
            unreceived_stacks: 0,
            unknown_records: 0,
            openings: Vec::new(),
            blocks: Vec::new(),
            given_back: Vec::new(),
            gone_pages: FxHashMap::default(),
            unseen_pages: Vec::new(),
            counts_pages: false,
            estimates: None,
            estimated: FxHashMap::default(),
            missed: FxHashSet::default(),
            exact: FxHashSet::default(),
        }
    }

    /// Adds a process; before its first record arrives. Gives back its place in the profile.
    pub fn add_process(&mut self, traced: &Traced, followed: Option<Followed>) -> ProcessIndex {
        let index = ProcessIndex(self.processes.len() as u32);
        self.missed.remove(&traced.slot.number);
        self.exact.remove(&traced.slot.number);
        self.counts_pages |= traced.beginning.is_some();
        self.resolver.add_process(index, *traced.layout());
        let process = Process {
            pid: traced.target.pid,
            command: traced.target.command.clone(),
            interpreter: traced.target.interpreter.to_string(),
            followed,
            ..Process::default()
        };
        self.processes.push(process);
        if let Some(owner) = self.owners.get_mut(usize::from(traced.slot.number)) {
            *owner = Some(index);
        }
        index
    }

    /// What was seen of a process's memory over time.
    pub fn set_memory(&mut self, process: ProcessIndex, memory: Series) {
        if let Some(process) = self.processes.get_mut(process.0 as usize) {
            process.memory = memory;
        }
    }

    /// Whether there is room for another process.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.processes.len() < MAX_PROCESSES
    }

    /// Makes a sample of an account that is given back; the next records with its number are of another.
    pub fn close_account(&mut self, account: u32, row: Option<AccountRow>) {
        self.given_back.push(account);
        if let Some(sample) = row.and_then(|row| self.sample(row)) {
            self.stack_bytes -= sample.stack.bytes().min(self.stack_bytes);
            self.ended.add(sample);
            self.bound_ended();
        }
        if let Some(stack) = self.stacks.get_mut(account as usize) {
            self.stack_bytes -= std::mem::take(stack).bytes().min(self.stack_bytes);
        }
        self.threads.remove(&account);
        self.parts.remove(&account);
    }

    /// Samples of ended processes may take what the stacks of those that run leave.
    fn bound_ended(&mut self) {
        let limit = MAX_SAMPLE_BYTES.saturating_sub(self.stack_bytes).max(MAX_SAMPLE_BYTES / 4);
        if self.ended.bytes() > limit {
            let other = std::iter::once(self.resolver.marker(MERGED)).collect();
            self.ended.shrink(limit, &other);
        }
    }

    /// Of blocks that ended processes held, as far as they are estimates.
    pub fn add_variance(&mut self, variance: f64) {
        self.ended.add_variance(variance);
    }

    /// These slots are given back; their accounts have been closed.
    pub fn close_processes(&mut self, slots: &[(u16, Totals)]) {
        let mut closed = Vec::new();
        for (slot, totals) in slots {
            if let Some(sample) = self.untold_pools(*slot) {
                self.ended.add(sample);
            }
            self.ended.add_totals(totals);
            closed.extend(self.owners.get_mut(usize::from(*slot)).and_then(Option::take));
        }
        self.resolver.forget(&closed);
        self.tables.retain(|(slot, ..), _| !slots.iter().any(|(closed, _)| u32::from(*closed) == *slot));
    }

    /// Events and losses of those that have given back their slots.
    #[must_use]
    pub fn of_ended(&self) -> (u64, Losses) {
        (self.ended.events(), self.ended.losses())
    }

    /// Notes which allocators of a process were watched in the end.
    pub fn add_mallocs(&mut self, traced: &Traced) {
        if let Some(process) = self.process_of(traced) {
            process.mallocs = traced.mallocs.names();
            process.unseen = traced.mallocs.unseen().map(str::to_owned).into_iter().collect();
        }
    }

    /// Says how a process's stacks compare with what the kernel says of it, and corrects them.
    pub fn set_residence(&mut self, traced: &Traced, reckoning: &Reckoning) {
        let Some(process) = self.index_of(u32::from(traced.slot.number)) else { return };
        if let Some(place) = self.processes.get_mut(process.0 as usize) {
            place.residence.clone_from(&reckoning.residence);
        }
        self.gone_pages.extend(reckoning.gone.iter().map(|(account, gone)| (*account, *gone)));
        self.add_pages(traced, NO_FAULT, reckoning.unseen.bytes);
    }

    /// Adds resident pages of a process that are in nobody's account; `why` stands in place of a stack.
    pub fn add_pages(&mut self, traced: &Traced, why: &'static str, bytes: u64) {
        let Some(process) = self.index_of(u32::from(traced.slot.number)).filter(|_| bytes > 0) else {
            return;
        };
        let stack = std::iter::once(self.resolver.marker(why)).collect();
        let live = Amount { bytes, count: bytes / PAGE };
        let values = Values { allocated: live, live, peak: live, temporary: Amount::default() };
        let domain = Domain::Resident;
        self.unseen_pages.push(Sample { process, thread: 0, domain, stack, values, estimated: None });
    }

    /// In place of what was counted, this is what accounts have.
    pub fn add_estimates(&mut self, known: Known) {
        self.estimates.get_or_insert_default().extend(known.values);
        self.estimated.extend(known.estimated);
        self.missed.extend(known.missed);
    }

    /// All of these processes was seen.
    pub fn are_exact(&mut self, slots: Vec<u16>) {
        self.exact.extend(slots);
    }

    /// Accounts that were given back since this was last asked.
    pub fn take_given_back(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.given_back)
    }

    /// Pools that were opened since this was last asked, in their order.
    pub fn take_openings(&mut self) -> Vec<PoolOpening> {
        std::mem::take(&mut self.openings)
    }

    /// Blocks that windows saw since this was last asked, in their order.
    pub fn take_blocks(&mut self) -> Vec<BlockSeen> {
        std::mem::take(&mut self.blocks)
    }

    /// Says which allocators a process has used.
    pub fn set_allocator(&mut self, traced: &Traced, allocator: String) {
        if let Some(process) = self.process_of(traced) {
            process.allocator = allocator;
        }
    }

    fn index_of(&self, slot: u32) -> Option<ProcessIndex> {
        *self.owners.get(slot as usize)?
    }

    fn process_of(&mut self, traced: &Traced) -> Option<&mut Process> {
        let index = self.index_of(u32::from(traced.slot.number))?;
        self.processes.get_mut(index.0 as usize)
    }

    /// Takes one record; gives back what concerns whole processes.
    pub fn take(&mut self, record: &[u8]) -> Option<ProcessEvent> {
        match decode(record) {
            Event::Stack { process, account, end, offset, thread, frames } => {
                if self.is_namespaced {
                    self.threads.insert(account, thread);
                }
                if let Some(frames) = self.whole_stack(account, end, offset, frames) {
                    self.take_stack(process, account, end, &frames);
                }
            }
            Event::LineTable { process, code, fingerprint, offset, bytes } => {
                self.take_line_table((process, code, fingerprint), offset, &bytes);
            }
            Event::Code { process, code, fingerprint, line_table_bytes, mut definition } => {
                let table = self.tables.remove(&(process, code, fingerprint)).unwrap_or_default();
                definition.line_table_complete = table.len() as u64 == u64::from(line_table_bytes);
                definition.line_table = table;
                if let Some(index) = self.index_of(process) {
                    self.resolver.define(index, code, fingerprint, &definition);
                }
            }
            Event::Pool(opening) => self.openings.push(opening),
            Event::Block(block) => self.blocks.push(block),
            Event::Process(event) => return Some(event),
            Event::Unknown { .. } => self.unknown_records += 1,
        }
        None
    }

    /// All frames, once the last part has come. A part is missing only where the ring was full; all are sent again then.
    fn whole_stack(
        &mut self,
        account: u32,
        ending: u32,
        offset: u32,
        mut frames: Vec<RawFrame>,
    ) -> Option<Vec<RawFrame>> {
        if offset != 0 {
            let mut before = self.parts.remove(&account)?;
            if before.len() != offset as usize {
                return None;
            }
            before.append(&mut frames);
            frames = before;
        }
        if ending != end::CONTINUES {
            return Some(frames);
        }
        if self.parts.len() >= MAX_PENDING_PARTS {
            self.parts.clear();
        }
        self.parts.insert(account, frames);
        None
    }

    fn take_stack(&mut self, process: u32, account: u32, ending: u32, frames: &[RawFrame]) {
        let Some(index) = self.index_of(process) else { return };
        let mut stack = match ending {
            end::COMPLETE | end::TRUNCATED | end::FAILED_READ if !frames.is_empty() => {
                self.resolver.resolve(index, frames)
            }
            _ => Vec::with_capacity(1),
        };
        if ending == end::TRUNCATED {
            self.truncated_stacks += 1;
        }
        if let Some(text) = marker(ending) {
            stack.push(self.resolver.marker(text));
        }
        if stack.is_empty() {
            stack.push(self.resolver.marker("no Python function was running"));
        }
        self.keep_stack(account, stack);
    }

    /// A second stack of the same account was sent again; it says the same.
    fn keep_stack(&mut self, account: u32, mut frames: Vec<FrameId>) {
        if self.stack_bytes > MAX_STACK_BYTES && frames.len() > KEPT_FRAMES {
            self.truncated_stacks += 1;
            frames.truncate(KEPT_FRAMES);
            frames.push(self.resolver.marker("outer frames left out (the tracer's memory is full)"));
        }
        let account = account as usize;
        if account >= self.accounts {
            return;
        }
        if account >= self.stacks.len() {
            self.stacks.resize(account + 1, Stack::default());
        }
        let stack: Stack = frames.into_iter().collect();
        let before = std::mem::replace(&mut self.stacks[account], stack);
        self.stack_bytes = self.stack_bytes + self.stacks[account].bytes() - before.bytes();
    }

    /// Pieces come in order, from one CPU; a gap means that one was lost, and the table stays short of its length.
    fn take_line_table(&mut self, key: CodeKey, offset: u64, bytes: &[u8]) {
        if offset == 0 {
            if self.tables.len() >= MAX_PENDING_TABLES {
                // Their code objects never came: the ring was full. They are sent again.
                self.tables.clear();
            }
            self.tables.insert(key, bytes.to_vec());
        } else if let Some(table) = self.tables.get_mut(&key)
            && table.len() as u64 == offset
        {
            table.extend_from_slice(bytes);
        }
    }

    /// Makes the profile from the kernel's counters.
    pub fn into_profile(
        mut self,
        kernel: &Kernel,
        mut recording: Recording,
        gone: &Gone,
    ) -> Result<Profile, SessionError> {
        let mut totals: FxHashMap<u32, Totals> = FxHashMap::default();
        let slots: Vec<u16> =
            (1..PROCESSES as u16).filter(|slot| self.owners[usize::from(*slot)].is_some()).collect();
        for slot in &slots {
            totals.insert(u32::from(*slot), read_totals(kernel, *slot)?);
        }
        self.bound_ended();
        let mut samples = self.ended.take_samples();
        let peak_at = |slot: u32| totals.get(&slot).map_or(0, |totals| totals.peak_at);
        read_accounts(kernel, peak_at, |row| samples.extend(self.sample(row)))?;
        samples.extend(slots.iter().filter_map(|slot| self.untold_pools(*slot)));
        samples.append(&mut self.unseen_pages);
        if recording.windows.is_none() {
            samples.iter_mut().for_each(|sample| sample.estimated = None);
        }
        self.mark_gone(gone, &mut samples);
        merge(&mut samples);
        let counts = self.resolver.counts();
        tracing::debug!(?counts, ?totals, "resolved");
        let before = self.processes.iter().filter_map(|process| process.followed.as_ref()?.blocks_before);
        let (events, mut losses) = self.of_ended();
        totals.values().for_each(|totals| add_losses(&mut losses, totals));
        recording.losses = Losses {
            // What the session has counted.
            unfollowed_processes: recording.losses.unfollowed_processes,
            ended_unarmed_processes: recording.losses.ended_unarmed_processes,
            untold_processes: recording.losses.untold_processes,
            blocks_before_armed: before.sum(),
            ..losses
        };
        if recording.losses.thinned > 0 {
            let slots: Vec<u16> = slots.into_iter().filter(|slot| !gone.slots.contains(slot)).collect();
            let of_ended = if gone.earlier { 0.0 } else { self.ended.variance() };
            recording.live_bytes_error = live_bytes_error(kernel, &slots, of_ended)?;
        }
        recording.losses.unresolved_frames = counts.unresolved();
        recording.losses.truncated_stacks = self.truncated_stacks;
        recording.losses.unreceived_stacks = self.unreceived_stacks;
        recording.events = events + totals.values().map(Totals::events_seen).sum::<u64>();
        Ok(Profile { recording, processes: self.processes, frames: self.resolver.into_frames(), samples })
    }

    /// What ended while others ran holds nothing.
    fn mark_gone(&mut self, gone: &Gone, samples: &mut [Sample]) {
        // Those that have a slot: whether they are gone; the others have given theirs back.
        let mut is_gone = vec![gone.earlier; self.processes.len()];
        for (slot, owner) in self.owners.iter().enumerate() {
            if let Some(place) = owner.and_then(|owner| is_gone.get_mut(owner.0 as usize)) {
                *place = gone.slots.iter().any(|gone| usize::from(*gone) == slot);
            }
        }
        let is_gone = |index: usize| is_gone.get(index).copied().unwrap_or(false);
        for sample in samples.iter_mut().filter(|sample| is_gone(sample.process.0 as usize)) {
            sample.values.live = Amount::default();
            // And is sure to: there is no error in that, and nothing that grows.
            if let Some(estimated) = &mut sample.estimated {
                let (live_bytes_error, age_milliseconds, growth) = (Some(0), None, None);
                **estimated = Estimated { live_bytes_error, age_milliseconds, growth, ..**estimated };
            }
        }
        for (index, process) in self.processes.iter_mut().enumerate() {
            process.ended = is_gone(index);
        }
    }

    /// Pools of a process of which it is not known who opened them.
    fn untold_pools(&mut self, slot: u16) -> Option<Sample> {
        let slot = u32::from(slot);
        let values = self.estimates.as_mut()?.remove(&slot)?;
        let process = self.index_of(slot).filter(|_| values != Values::default())?;
        let stack = std::iter::once(self.resolver.marker(UNTOLD_POOL)).collect();
        let estimated = self.estimated.remove(&slot).map(Box::new);
        Some(Sample { process, thread: 0, domain: Domain::Pymalloc, stack, values, estimated })
    }

    /// The sample of an account.
    fn sample(&mut self, row: AccountRow) -> Option<Sample> {
        let process = self.index_of(row.process)?;
        let mut stack = self.stacks.get_mut(row.account as usize).map(std::mem::take).unwrap_or_default();
        if stack.is_empty() {
            let text = if row.account < PROCESSES {
                "other stacks (the stack table is full)"
            } else {
                self.unreceived_stacks += 1;
                "stack not received"
            };
            stack = std::iter::once(self.resolver.marker(text)).collect();
        }
        let thread = self.threads.get(&row.account).copied().unwrap_or(row.thread);
        // The kernel half makes a process's own account before it knows what it is for.
        let is_own = row.account < PROCESSES;
        let domain = if is_own && self.counts_pages { Domain::Resident } else { row.domain };
        let (mut values, estimated) = self.estimates_of(&row);
        if let Some(gone) = self.gone_pages.remove(&row.account) {
            values.live.bytes = values.live.bytes.saturating_sub(gone.bytes);
            values.live.count = values.live.count.saturating_sub(gone.count);
        }
        Some(Sample { process, thread, domain, stack, values, estimated })
    }

    /// What an account has: as it was counted, or as windows say it is.
    fn estimates_of(&mut self, row: &AccountRow) -> (Values, Option<Box<Estimated>>) {
        let slot = row.process as u16;
        if self.exact.contains(&slot) {
            // Windows may be opened of others yet, beside whose estimates this has no error.
            return (row.values, Some(Box::new(Estimated::counted())));
        }
        let Some(estimates) = &mut self.estimates else { return (row.values, None) };
        let mut values = estimates.remove(&row.account).unwrap_or_default();
        if self.missed.contains(&slot) {
            (values.live, values.peak) = match row.domain {
                Domain::Malloc => (row.values.live, row.values.peak),
                _ => (values.live, Amount::default()),
            };
        }
        (values, self.estimated.remove(&row.account).map(Box::new))
    }
}

/// Puts samples into an order that does not depend on accounts, and makes one of those whose *resolved* stacks are the same.
/// In place: a map of them would double what the tracer weighs at its end.
fn merge(samples: &mut Vec<Sample>) {
    fn key(sample: &Sample) -> (ProcessIndex, u32, Domain, &Stack) {
        (sample.process, sample.thread, sample.domain, &sample.stack)
    }
    fn part(sample: &Sample) -> Part<'_> {
        Part { values: &sample.values, estimated: sample.estimated.as_deref() }
    }
    samples.sort_unstable_by(|one, other| key(one).cmp(&key(other)));
    samples.dedup_by(|later, kept| {
        let same = key(later) == key(kept);
        if same {
            kept.estimated = Estimated::join(part(kept), part(later));
            kept.values = kept.values.plus(later.values);
        }
        same
    });
}

/// What stands at the outer end of a stack that is not whole, or in place of one that is not there.
fn marker(ending: u32) -> Option<&'static str> {
    match ending {
        end::COMPLETE => None,
        end::TRUNCATED => Some("stack truncated at 128 frames"),
        end::FAILED_READ => Some("stack unreadable from here"),
        end::NO_THREAD_STATE => Some("interpreter start-up or shut-down"),
        end::NO_FRAME => Some("no Python function was running"),
        end::FOREIGN_THREAD => Some("thread outside of Python"),
        end::NO_INTERPRETER => Some("process without an interpreter"),
        _ => Some("stack of an unknown kind"),
    }
}

/// Adds up what was lost in the kernel half.
pub fn add_losses(sum: &mut Losses, totals: &Totals) {
    sum.live_table_full += totals.live_table_full;
    sum.stack_table_full += totals.stack_table_full;
    sum.thread_table_full += totals.thread_table_full;
    sum.thinned += totals.thinned;
    sum.failed_reads += totals.failed_reads;
    sum.ring_full += totals.ring_full;
}
