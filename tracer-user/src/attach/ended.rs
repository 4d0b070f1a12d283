//! Takes what belongs to processes that have ended out of the kernel half's tables, a part of a table at a time.
//!
//! The kernel half cannot: a program may not loop over so large a table. So its maps are mapped here, and the very code that the
//! kernel half runs takes entries out, while programs of other processes put theirs in. It must not know what becomes of them.

use tracer_ebpf::abi::PROCESSES;
use tracer_ebpf::bucket::{self, Bucket, Buckets, Candidates, ENTRIES};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::free;
use tracer_ebpf::live::{Entry, Key, Live};
use tracer_ebpf::tables::{Account, Globals, Settings};

use super::kernel::table_error;
use super::mapped::{Mapped, Window};
use super::{AttachError, Kernel};

/// Buckets of one step: 1 MiB of a table, which takes 1 ms to look at, and 5 ms if all of it is taken out.
const BUCKETS_AT_ONCE: usize = 1 << 13;
/// Accounts of one step, which take 1 ms to look at and 5 ms to give back. They fill whole pages, also those of 64 KiB.
const ACCOUNTS_AT_ONCE: usize = 1 << 13;

/// An account as words.
pub type AccountWords = [u64; size_of::<Account>() / 8];

/// A set of process slots.
#[derive(Debug, Clone)]
pub struct SlotSet(Box<[bool; PROCESSES as usize]>);

impl SlotSet {
    /// These.
    #[must_use]
    pub fn of(slots: &[u16]) -> Self {
        let mut set = Box::new([false; PROCESSES as usize]);
        for slot in slots {
            if let Some(place) = set.get_mut(usize::from(*slot)) {
                *place = true;
            }
        }
        Self(set)
    }

    /// Whether a slot is one of them; only its ten bits count. Slot 0 is no process.
    fn has(&self, slot: u64) -> bool {
        let slot = slot & u64::from(PROCESSES - 1);
        slot != 0 && self.0[slot as usize]
    }
}

struct Shared {
    settings: Mapped<Settings>,
    globals: Mapped<Globals>,
}

impl Shared {
    fn of(kernel: &Kernel) -> Result<Self, AttachError> {
        let settings = kernel.table("SETTINGS")?;
        let globals = kernel.table("GLOBALS")?;
        Ok(Self {
            settings: Mapped::new(settings, 0..1).map_err(table_error("SETTINGS"))?,
            globals: Mapped::new(globals, 0..1).map_err(table_error("GLOBALS"))?,
        })
    }

    fn get(&self) -> Result<(&Settings, &Globals), AttachError> {
        let both = self.settings.get(0).zip(self.globals.get(0));
        both.ok_or_else(|| table_error("SETTINGS")(rustix::io::Errno::FAULT))
    }
}

/// Takes the blocks of the processes in `slots` out of the next part of the table of live blocks, from bucket `from` on, and shows
/// each. Their accounts stay. Gives back where to go on; `None` at the end of the table.
///
/// # Errors
/// When the tables cannot be mapped.
pub fn take_blocks(
    kernel: &Kernel,
    slots: &SlotSet,
    from: usize,
    mut taken: impl FnMut(Entry),
) -> Result<Option<usize>, AttachError> {
    let shared = Shared::of(kernel)?;
    let (settings, globals) = shared.get()?;
    let buckets = kernel.sizes().live_buckets as usize;
    sweep(kernel, "LIVE", buckets, from, |window, key| {
        if slots.has(key)
            && let Some(entry) = (Live { buckets: window, settings, globals }).take(Key(key))
        {
            taken(entry);
        }
    })
}

/// Shows every block of the processes in `slots`, and takes those out for which `visit` says so. Their accounts stay.
///
/// # Errors
/// When the tables cannot be mapped.
pub fn visit_blocks(
    kernel: &Kernel,
    slots: &SlotSet,
    mut visit: impl FnMut(Key, Entry) -> bool,
) -> Result<(), AttachError> {
    let shared = Shared::of(kernel)?;
    let (settings, globals) = shared.get()?;
    let buckets = kernel.sizes().live_buckets as usize;
    let mut from = Some(0);
    while let Some(start) = from {
        from = sweep(kernel, "LIVE", buckets, start, |window, key| {
            if slots.has(key) {
                let (live, key) = (Live { buckets: window, settings, globals }, Key(key));
                if let Some(entry) = live.get(key)
                    && visit(key, entry)
                {
                    live.take(key);
                }
            }
        })?;
    }
    Ok(())
}

