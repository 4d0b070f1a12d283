//! Gathers what the kernel half sends while it records, and makes the profile of it at the end.

use rustc_hash::FxHashMap;
use tracer_ebpf::abi::{PROCESSES, end};

use crate::attach::Kernel;
use crate::drain::{AccountRow, Event, Totals, decode, read_accounts, read_totals};
use crate::profile::{Domain, FrameId, Losses, Process, ProcessIndex, Profile, Recording, Sample, Values};
use crate::resolve::{Limits, Resolver};
use crate::session::SessionError;
use crate::session::target::Traced;

/// Line tables that may wait for their code object at one time.
const MAX_PENDING_TABLES: usize = 4096;

/// A code object's identity: process slot, address, fingerprint.
type CodeKey = (u32, u64, u32);

/// What makes a sample: process, thread, domain, stack.
type SampleKey = (ProcessIndex, u32, Domain, Box<[FrameId]>);

/// Everything received so far.
#[derive(Debug)]
pub struct Recorder {
    resolver: Resolver,
    stacks: FxHashMap<u32, Box<[FrameId]>>,
    tables: FxHashMap<CodeKey, Vec<u8>>,
    processes: Vec<(u16, Process)>,
    truncated_stacks: u64,
    unknown_records: u64,
}

impl Recorder {
    /// Nothing received yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            resolver: Resolver::new(Limits::default()),
            stacks: FxHashMap::default(),
            tables: FxHashMap::default(),
            processes: Vec::new(),
            truncated_stacks: 0,
            unknown_records: 0,
        }
    }

    /// Adds a process; before its first record arrives.
    pub fn add_process(&mut self, traced: &Traced) {
        let index = ProcessIndex(self.processes.len() as u32);
        self.resolver.add_process(index, *traced.layout());
        let process = Process {
            pid: traced.target.pid,
            command: traced.target.command.clone(),
            interpreter: traced.target.interpreter.version.to_string(),
        };
        self.processes.push((traced.slot.number, process));
    }

    fn index_of(&self, slot: u32) -> Option<ProcessIndex> {
        let position = self.processes.iter().position(|(number, _)| u32::from(*number) == slot)?;
        Some(ProcessIndex(position as u32))
    }

    /// Takes one record; gives back what concerns whole processes.
    pub fn take(&mut self, record: &[u8]) -> Option<u32> {
        match decode(record) {
            Event::Stack { process, account, end, frames } => self.take_stack(process, account, end, &frames),
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
            Event::Exec { pid } => return Some(pid),
            Event::Unknown { .. } => self.unknown_records += 1,
        }
        None
    }

    fn take_stack(&mut self, process: u32, account: u32, ending: u32, frames: &[crate::resolve::RawFrame]) {
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
        self.stacks.insert(account, stack.into_boxed_slice());
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
    ) -> Result<Profile, SessionError> {
        let mut totals: FxHashMap<u32, Totals> = FxHashMap::default();
        for (slot, _) in &self.processes {
            totals.insert(u32::from(*slot), read_totals(kernel, *slot)?);
        }
        let mut sums = FxHashMap::default();
        let peak_at = |slot: u32| totals.get(&slot).map_or(0, |totals| totals.peak_at);
        read_accounts(kernel, peak_at, |row| self.add(&mut sums, row))?;
        let samples = samples(sums);
        let counts = self.resolver.counts();
        tracing::debug!(?counts, "resolved");
        recording.losses = losses(totals.values());
        recording.losses.unresolved_frames = counts.unresolved();
        recording.losses.truncated_stacks = self.truncated_stacks;
        recording.events =
            totals.values().map(|totals| totals.pops + totals.pushes + totals.mallocs + totals.frees).sum();
        Ok(Profile {
            recording,
            processes: self.processes.into_iter().map(|(_, process)| process).collect(),
            frames: self.resolver.into_frames(),
            samples,
        })
    }

    /// Adds an account to the sample of its *resolved* stack: several raw stacks may resolve to one.
    fn add(&mut self, sums: &mut FxHashMap<SampleKey, Values>, row: AccountRow) {
        let Some(process) = self.index_of(row.process) else { return };
        let stack = self.stacks.remove(&row.account).unwrap_or_else(|| {
            let text = if row.account < PROCESSES {
                "other stacks (the stack table is full)"
            } else {
                "stack not received (the ring buffer was full)"
            };
            Box::new([self.resolver.marker(text)])
        });
        let sum = sums.entry((process, row.thread, row.domain, stack)).or_default();
        sum.allocated = sum.allocated.plus(row.values.allocated);
        sum.live = sum.live.plus(row.values.live);
        sum.peak = sum.peak.plus(row.values.peak);
        sum.temporary = sum.temporary.plus(row.values.temporary);
    }
}

/// The samples in an order that does not depend on hashes.
fn samples(sums: FxHashMap<SampleKey, Values>) -> Vec<Sample> {
    let samples = sums.into_iter().map(|((process, thread, domain, stack), values)| Sample {
        process,
        thread,
        domain,
        stack: stack.into_vec(),
        values,
    });
    let mut samples: Vec<Sample> = samples.collect();
    samples.sort_by(|a, b| {
        (a.process, a.thread, a.domain, &a.stack).cmp(&(b.process, b.thread, b.domain, &b.stack))
    });
    samples
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
pub fn losses<'a>(totals: impl Iterator<Item = &'a Totals>) -> Losses {
    let mut sum = Losses::default();
    for totals in totals {
        sum.live_table_full += totals.live_table_full;
        sum.stack_table_full += totals.stack_table_full;
        sum.thread_table_full += totals.thread_table_full;
        sum.thinned += totals.thinned;
        sum.failed_reads += totals.failed_reads;
        sum.ring_full += totals.ring_full;
        sum.stale_codes += totals.stale_codes;
    }
    sum
}
