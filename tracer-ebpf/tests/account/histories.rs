//! Random histories: the account must say what the model says, for every account, exactly.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tracer_ebpf::abi::{PROCESSES, domain};
use tracer_ebpf::account::{AccountId, Freed, at_peak};
use tracer_ebpf::live::{Entry, Key};
use tracer_ebpf::tables::Account;
use tracer_ebpf::tables::Tables as _;

use crate::host::{Host, SLOTS, Sizes, THREADS};
use crate::model::{Amount, Holder, Model, Values};

/// Few addresses and stacks, so that histories meet themselves.
const PLACES: u64 = 12;
const STACKS: u32 = 6;

#[derive(Debug, Clone, Copy)]
pub enum Event {
    Allocate {
        thread: u32,
        place: u64,
        size: u64,
        of: u8,
        stack: u32,
    },
    Free {
        thread: u32,
        place: u64,
    },
    ReallocBegins {
        thread: u32,
        place: u64,
    },
    ReallocEnds {
        thread: u32,
        failed: bool,
    },
    /// A process ends, and another gets its place.
    Ends {
        slot: u32,
    },
}

/// Of processes that do not end.
fn events() -> impl Strategy<Value = Vec<Event>> {
    proptest::collection::vec(event(), 0..300)
}

/// Of processes that come and go.
pub fn events_with_ends() -> impl Strategy<Value = Vec<Event>> {
    let ends = (1..=SLOTS).prop_map(|slot| Event::Ends { slot });
    proptest::collection::vec(prop_oneof![30 => event(), 1 => ends], 0..600)
}

fn event() -> impl Strategy<Value = Event> {
    let size = prop_oneof![
        6 => (1_u64..=32).prop_map(|class| class * 16),
        2 => 513_u64..1 << 20,
        1 => Just(0_u64),
        1 => (1_u64 << 37)..(1 << 40),
    ];
    let of = prop_oneof![Just(domain::PYMALLOC), Just(domain::MALLOC)];
    prop_oneof![
        6 => (1..=THREADS, 0..PLACES, size, of, 0..STACKS)
            .prop_map(|(thread, place, size, of, stack)| Event::Allocate { thread, place, size, of, stack }),
        4 => (1..=THREADS, 0..PLACES).prop_map(|(thread, place)| Event::Free { thread, place }),
        1 => (1..=THREADS, 0..PLACES).prop_map(|(thread, place)| Event::ReallocBegins { thread, place }),
        2 => (1..=THREADS, any::<bool>()).prop_map(|(thread, failed)| Event::ReallocEnds { thread, failed }),
    ]
}

/// Every thread belongs to one process.
fn slot_of(thread: u32) -> u32 {
    thread % SLOTS + 1
}

/// Processes use the same addresses: they must not meet in the live table.
fn address_of(place: u64) -> u64 {
    0x7f12_3456_0000 + place * 16
}

/// The account and the model, side by side.
pub struct Pair {
    pub host: Host,
    model: Model,
    in_flight: BTreeMap<u32, (Key, Entry)>,
    without_account: BTreeMap<u32, u64>,
    /// Process and stack of each account in use.
    names: BTreeMap<u32, (u32, u32)>,
}

impl Pair {
    fn new(sizes: Sizes) -> Self {
        let (in_flight, without_account) = (BTreeMap::new(), BTreeMap::new());
        let names = BTreeMap::new();
        Self { host: Host::new(sizes), model: Model::default(), in_flight, without_account, names }
    }

