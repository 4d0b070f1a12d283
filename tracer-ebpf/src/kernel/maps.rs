//! The maps, and the tables of the pure logic on top of them.
//!
//! Sizes given here are the defaults; userspace may change the entry counts of the large ones when it loads the object.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, ProgramArray, RingBuf},
};
use tracer_ebpf::abi::{Layout, PROCESSES, THREAD_BUCKETS};
use tracer_ebpf::bucket::{self, Bucket, Buckets, Candidates, ENTRIES, Place};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::growth::Regions;
use tracer_ebpf::tables::{Account, Generations, Globals, Heat, Settings, Tables, Thread, Totals};

/// include/uapi/linux/bpf.h.
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// Followed processes at one time, recorded or not: with those whose program is none of Python's.
const FOLLOWED_PROCESSES: u32 = 4096;

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static GLOBALS: Array<Globals> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// These four are mapped by userspace, which clears them of what belongs to processes that have ended.
#[map]
static LIVE: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static INDEX: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static CODES: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static ACCOUNTS: Array<Account> = Array::with_max_entries(PROCESSES, BPF_F_MMAPABLE);
#[map]
static LAYOUTS: Array<Layout> = Array::with_max_entries(PROCESSES, 0);
#[map]
static TOTALS: Array<Totals> = Array::with_max_entries(PROCESSES, 0);
#[map]
static GENERATIONS: Array<Generations> = Array::with_max_entries(1, 0);
/// Hits of points, by number: which are worth their price in a window.
#[map]
static HEAT: Array<Heat> = Array::with_max_entries(1, 0);
#[map]
static THREAD_INDEX: Array<Bucket> = Array::with_max_entries(THREAD_BUCKETS, 0);
#[map]
static THREADS: Array<Thread> = Array::with_max_entries(THREAD_BUCKETS * 8, 0);
/// Followed processes and their slots; 0: none yet.
#[map]
static FOLLOWED: HashMap<u32, u32> = HashMap::with_max_entries(FOLLOWED_PROCESSES, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Programs that others continue in; see [`DEFINE`].
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(5, 0);

/// The same for programs that page faults start: the kernel takes programs of one type into an array.
#[map]
static FAULT_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(7, 0);
#[map]
static REGIONS: Array<Regions> = Array::with_max_entries(1, 0);

/// Slot of the program that sends up code objects.
pub const DEFINE: u32 = 0;
/// Slot of the program that sends up stacks.
pub const SEND_STACK: u32 = 1;
/// Slot of the program that books what rarer handlers found.
pub const BOOK: u32 = 2;
/// Slot of the program that searches a free-threaded interpreter's threads.
pub const FIND_THREAD: u32 = 3;
/// A slot that stays empty: a tail call to it does nothing.
pub const NOWHERE: u32 = 4;
/// Slot among those on faults of the program that books a page; the first, second and fifth slots are as above.
pub const RESIDENT_BOOK: u32 = BOOK;
/// As [`FIND_THREAD`], among those on faults.
pub const RESIDENT_FIND: u32 = FIND_THREAD;
/// Slot among those on faults of the program that books a huge page.
pub const RESIDENT_HUGE: u32 = 5;
/// Slot among those on faults of the program that takes pages away.
pub const RESIDENT_RELEASE: u32 = 6;

/// A point's hits.
#[inline(always)]
pub fn heat(number: u32) -> Option<&'static Cell> {
    HEAT.get(0).map(|heat| heat.of(number))
}

/// Where records go.
pub fn events() -> &'static RingBuf {
    &EVENTS
}

/// Where tail calls go.
pub fn programs() -> &'static ProgramArray {
    &PROGRAMS
}

/// Where tail calls of programs on page faults go.
pub fn programs_on_faults() -> &'static ProgramArray {
    &FAULT_PROGRAMS
}

/// Which regions have resident pages.
#[inline(always)]
pub fn regions() -> Option<&'static Regions> {
    REGIONS.get(0)
}

/// The shared counters.
#[inline(always)]
pub fn globals() -> Option<&'static Globals> {
    GLOBALS.get(0)
}

