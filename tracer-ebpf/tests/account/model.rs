//! The account as one would write it without caring for speed: lists of blocks, every sum made anew.

use std::collections::BTreeMap;

use tracer_ebpf::live::Entry;

/// What an account belongs to. The stack of a process's own account is `None`, as are its thread and domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub slot: u32,
    pub thread: u32,
    pub of: u8,
    pub stack: Option<u32>,
}

/// Bytes and blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    pub count: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.count += 1;
    }
}

/// All values of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Values {
    pub allocated: Amount,
    pub live: Amount,
    pub peak: Amount,
    pub temporary: Amount,
}

/// A live block.
#[derive(Debug, Clone, Copy)]
struct Block {
    holder: Holder,
    size: u64,
}

/// What a process's live blocks were when they were highest.
#[derive(Debug, Clone, Default)]
pub struct Peak {
    pub bytes: u64,
    accounts: BTreeMap<Holder, Amount>,
}

/// The whole account.
#[derive(Debug, Default)]
pub struct Model {
    blocks: BTreeMap<(u32, u64), Block>,
    /// Old blocks of reallocs that run, by thread: out of reach, but not gone.
    in_flight: BTreeMap<u32, (u64, Block)>,
    allocated: BTreeMap<Holder, Amount>,
    temporary: BTreeMap<Holder, Amount>,
    latest: BTreeMap<u32, u64>,
    peaks: BTreeMap<u32, Peak>,
    /// Allocations at live addresses, by process and domain.
    pub repeated: BTreeMap<(u32, u8), u64>,
}

impl Model {
    pub fn allocate(&mut self, holder: Holder, thread: u32, of: u8, address: u64, size: u64) {
        self.allocated.entry(holder).or_default().add(size);
        if self.blocks.remove(&(holder.slot, address)).is_some() {
            *self.repeated.entry((holder.slot, of)).or_default() += 1;
        }
        // What the live table can say of a size.
        let size = Entry::new(size, 0, 0).size();
        self.blocks.insert((holder.slot, address), Block { holder, size });
        self.latest.insert(thread, address);
        self.note_peak(holder.slot);
    }

    /// Whether the block was known.
    pub fn free(&mut self, slot: u32, address: u64) -> bool {
        let block = self.blocks.remove(&(slot, address));
        if let Some(block) = block {
            self.note_temporary(address, block);
        }
        block.is_some()
    }

    fn note_temporary(&mut self, address: u64, block: Block) {
        // The threads of a process's own account are not known.
        if block.holder.stack.is_some() && self.latest.get(&block.holder.thread) == Some(&address) {
            self.temporary.entry(block.holder).or_default().add(block.size);
        }
    }

    /// The entry of a realloc: the block leaves the table.
    pub fn take(&mut self, thread: u32, slot: u32, address: u64) -> bool {
        let block = self.blocks.remove(&(slot, address));
        if let Some(block) = block {
            self.in_flight.insert(thread, (address, block));
        }
        block.is_some()
    }

    /// Whether somebody else has got the address of the block that `thread` has in flight.
    pub fn is_overtaken(&self, thread: u32) -> bool {
        self.in_flight
            .get(&thread)
            .is_some_and(|(address, block)| self.blocks.contains_key(&(block.holder.slot, *address)))
    }

    pub fn put_back(&mut self, thread: u32) {
        let (address, block) = self.in_flight.remove(&thread).unwrap();
        self.blocks.insert((block.holder.slot, address), block);
    }

    pub fn end(&mut self, thread: u32) {
        let (address, block) = self.in_flight.remove(&thread).unwrap();
        self.note_temporary(address, block);
    }

    fn live(&self) -> BTreeMap<Holder, Amount> {
        let mut live = BTreeMap::<Holder, Amount>::new();
        for block in self.blocks.values().chain(self.in_flight.values().map(|(_, block)| block)) {
            live.entry(block.holder).or_default().add(block.size);
        }
        live
    }

    pub fn live_bytes(&self, slot: u32) -> u64 {
        self.live().iter().filter(|(holder, _)| holder.slot == slot).map(|(_, amount)| amount.bytes).sum()
    }

    fn note_peak(&mut self, slot: u32) {
        let bytes = self.live_bytes(slot);
        if bytes > self.peak(slot).bytes {
            self.peaks.insert(slot, Peak { bytes, accounts: self.live() });
        }
    }

    pub fn peak(&self, slot: u32) -> Peak {
        self.peaks.get(&slot).cloned().unwrap_or_default()
    }

    /// A process has ended: nothing is known of it any more.
    pub fn forget(&mut self, slot: u32, threads: impl Iterator<Item = u32>) {
        self.blocks.retain(|(of, _), _| *of != slot);
        self.in_flight.retain(|_, (_, block)| block.holder.slot != slot);
        self.allocated.retain(|holder, _| holder.slot != slot);
        self.temporary.retain(|holder, _| holder.slot != slot);
        self.peaks.remove(&slot);
        self.repeated.retain(|(of, _), _| *of != slot);
        let gone: Vec<u32> = threads.collect();
        self.latest.retain(|thread, _| !gone.contains(thread));
    }

    /// Every account that has ever allocated.
    pub fn accounts(&self) -> BTreeMap<Holder, Values> {
        let live = self.live();
        let values = |holder: &Holder, allocated: &Amount| Values {
            allocated: *allocated,
            live: live.get(holder).copied().unwrap_or_default(),
            peak: self.peak(holder.slot).accounts.get(holder).copied().unwrap_or_default(),
            temporary: self.temporary.get(holder).copied().unwrap_or_default(),
        };
        self.allocated.iter().map(|(holder, allocated)| (*holder, values(holder, allocated))).collect()
    }
}
