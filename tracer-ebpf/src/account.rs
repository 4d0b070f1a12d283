//! The rules of the account: what an allocation and a free change, and how the exact peak is kept in constant time.
//!
//! Peak: every change takes the next number of its process's event sequence, and the process remembers the number at which
//! its live bytes were highest. The first time an account changes after that, its value before the change is what it held
//! at the peak. Nothing is ever swept.
//! It must not know where events come from, nor stacks: an account is a number here.

use crate::abi::{PROCESSES, domain};
use crate::bucket;
use crate::bucket::Candidates;
use crate::cell::Cell;
use crate::free;
use crate::live::{Entry, Inserted, Key, Live};
use crate::tables::{Account, Globals, Settings, Tables, Thread, Totals, Window};

/// An account number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountId(pub u32);

/// What a free meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// The block was counted; its account has been changed.
    Known,
    /// The block was not in the table: allocated before recording, or left out.
    Unknown,
}

/// One process's books.
#[derive(Debug)]
pub struct Books<'a, T> {
    /// All tables.
    pub tables: &'a T,
    /// Sizes and limits.
    pub settings: &'a Settings,
    /// What is counted for all processes together.
    pub globals: &'a Globals,
    /// The process's totals.
    pub totals: &'a Totals,
    /// Its slot.
    pub slot: u32,
    /// What counts now.
    pub window: Window,
    /// In a window a block stands for `1 << level`: others like it came where nothing was armed.
    pub level: u32,
    /// The event came at a point that is armed all the time beside windows.
    pub is_kept: bool,
}

/// Adds, wrapping: live counters go down by adding the two's complement.
#[inline(always)]
pub fn add(cell: &Cell, amount: u64) {
    cell.add(amount);
}

