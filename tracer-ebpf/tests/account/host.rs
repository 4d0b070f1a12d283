//! The tables of the account on the host: vectors of cells.

use tracer_ebpf::abi::{PROCESSES, domain};
use tracer_ebpf::account::{AccountId, Books};
use tracer_ebpf::bucket::{Bucket, Buckets, ENTRIES};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::free;
use tracer_ebpf::hash::{mix, spread};
use tracer_ebpf::live::{Key, Live};
use tracer_ebpf::tables::{Account, Generations, Globals, Settings, Tables, Thread, Totals};

/// Threads that have cells: ids 1 to this number.
pub const THREADS: u32 = 16;
/// Processes that have totals: slots 1 to this number.
pub const SLOTS: u32 = 4;

/// How large the tables are.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub live_buckets: u32,
    pub index_buckets: u32,
    /// Accounts besides the processes' own.
    pub stacks: u32,
    pub seed: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { live_buckets: 256, index_buckets: 256, stacks: 512, seed: 1 }
    }
}

/// One table of buckets.
#[derive(Debug)]
pub struct Table(Vec<Bucket>);

impl Table {
    pub fn new(buckets: u32) -> Self {
        Self(some(buckets))
    }

    pub fn used(&self) -> usize {
        self.0.iter().flat_map(Bucket::keys).filter(|key| key.load() != 0).count()
    }

    /// The keys in it.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        let keys: Vec<u64> = self.0.iter().flat_map(Bucket::keys).map(Cell::load).collect();
        keys.into_iter().filter(|key| *key != 0)
    }

    /// The sum of the overflow counters. They are private: the debug form shows them.
    pub fn overflowed(&self) -> u64 {
        self.0.iter().map(overflowed).sum()
    }
}

fn overflowed(bucket: &Bucket) -> u64 {
    let text = format!("{bucket:?}");
    let (_, rest) = text.split_once("overflowed: Cell(").unwrap();
    rest.split_once(')').unwrap().0.parse().unwrap()
}

impl Buckets for Table {
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.0.get(number as usize)
    }
}

/// All tables.
#[derive(Debug)]
pub struct Host {
    pub live: Table,
    pub index: Table,
    pub settings: Settings,
    pub globals: Globals,
    pub generations: Generations,
    accounts: Vec<Account>,
    threads: Vec<Thread>,
    totals: Vec<Totals>,
}

fn some<T: Default>(count: u32) -> Vec<T> {
    (0..count).map(|_| T::default()).collect()
}

impl Host {
    /// Empty tables, with the limits that userspace sets: thinning from 50 % fill on, 15 steps to 80 %.
    pub fn new(sizes: Sizes) -> Self {
        let settings = Settings::default();
        let entries = u64::from(sizes.live_buckets) * ENTRIES as u64;
        settings.live_soft_limit.store(entries / 2);
        settings.live_step.store(entries / 50);
        settings.live_buckets.store(sizes.live_buckets.into());
        settings.live_step_between_lines.store((1 << 32) / u64::from(sizes.live_buckets));
        settings.index_buckets.store(sizes.index_buckets.into());
        settings.accounts.store(u64::from(PROCESSES + sizes.stacks));
        settings.seed.store(spread(sizes.seed));
        let globals = Globals::default();
        globals.accounts_used.store(PROCESSES.into());
        Self {
            live: Table::new(sizes.live_buckets),
            index: Table::new(sizes.index_buckets),
            settings,
            globals,
            generations: Generations::new(),
            accounts: some(PROCESSES + sizes.stacks),
            threads: some(THREADS + 1),
            totals: some(SLOTS + 1),
        }
    }

    pub fn books(&self, slot: u32) -> Books<'_, Self> {
        let totals = self.totals(slot);
        Books {
            tables: self,
            settings: &self.settings,
            globals: &self.globals,
            totals,
            slot,
            window: self.settings.window(),
            level: 0,
            is_kept: false,
        }
    }

    pub fn totals(&self, slot: u32) -> &Totals {
        &self.totals[slot as usize]
    }

    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// All that a process has used is given back, as userspace does when it has ended. `threads`: those that were its own.
    pub fn end_process(&mut self, slot: u32, threads: impl Iterator<Item = u32>) {
        let of_it =
            |account: &Account| account.owner.load() >> 40 & u64::from(PROCESSES - 1) == u64::from(slot);
        for (number, account) in self.accounts.iter().enumerate() {
            if account.owner.load() == 0 || !of_it(account) {
                continue;
            }
            if number < PROCESSES as usize {
                free::clear(account);
            } else {
                assert!(free::give_back(&self.index, &self.settings, &self.globals, number as u32, account));
            }
        }
        let live = Live { buckets: &self.live, settings: &self.settings, globals: &self.globals };
        for key in self.live.keys().filter(|key| *key & u64::from(PROCESSES - 1) == u64::from(slot)) {
            assert!(live.take(Key(key)).is_some());
        }
        threads.for_each(|thread| self.threads[thread as usize] = Thread::default());
        self.totals[slot as usize] = Totals::default();
    }

    /// Numbers of accounts that were given back, in the order in which they will be handed out.
    pub fn free_accounts(&self) -> Vec<u32> {
        let number = |cell: u64| Some(cell as u32).filter(|number| *number != 0);
        let first = number(self.globals.free_accounts.load());
        let next = |before: &u32| number(self.accounts[*before as usize].link.load());
        std::iter::successors(first, next).take(self.accounts.len()).collect()
    }

    /// What decides about thinning.
    pub fn level(&self) -> u32 {
        Live { buckets: &self.live, settings: &self.settings, globals: &self.globals }.level()
    }

    /// The account of a stack, which is a number here.
    pub fn account_of(&self, slot: u32, thread: u32, of: u8, stack: u32) -> AccountId {
        let who = mix(u64::from(thread) << 8 | u64::from(of), u64::from(slot) + 1);
        self.books(slot).account(spread(mix(who, stack.into())) | 1, thread, of)
    }

    /// An allocation as the programs book it.
    pub fn allocate(&self, slot: u32, thread: u32, address: u64, size: u64) -> AccountId {
        let id = self.account_of(slot, thread, domain::PYMALLOC, 0);
        self.books(slot).allocated(id, self.thread(thread), address, size, domain::PYMALLOC);
        id
    }
}

impl Tables for Host {
    type Live = Table;
    type Index = Table;

    fn live(&self) -> &Table {
        &self.live
    }

    fn index(&self) -> &Table {
        &self.index
    }

    fn account(&self, number: u32) -> Option<&Account> {
        self.accounts.get(number as usize)
    }

    fn generations(&self) -> Option<&Generations> {
        Some(&self.generations)
    }

    fn thread(&self, thread_id: u32) -> Option<&Thread> {
        self.threads.get(thread_id as usize).filter(|_| thread_id != 0)
    }
}
