//! The arithmetic against a plain model: maps by text, in which nothing has an index.

mod chain;
mod rules;

use std::collections::BTreeMap;

use crate::profile::{
    Amount, Cost, Coverage, Domain, Frame, FrameId, FrameKind, Losses, Process, ProcessIndex, Profile,
    Recording, Sample, Values,
};

/// Values by what they are of, in words.
pub type Text = BTreeMap<String, Values>;

/// What a profile says, in words. Processes of one pid and command are told apart by how many came before.
pub fn text(profile: &Profile) -> Text {
    let mut before: BTreeMap<(u32, &str), usize> = BTreeMap::new();
    let names: Vec<String> = profile
        .processes
        .iter()
        .map(|Process { pid, command, .. }| {
            let number = before.entry((*pid, command)).or_default();
            *number += 1;
            format!("{command} {pid} #{number}")
        })
        .collect();
    let mut text = Text::new();
    for Sample { process, thread, domain, stack, values, .. } in &profile.samples {
        let frame = |frame: FrameId| {
            let Frame { kind, function, line, .. } = profile.frames.get_index(frame.0 as usize).unwrap();
            format!("{kind:?} {function}:{line}")
        };
        let stack: Vec<String> = stack.iter().map(frame).collect();
        let key = format!("{} | {thread} | {domain:?} | {}", names[process.0 as usize], stack.join(";"));
        assert!(text.insert(key, *values).is_none(), "two samples of one stack");
    }
    text
}

/// One number of each, without those that are nothing.
pub fn numbers(text: &Text, of: fn(&Values) -> Amount) -> BTreeMap<&str, Amount> {
    let of = text.iter().map(|(key, values)| (key.as_str(), of(values)));
    of.filter(|(_, amount)| *amount != Amount::default()).collect()
}

pub fn amount(bytes: u64) -> Amount {
    Amount { bytes, count: bytes.div_ceil(16) }
}

pub fn recording(start_nanoseconds: u64, duration_nanoseconds: u64) -> Recording {
    Recording {
        mode: "exact".to_owned(),
        seen_fraction: 1.0,
        start_nanoseconds,
        duration_nanoseconds,
        default_metric: "live".to_owned(),
        coverage: Coverage::Unmeasured { unmeasured: "a test".to_owned() },
        live_bytes_error: 0,
        windows: None,
        losses: Losses::default(),
        cost: Cost::default(),
        events: 0,
    }
}

/// A profile of nobody yet.
pub fn profile(start_nanoseconds: u64, duration_nanoseconds: u64) -> Profile {
    let recording = recording(start_nanoseconds, duration_nanoseconds);
    Profile { recording, processes: Vec::new(), frames: Default::default(), samples: Vec::new() }
}

impl Profile {
    /// With one more process.
    pub fn with_process(mut self, pid: u32, command: &str, ended: bool) -> Self {
        let command = command.to_owned();
        self.processes.push(Process { pid, command, ended, ..Process::default() });
        self
    }

    /// With one more sample. `stack`: functions, innermost first; one in brackets is a marker.
    pub fn with(mut self, process: u32, stack: &[&str], values: Values) -> Self {
        let stack = stack.iter().map(|function| {
            let kind = if function.starts_with('[') { FrameKind::Marker } else { FrameKind::Python };
            let function = function.trim_matches(['[', ']']).to_owned();
            let frame = Frame { kind, function, file: None, line: 1, first_line: 1 };
            FrameId(self.frames.insert_full(frame).0 as u32)
        });
        let (stack, process) = (stack.collect(), ProcessIndex(process));
        let (thread, domain) = (1, Domain::Pymalloc);
        self.samples.push(Sample { process, thread, domain, stack, values, estimated: None });
        self
    }
}

pub fn allocated(bytes: u64) -> Values {
    Values { allocated: amount(bytes), ..Values::default() }
}