impl<T: Tables> Books<'_, T> {
    #[inline(always)]
    fn live(&self) -> Live<'_, T::Live> {
        Live { buckets: self.tables.live(), settings: self.settings, globals: self.globals }
    }

    /// The account of a stack hash, made when it is new. A full table gives the process's own account.
    #[inline(always)]
    pub fn account(&self, hash: u64, thread_id: u32, of: u8) -> AccountId {
        let buckets = self.settings.index_buckets.load() as u32;
        let at = Candidates::of(hash, self.settings.seed.load(), buckets);
        if let Some(place) = bucket::find(self.tables.index(), at, hash)
            && let Some(value) =
                bucket::Buckets::bucket(self.tables.index(), place.bucket).and_then(|b| b.value(place.entry))
        {
            return AccountId(value.load() as u32);
        }
        self.open_account(hash, at, thread_id, of)
    }

    #[inline(always)]
    fn open_account(&self, hash: u64, at: Candidates, thread_id: u32, of: u8) -> AccountId {
        // The place first: a number that has been taken cannot be given back here.
        let some_left =
            free::is_any(self.globals) || self.globals.accounts_used.load() < self.settings.accounts.load();
        if some_left && let Some(place) = bucket::insert(self.tables.index(), at, hash, u64::from(self.slot))
        {
            if let Some(number) = self.free_number()
                && let Some(account) = self.tables.account(number)
                && let Some(value) = bucket::Buckets::bucket(self.tables.index(), place.bucket)
                    .and_then(|b| b.value(place.entry))
            {
                account.owner.store(owner(thread_id, of, self.slot));
                account.link.store(hash);
                value.store(u64::from(number));
                return AccountId(number);
            }
            bucket::remove(self.tables.index(), at, place, hash);
        }
        add(&self.totals.stack_table_full, 1);
        self.own_account()
    }

    /// The number of an account that nobody has: one that was given back, or else one that was never used.
    #[inline(always)]
    fn free_number(&self) -> Option<u32> {
        if let Some(number) = free::take(self.tables, self.globals) {
            return Some(number);
        }
        let number = self.globals.accounts_used.fetch_add(1);
        (number < self.settings.accounts.load()).then_some(number as u32)
    }

    /// The process's own account, for what has no place elsewhere.
    #[inline(always)]
    pub fn own_account(&self) -> AccountId {
        if let Some(account) = self.tables.account(self.slot) {
            account.owner.store(owner(0, domain::PYMALLOC, self.slot));
        }
        AccountId(self.slot)
    }

    /// A block of `size` bytes at `address` now belongs to `account`. Whether the table has an entry more.
    #[inline(always)]
    pub fn allocated(&self, id: AccountId, thread: Option<&Thread>, address: u64, size: u64, of: u8) -> bool {
        let Some(account) = self.tables.account(id.0) else { return false };
        if self.is_kept {
            add(&self.totals.kept, 1);
            add(&account.temporary_count, 1);
            add(&account.temporary_bytes, size);
            return false;
        }
        if self.window.is_closed() {
            return false;
        }
        let level = if self.window.is_any() { self.level } else { 0 };
        add(&account.allocated_count, 1 << level);
        add(&account.allocated_bytes, size << level);
        // In a window frees are not seen: nothing is known to live.
        if self.window.is_any() {
            return false;
        }
        let Some(key) = Key::new(self.slot, address) else { return false };
        let (inserted, missed) = self.live().insert(key, size, id.0);
        let mut entries = 0_i32;
        if let Some(entry) = missed {
            entries -= 1;
            // The free of what was here before was not seen.
            add(
                if of == domain::PYMALLOC {
                    &self.totals.repeated_pops
                } else {
                    &self.totals.repeated_mallocs
                },
                1,
            );
            self.retire(key, entry);
        }
        match inserted {
            Inserted::Placed { entry } => {
                entries += 1;
                self.change(account, entry.size().wrapping_mul(entry.weight()), entry.weight());
            }
            Inserted::Thinned => add(&self.totals.thinned, 1),
            Inserted::Full => add(&self.totals.live_table_full, 1),
        }
        if let Some(thread) = thread {
            thread.latest.store(key.0);
        }
        entries > 0
    }

    /// Whether a block is in the live table.
    #[inline(always)]
    #[must_use]
    pub fn has(&self, address: u64) -> bool {
        Key::new(self.slot, address).is_some_and(|key| self.live().get(key).is_some())
    }

    /// Takes a block out of the live table without booking it: realloc decides later.
    #[inline(always)]
    pub fn take(&self, address: u64) -> Option<(Key, Entry)> {
        let key = Key::new(self.slot, address)?;
        Some((key, self.live().take(key)?))
    }

    /// Puts back what [`Books::take`] took; `false` where there is no place any more.
    #[inline(always)]
    pub fn put_back(&self, key: Key, entry: Entry) -> bool {
        let is_back = self.live().restore(key, entry);
        if !is_back {
            add(&self.totals.live_table_full, 1);
            self.retire(key, entry);
        }
        is_back
    }

    /// The block at `address` has gone back.
    #[inline(always)]
    pub fn freed(&self, address: u64) -> Freed {
        let Some((key, entry)) = self.take(address) else { return Freed::Unknown };
        self.end(key, entry);
        if entry.is_counted() { Freed::Known } else { Freed::Unknown }
    }

    /// Books the end of a block that was taken out: live values, and whether it was temporary.
    #[inline(always)]
    pub fn end(&self, key: Key, entry: Entry) {
        self.retire(key, entry);
        if !entry.is_counted() {
            return;
        }
        let Some(account) = self.tables.account(entry.account()) else { return };
        let allocator = account.owner.load() as u32;
        if let Some(thread) = self.tables.thread(allocator)
            && thread.latest.load() == key.0
        {
            add(&account.temporary_count, entry.weight());
            add(&account.temporary_bytes, entry.size().wrapping_mul(entry.weight()));
        }
    }

    /// A block has left the live table: its account follows and, for code, the generation of its address.
    #[inline(always)]
    pub fn retire(&self, key: Key, entry: Entry) {
        if entry.is_code()
            && let Some(generations) = self.tables.generations()
        {
            generations.end(key.address());
        }
        if !entry.is_counted() {
            return;
        }
        let Some(account) = self.tables.account(entry.account()) else { return };
        let weight = entry.weight();
        self.change(account, entry.size().wrapping_mul(weight).wrapping_neg(), weight.wrapping_neg());
    }

    #[inline(always)]
    fn change(&self, account: &Account, bytes: u64, count: u64) {
        let totals = self.totals;
        let now = totals.events.fetch_add(1) + 1;
        if account.changed.load() <= totals.peak_at.load() {
            account.peak_bytes.store(account.live_bytes.load());
            account.peak_count.store(account.live_count.load());
        }
        account.changed.store(now);
        add(&account.live_bytes, bytes);
        add(&account.live_count, count);
        let total = totals.live_bytes.fetch_add(bytes).wrapping_add(bytes);
        if bytes.cast_signed() > 0 && total > totals.peak_bytes.load() {
            totals.peak_bytes.store(total);
            totals.peak_at.store(now);
        }
    }
}

/// An account's values at its process's peak: bytes, blocks. The reader's half of the rule above.
#[must_use]
pub fn at_peak(account: &Account, peak_at: u64) -> (u64, u64) {
    if account.changed.load() <= peak_at {
        (account.live_bytes.load(), account.live_count.load())
    } else {
        (account.peak_bytes.load(), account.peak_count.load())
    }
}

/// Packs [`Account::owner`]; the top bit says that the account is in use, also for thread 0.
#[inline(always)]
#[must_use]
pub const fn owner(thread_id: u32, of: u8, slot: u32) -> u64 {
    thread_id as u64 | (of as u64 & 3) << 32 | ((slot & (PROCESSES - 1)) as u64) << 40 | 1 << 63
}