    pub fn after(sizes: Sizes, history: &[Event]) -> Self {
        let mut pair = Self::new(sizes);
        for event in history {
            pair.apply(*event);
        }
        pair
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Allocate { thread, place, size, of, stack } => {
                self.allocate(thread, address_of(place), size, of, stack);
            }
            Event::Free { thread, place } => self.free(slot_of(thread), address_of(place)),
            Event::ReallocBegins { thread, place } => self.realloc_begins(thread, address_of(place)),
            Event::ReallocEnds { thread, failed } => self.realloc_ends(thread, failed),
            Event::Ends { slot } => self.ends(slot),
        }
    }

    fn allocate(&mut self, thread: u32, address: u64, size: u64, of: u8, stack: u32) {
        let slot = slot_of(thread);
        let id = self.host.account_of(slot, thread, of, stack);
        let holder = self.holder(id, Holder { slot, thread, of, stack: Some(stack) });
        if id.0 >= PROCESSES {
            let before = self.names.insert(id.0, (slot, stack));
            assert!(before.is_none_or(|before| before == (slot, stack)), "an account that another has");
        }
        self.host.books(slot).allocated(id, self.host.thread(thread), address, size, of);
        self.model.allocate(holder, thread, of, address, size);
    }

    /// Who holds what is booked to `id`: the one who asked, or its process for want of room.
    fn holder(&mut self, id: AccountId, asked: Holder) -> Holder {
        if id.0 >= PROCESSES {
            return asked;
        }
        assert_eq!(id.0, asked.slot, "another process's account");
        *self.without_account.entry(asked.slot).or_default() += 1;
        Holder { thread: 0, of: domain::PYMALLOC, stack: None, ..asked }
    }

    fn free(&mut self, slot: u32, address: u64) {
        let known = self.host.books(slot).freed(address) == Freed::Known;
        assert_eq!(known, self.model.free(slot, address));
    }

    fn realloc_begins(&mut self, thread: u32, address: u64) {
        if self.in_flight.contains_key(&thread) {
            return;
        }
        let taken = self.host.books(slot_of(thread)).take(address);
        assert_eq!(taken.is_some(), self.model.take(thread, slot_of(thread), address));
        if let Some((key, entry)) = taken {
            assert_eq!(key.address(), address);
            self.in_flight.insert(thread, (key, entry));
        }
    }

    fn realloc_ends(&mut self, thread: u32, failed: bool) {
        let Some((key, entry)) = self.in_flight.remove(&thread) else { return };
        let books = self.host.books(slot_of(thread));
        // A block whose address is in use again was not kept.
        if failed && !self.model.is_overtaken(thread) {
            books.put_back(key, entry);
            self.model.put_back(thread);
        } else {
            books.end(key, entry);
            self.model.end(thread);
        }
    }

    /// What userspace reads of a process that has ended is what the model says; then all of it is given back.
    fn ends(&mut self, slot: u32) {
        let is_of_it = |holder: &Holder| holder.slot == slot;
        let mut read = self.read(&self.names.iter().map(|(number, (_, stack))| (*number, *stack)).collect());
        read.retain(|holder, _| is_of_it(holder));
        let mut said = self.model.accounts();
        said.retain(|holder, _| is_of_it(holder));
        assert_eq!(read, said, "process {slot} at its end");
        let threads = || (1..=THREADS).filter(move |thread| slot_of(*thread) == slot);
        self.in_flight.retain(|thread, _| slot_of(*thread) != slot);
        self.without_account.remove(&slot);
        self.names.retain(|_, (of, _)| *of != slot);
        self.model.forget(slot, threads());
        self.host.end_process(slot, threads());
        self.check_tables();
    }

    /// What is in use and what is free are all accounts that were ever handed out, and the index has those in use.
    pub fn check_tables(&self) {
        let free = self.host.free_accounts();
        let mut all: Vec<u32> = self.names.keys().copied().chain(free.iter().copied()).collect();
        all.sort_unstable();
        let used = (self.host.globals.accounts_used.load() as usize).min(self.host.accounts().len());
        assert_eq!(all, (PROCESSES..used as u32).collect::<Vec<_>>());
        assert_eq!(self.host.index.used(), self.names.len());
        for number in free {
            let account = &self.host.accounts()[number as usize];
            assert_eq!(
                (account.owner.load(), account.allocated_count.load(), account.changed.load()),
                (0, 0, 0)
            );
        }
    }

    /// The accounts by whom they belong to, as userspace would read them.
    pub fn accounts(&self) -> BTreeMap<Holder, Values> {
        self.read(&self.stacks())
    }

    fn read(&self, stacks: &BTreeMap<u32, u32>) -> BTreeMap<Holder, Values> {
        let used = self.host.accounts().iter().enumerate();
        let used = used.filter(|(_, account)| account.allocated_count.load() != 0);
        used.map(|(number, account)| {
            let stack = stacks.get(&(number as u32)).copied();
            let holder = Holder { stack, ..holder_of(account) };
            (holder, values(account, self.host.totals(holder.slot).peak_at.load()))
        })
        .collect()
    }

    /// Which stack an account number stands for, found by asking for every one.
    fn stacks(&self) -> BTreeMap<u32, u32> {
        let mut stacks = BTreeMap::new();
        for (thread, of, stack) in all_stacks() {
            let id = self.host.account_of(slot_of(thread), thread, of, stack);
            if id.0 >= PROCESSES {
                assert_eq!(stacks.insert(id.0, stack), None, "two stacks with one account");
            }
        }
        stacks
    }

    pub fn said(&self) -> BTreeMap<Holder, Values> {
        self.model.accounts()
    }

    pub fn check_totals(&self) {
        for slot in 1..=SLOTS {
            let totals = self.host.totals(slot);
            let repeated = |of| self.model.repeated.get(&(slot, of)).copied().unwrap_or_default();
            assert_eq!(totals.live_bytes.load(), self.model.live_bytes(slot), "live bytes of process {slot}");
            assert_eq!(totals.peak_bytes.load(), self.model.peak(slot).bytes, "peak of process {slot}");
            assert_eq!(totals.repeated_pops.load(), repeated(domain::PYMALLOC));
            assert_eq!(totals.repeated_mallocs.load(), repeated(domain::MALLOC));
            assert_eq!((totals.thinned.load(), totals.live_table_full.load()), (0, 0));
            let unplaced = self.without_account.get(&slot).copied().unwrap_or_default();
            assert_eq!(totals.stack_table_full.load(), unplaced, "losses of process {slot}");
        }
        assert_eq!(self.host.globals.live_used.load() as usize, self.host.live.used());
    }
}