/// Empties the next part of the table of code objects that were sent, if more than half of it is in use. Which of them are of processes
/// that have ended it does not say; one that still runs is sent once more with its next new stack.
///
/// # Errors
/// When the tables cannot be mapped.
pub fn forget_codes(kernel: &Kernel, from: usize) -> Result<Option<usize>, AttachError> {
    let shared = Shared::of(kernel)?;
    let (settings, _) = shared.get()?;
    let buckets = kernel.sizes().code_buckets;
    let mut used = 0;
    sweep(kernel, "CODES", buckets as usize, from, |_, _| used += 1)?;
    let in_part = BUCKETS_AT_ONCE.min((buckets as usize).saturating_sub(from)) * ENTRIES;
    let is_full = used > in_part / 2;
    sweep(kernel, "CODES", buckets as usize, from, |window, key| {
        let at = Candidates::of(key, settings.seed.load(), buckets);
        if is_full && let Some(place) = bucket::find(window, at, key) {
            bucket::remove(window, at, place, key);
        }
    })
}

/// Shows each entry of the next part of a table.
fn sweep(
    kernel: &Kernel,
    table: &'static str,
    buckets: usize,
    from: usize,
    mut visit: impl FnMut(&Window<'_>, u64),
) -> Result<Option<usize>, AttachError> {
    let end = (from + BUCKETS_AT_ONCE).min(buckets);
    if from >= end {
        return Ok(None);
    }
    let mut window = Window::new(kernel.table(table)?, buckets, from..end).map_err(table_error(table))?;
    for number in from..end {
        for key in window.keys(number) {
            if key != 0 {
                visit(&window, key);
                window.next_key();
            }
        }
    }
    Ok((end < buckets).then_some(end))
}

/// All of a table of buckets.
struct Whole(Mapped<Bucket>);

impl Buckets for Whole {
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.0.get(number as usize)
    }
}

/// Shows the accounts of the processes in `slots` among the next ones from number `from` on, and gives their numbers back to the
/// kernel half. The processes' own accounts are emptied and stay theirs. Gives back how many were given back, and where to go on.
///
/// Nothing that runs may be able to reach them: the processes have ended and are disarmed.
///
/// # Errors
/// When the tables cannot be mapped.
pub fn close_accounts(
    kernel: &Kernel,
    slots: &SlotSet,
    from: usize,
    mut closed: impl FnMut(u32, AccountWords),
) -> Result<(u32, Option<usize>), AttachError> {
    let shared = Shared::of(kernel)?;
    let (settings, globals) = shared.get()?;
    let sizes = kernel.sizes();
    let used = usize::try_from(globals.accounts_used.load()).unwrap_or(usize::MAX);
    let used = used.min(sizes.accounts as usize);
    let end = (from + ACCOUNTS_AT_ONCE).min(used);
    if from >= end {
        return Ok((0, None));
    }
    let accounts =
        Mapped::<Account>::new(kernel.table("ACCOUNTS")?, from..end).map_err(table_error("ACCOUNTS"))?;
    // An account's place in the index may be anywhere in it.
    let mut index = None;
    let mut given_back = 0;
    for number in from..end {
        let Some(account) = accounts.get(number) else { continue };
        let owner = account.owner.load();
        if owner == 0 || !slots.has(owner >> 40) {
            continue;
        }
        closed(number as u32, account.cells().map(Cell::load));
        if number < PROCESSES as usize {
            free::clear(account);
            continue;
        }
        let index = match &index {
            Some(index) => index,
            None => {
                let whole = 0..sizes.index_buckets as usize;
                let mapped = Mapped::new(kernel.table("INDEX")?, whole).map_err(table_error("INDEX"))?;
                index.insert(Whole(mapped))
            }
        };
        given_back += u32::from(free::give_back(index, settings, globals, number as u32, account));
    }
    Ok((given_back, (end < used).then_some(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_its_slots_and_never_slot_0() {
        let set = SlotSet::of(&[0, 3, 1023, 1024]);
        let has: Vec<u64> = (0..u64::from(PROCESSES)).filter(|slot| set.has(*slot)).collect();
        assert_eq!(has, [3, 1023]);
        assert!(set.has(7 << 10 | 3) && !set.has(7 << 10));
    }

    #[test]
    fn steps_fill_whole_pages() {
        for page in [4096, 16384, 65536] {
            assert_eq!(ACCOUNTS_AT_ONCE * size_of::<Account>() % page, 0);
            assert_eq!(BUCKETS_AT_ONCE * size_of::<Bucket>() % page, 0);
        }
    }
}
