//! Points that are armed, and their disarming.
//!
//! It must not know which points they are.

use std::os::fd::OwnedFd;
use std::thread;

use aya::programs::uprobe::UProbeLink;

/// Links that are disarmed at one time; each waits for a grace period of the kernel, and they can wait together.
const AT_ONCE: usize = 16;

/// Points that are armed; dropping it disarms them.
#[derive(Debug)]
pub struct Armed {
    pub(super) _links: Links,
}

#[derive(Debug)]
pub(super) enum Links {
    Multi { _link: OwnedFd },
    Perf { _links: Vec<UProbeLink> },
}

/// Points that are being disarmed; dropping it waits until they are.
#[derive(Debug)]
pub struct Disarming(Option<thread::JoinHandle<()>>);

impl Drop for Disarming {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // It only drops links.
            let _ = thread.join();
        }
    }
}

/// Disarms all of them, which takes a grace period of the kernel, and does not wait for it.
pub fn begin_to_disarm(armed: Vec<Armed>) -> Disarming {
    Disarming(Some(thread::spawn(move || disarm(armed))))
}

/// Disarms all of them, and returns when the targets are as they were.
pub fn disarm(armed: impl IntoIterator<Item = Armed>) {
    let mut waiting: Vec<Armed> = armed.into_iter().collect();
    while !waiting.is_empty() {
        let some = waiting.split_off(waiting.len().saturating_sub(AT_ONCE));
        thread::scope(|scope| {
            for one in some {
                scope.spawn(move || drop(one));
            }
        });
    }
}