/// What userspace has set.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// How to read a process.
#[inline(always)]
pub fn layout(slot: u32) -> Option<&'static Layout> {
    LAYOUTS.get(slot)
}

/// A process's totals.
#[inline(always)]
pub fn totals(slot: u32) -> Option<&'static Totals> {
    TOTALS.get(slot)
}

/// The slot of a followed process, 0 before it has one; `None` for a process that is not followed.
#[inline(always)]
pub fn followed(pid: u32) -> Option<u32> {
    // SAFETY: the value is a plain number, read at once; who changes it meanwhile replaces it as a whole.
    unsafe { FOLLOWED.get(pid) }.copied()
}

/// Follows a process.
#[inline(always)]
pub fn follow(pid: u32) -> Result<(), i32> {
    FOLLOWED.insert(pid, 0, 0)
}

/// Follows it no longer.
#[inline(always)]
pub fn unfollow(pid: u32) {
    let _ = FOLLOWED.remove(pid);
}

/// Nothing counts for this slot any more: its process's memory is not what it was.
#[inline(always)]
pub fn deactivate(slot: u32) {
    if slot != 0
        && let Some(layout) = LAYOUTS.get_ptr_mut(slot)
    {
        // SAFETY: the pointer is to an element of the map; its other readers read this word as a whole.
        unsafe { (&raw mut (*layout).active).write_volatile(0) };
    }
}

/// The live blocks.
pub struct LiveBuckets;
/// Stack hash to account.
pub struct IndexBuckets;
/// Code objects that have been sent up.
pub struct CodeBuckets;
/// Thread id to place.
pub struct ThreadBuckets;

impl Buckets for LiveBuckets {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        LIVE.get(number)
    }
}

impl Buckets for IndexBuckets {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        INDEX.get(number)
    }
}

impl Buckets for CodeBuckets {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        CODES.get(number)
    }
}

impl Buckets for ThreadBuckets {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        THREAD_INDEX.get(number)
    }
}

/// All of them.
pub struct KernelTables;

impl Tables for KernelTables {
    type Live = LiveBuckets;
    type Index = IndexBuckets;

    #[inline(always)]
    fn live(&self) -> &LiveBuckets {
        &LiveBuckets
    }

    #[inline(always)]
    fn index(&self) -> &IndexBuckets {
        &IndexBuckets
    }

    #[inline(always)]
    fn account(&self, number: u32) -> Option<&Account> {
        ACCOUNTS.get(number)
    }

    #[inline(always)]
    fn generations(&self) -> Option<&Generations> {
        GENERATIONS.get(0)
    }

    #[inline(always)]
    fn thread(&self, thread_id: u32) -> Option<&Thread> {
        thread_at(find_thread(thread_id)?)
    }
}

#[inline(always)]
fn thread_candidates(thread_id: u32) -> Candidates {
    Candidates::of(u64::from(thread_id), 0, THREAD_BUCKETS)
}

#[inline(always)]
fn find_thread(thread_id: u32) -> Option<Place> {
    bucket::find(&ThreadBuckets, thread_candidates(thread_id), u64::from(thread_id))
}

#[inline(always)]
fn thread_at(place: Place) -> Option<&'static Thread> {
    const { assert!(ENTRIES <= 8) };
    THREADS.get(place.bucket * 8 + place.entry)
}

/// The running thread's cells, claimed when it is new; `None` when the table is full.
#[inline(always)]
pub fn own_thread(thread_id: u32) -> Option<&'static Thread> {
    if let Some(place) = find_thread(thread_id) {
        return thread_at(place);
    }
    let key = u64::from(thread_id);
    thread_at(bucket::insert(&ThreadBuckets, thread_candidates(thread_id), key, 0)?)
}

/// Frees a thread's cells for the next owner.
pub fn forget_thread(thread_id: u32) {
    let Some(place) = find_thread(thread_id) else { return };
    if let Some(thread) = thread_at(place) {
        for cell in [
            &thread.latest,
            &thread.thread_state,
            &thread.undefined,
            &thread.call_depth,
            &thread.call_entry,
            &thread.fault_address,
        ] {
            cell.store(0);
        }
    }
    bucket::remove(&ThreadBuckets, thread_candidates(thread_id), place, u64::from(thread_id));
}