fn all_stacks() -> impl Iterator<Item = (u32, u8, u32)> {
    let of = [domain::PYMALLOC, domain::MALLOC];
    (1..=THREADS).flat_map(move |thread| {
        of.into_iter().flat_map(move |of| (0..STACKS).map(move |stack| (thread, of, stack)))
    })
}

/// Unpacks an owner; see `Account::owner`.
fn holder_of(account: &Account) -> Holder {
    let owner = account.owner.load();
    assert_eq!(owner >> 63, 1, "an account in use has an owner");
    let slot = (owner >> 40) as u32 & (PROCESSES - 1);
    Holder { slot, thread: owner as u32, of: (owner >> 32 & 1) as u8, stack: None }
}

fn values(account: &Account, peak_at: u64) -> Values {
    let (bytes, count) = at_peak(account, peak_at);
    let amount = |bytes: &tracer_ebpf::cell::Cell, count: &tracer_ebpf::cell::Cell| Amount {
        bytes: bytes.load(),
        count: count.load(),
    };
    Values {
        allocated: amount(&account.allocated_bytes, &account.allocated_count),
        live: amount(&account.live_bytes, &account.live_count),
        peak: Amount { bytes, count },
        temporary: amount(&account.temporary_bytes, &account.temporary_count),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_account_says_what_the_model_says(history in events(), seed: u64) {
        let pair = Pair::after(Sizes { seed, ..Sizes::default() }, &history);
        pair.check_totals();
        prop_assert_eq!(pair.accounts(), pair.model.accounts());
    }

    /// Room for a few stacks only: the rest goes to the processes' own accounts, and nothing is lost.
    #[test]
    fn a_full_table_of_accounts_loses_no_byte(history in events(), seed: u64, stacks in 0_u32..40) {
        let pair = Pair::after(Sizes { seed, stacks, ..Sizes::default() }, &history);
        pair.check_totals();
        prop_assert_eq!(pair.accounts(), pair.model.accounts());
    }

    /// The same where the index has no place for a stack, while there are accounts left.
    #[test]
    fn a_full_index_loses_no_byte(history in events(), seed: u64, index_buckets in 1_u32..6) {
        let pair = Pair::after(Sizes { seed, index_buckets, ..Sizes::default() }, &history);
        pair.check_totals();
        prop_assert_eq!(pair.accounts(), pair.model.accounts());
    }

    /// The peaks of the accounts are of one moment: they add up to the process's.
    #[test]
    fn peaks_add_up(history in events(), seed: u64, stacks in 0_u32..200) {
        let pair = Pair::after(Sizes { seed, stacks, ..Sizes::default() }, &history);
        let accounts = pair.accounts();
        for slot in 1..=SLOTS {
            let of_slot = accounts.iter().filter(|(holder, _)| holder.slot == slot);
            let sum: u64 = of_slot.map(|(_, values)| values.peak.bytes).sum();
            prop_assert_eq!(sum, pair.host.totals(slot).peak_bytes.load());
        }
    }
}
