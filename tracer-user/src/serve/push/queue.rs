//! What waits to be sent to one receiver: bounded by number and by bytes, and the oldest goes first where there is no room.
//!
//! What is being sent just now is not taken away: whether it has arrived would not be known. It must not know what is sent, nor how.

use std::collections::VecDeque;

/// How much may wait, what is being sent included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Entries; at least one has room.
    pub number: usize,
    /// Of memory.
    pub bytes: u64,
}

impl Default for Room {
    fn default() -> Self {
        // Two hours of both recordings, and no more than a fifth of what the sidecar may be.
        Self { number: 240, bytes: 16 << 20 }
    }
}

/// Which entry: numbers go up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(u64);

/// How far the sending of an entry has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Parts that are settled.
    pub done: usize,
    /// How often it has failed for a reason that may be its own.
    pub failures: u32,
    /// Why a part of it was refused for good.
    pub refused: Option<String>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// Which.
    pub id: EntryId,
    /// What it weighs.
    pub bytes: u64,
    /// How far it is.
    pub progress: Progress,
    /// What is sent.
    pub payload: T,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Queue<T> {
    entries: VecDeque<Entry<T>>,
    bytes: u64,
    room: Room,
    next: u64,
    on_the_wire: Option<EntryId>,
}

impl<T: Clone> Queue<T> {
    /// Nothing waits.
    pub fn new(room: Room) -> Self {
        let room = Room { number: room.number.max(1), ..room };
        Self { entries: VecDeque::new(), bytes: 0, room, next: 0, on_the_wire: None }
    }

    /// Adds one at the end. How many were given up for it is returned: the oldest ones, or itself if it has no room at all.
    #[must_use]
    pub fn add(&mut self, payload: T, bytes: u64) -> u64 {
        self.entries.push_back(Entry {
            id: EntryId(self.next),
            bytes,
            progress: Progress::default(),
            payload,
        });
        self.bytes = self.bytes.saturating_add(bytes);
        self.next += 1;
        let mut given_up = 0;
        while self.is_too_full() {
            let is_free = |entry: &Entry<T>| Some(entry.id) != self.on_the_wire;
            let Some(place) = self.entries.iter().position(is_free) else { break };
            self.remove(place);
            given_up += 1;
        }
        given_up
    }

    /// The oldest, which is being sent from now on.
    pub fn send(&mut self) -> Option<Entry<T>> {
        let entry = self.entries.front()?.clone();
        self.on_the_wire = Some(entry.id);
        Some(entry)
    }

    /// It was sent, or is given up: it goes.
    pub fn finish(&mut self, id: EntryId) {
        self.on_the_wire = None;
        if let Some(place) = self.entries.iter().position(|entry| entry.id == id) {
            self.remove(place);
        }
    }

    /// It is to be sent again later: it waits in its place, and may be given up.
    pub fn put_back(&mut self, id: EntryId, progress: Progress) {
        self.on_the_wire = None;
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) {
            entry.progress = progress;
        }
    }

    /// How many wait, the one that is being sent included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn is_too_full(&self) -> bool {
        self.entries.len() > self.room.number || self.bytes > self.room.bytes
    }

    fn remove(&mut self, place: usize) {
        if let Some(entry) = self.entries.remove(place) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What may happen to a queue.
    #[derive(Debug, Clone)]
    enum Step {
        Add(u64),
        Send,
        Finish,
        PutBack,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..60_u64).prop_map(Step::Add),
            Just(Step::Send),
            Just(Step::Finish),
            Just(Step::PutBack)
        ]
    }

    /// The same by lists of numbers: (number, bytes, is it being sent).
    #[derive(Default)]
    struct Model {
        entries: Vec<(u64, u64, bool)>,
        added: u64,
        given_up: u64,
        finished: u64,
    }

    impl Model {
        fn add(&mut self, bytes: u64, room: Room) {
            self.entries.push((self.added, bytes, false));
            self.added += 1;
            loop {
                let sum: u64 = self.entries.iter().map(|(_, bytes, _)| bytes).sum();
                if self.entries.len() <= room.number && sum <= room.bytes {
                    return;
                }
                let oldest = self.entries.iter().position(|(_, _, is_sent)| !is_sent).unwrap();
                self.entries.remove(oldest);
                self.given_up += 1;
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_as_the_plain_model(
            number in 1_usize..6, bytes in 1_u64..150, steps in vec(step(), 0..200),
        ) {
            let room = Room { number, bytes };
            let (mut queue, mut model, mut given_up) = (Queue::new(room), Model::default(), 0);
            let mut sending: Option<EntryId> = None;
            for step in steps {
                match step {
                    Step::Add(bytes) => {
                        given_up += queue.add(model.added, bytes);
                        model.add(bytes, room);
                    }
                    Step::Send if sending.is_none() => {
                        let entry = queue.send();
                        prop_assert_eq!(entry.as_ref().map(|entry| entry.payload), model.entries.first().map(|entry| entry.0));
                        if let Some(first) = model.entries.first_mut() {
                            first.2 = true;
                        }
                        sending = entry.map(|entry| entry.id);
                    }
                    Step::Finish => if let Some(id) = sending.take() {
                        queue.finish(id);
                        let before = model.entries.len();
                        model.entries.retain(|entry| !entry.2);
                        prop_assert_eq!(before, model.entries.len() + 1, "what is being sent is never taken away");
                        model.finished += 1;
                    },
                    Step::PutBack => if let Some(id) = sending.take() {
                        queue.put_back(id, Progress { done: 1, ..Progress::default() });
                        prop_assert_eq!(queue.entries.front().map(|entry| entry.progress.done), Some(1));
                        model.entries.iter_mut().for_each(|entry| entry.2 = false);
                    },
                    Step::Send => {}
                }
                let payloads: Vec<u64> = queue.entries.iter().map(|entry| entry.payload).collect();
                let expected: Vec<u64> = model.entries.iter().map(|entry| entry.0).collect();
                prop_assert_eq!(payloads, expected);
                prop_assert_eq!(given_up, model.given_up);
                prop_assert!(queue.len() <= number && queue.bytes <= bytes);
                prop_assert_eq!(model.added, given_up + model.finished + queue.len() as u64, "every one is accounted for");
            }
        }
    }
}
