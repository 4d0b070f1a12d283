//! Resident pages against a plain model: a set of pages by process, and a kernel that takes ranges away and says so once for each region.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tracer_ebpf::abi::domain;
use tracer_ebpf::growth::{Call, Fault, HUGE_PAGES, PAGE, Pages, REGION, Regions, STEPS, Span, X86_64};
use tracer_ebpf::tables::Thread;

use crate::host::{Host, SLOTS, Sizes};

/// Where the model's memory lies: some regions, near and far.
const BASE: u64 = 0x7f00_0000_0000;
const STACKS: u32 = 5;

/// What there is, and what the kernel half makes of it.
struct Both {
    host: Host,
    regions: Box<Regions>,
    thread: Thread,
    /// By process and page: the stack that touched it.
    resident: BTreeMap<(u32, u64), u32>,
}

impl Both {
    fn new() -> Self {
        Self {
            host: Host::new(Sizes { live_buckets: 20_000, ..Sizes::default() }),
            regions: Box::default(),
            thread: Thread::default(),
            resident: BTreeMap::new(),
        }
    }

    fn pages(&self, slot: u32) -> Pages<'_, Host> {
        Pages { books: self.host.books(slot), regions: &self.regions }
    }

    fn touch(&mut self, slot: u32, page: u64, stack: u32) {
        if self.resident.insert((slot, page), stack).is_some() {
            // The kernel would tell nothing.
            self.resident.insert((slot, page), stack);
        }
        let id = self.host.account_of(slot, 1, domain::RESIDENT, stack);
        self.pages(slot).touched(id, page + 123);
    }

    /// As the kernel does it: region by region, and a word for each in which there was something.
    fn release(&mut self, slot: u32, call: Call, gone: Span) {
        let inside: Vec<u64> =
            self.resident.range((slot, gone.from)..(slot, gone.to)).map(|((_, page), _)| *page).collect();
        let mut regions: Vec<u64> = inside.iter().map(|page| page / REGION).collect();
        regions.dedup();
        for page in inside {
            self.resident.remove(&(slot, page));
        }
        for _ in regions {
            let span = call.released(X86_64);
            assert!(span.from < span.to, "{call:?} takes nothing away");
            Pages::<Host>::begin_release(&self.thread, span);
            let mut steps = 0;
            while self.pages(slot).release_step(&self.thread) {
                steps += 1;
                assert!(steps < STEPS, "{call:?} takes too many steps");
            }
        }
    }

    fn remap(&mut self, slot: u32, call: Call, to: u64) {
        let old = call.moved(X86_64).unwrap();
        for page in (old.from..old.to).step_by(PAGE as usize) {
            let place = page - old.from + to;
            if let Some(stack) = self.resident.remove(&(slot, page)) {
                self.resident.insert((slot, place), stack);
            }
            self.pages(slot).moved(page, place);
        }
    }

    fn check(&self) {
        for slot in 1..=SLOTS {
            let of_slot = || self.resident.iter().filter(move |((owner, _), _)| *owner == slot);
            let bytes = of_slot().count() as u64 * PAGE;
            assert_eq!(self.host.totals(slot).live_bytes.load(), bytes, "live bytes of {slot}");
            for stack in 0..STACKS {
                let count = of_slot().filter(|(_, of)| **of == stack).count() as u64;
                let id = self.host.account_of(slot, 1, domain::RESIDENT, stack);
                let account = &self.host.accounts()[id.0 as usize];
                assert_eq!(account.live_count.load(), count, "process {slot}, stack {stack}");
                assert_eq!(account.live_bytes.load(), count * PAGE);
            }
        }
        assert_eq!(self.host.live.used(), self.resident.len());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Touch { slot: u32, page: u64, pages: u64, stack: u32 },
    Unmap { slot: u32, page: u64, pages: u64 },
    DontNeed { slot: u32, page: u64, pages: u64 },
    Remap { slot: u32, page: u64, pages: u64, to: u64 },
    Shrink { slot: u32, page: u64, pages: u64, kept: u64 },
    Brk { slot: u32, page: u64 },
}

/// Pages that touch each other, and some that are gigabytes away.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![0..2_000_u64, 511..515_u64, (0..4_u64).prop_map(|far| far * 500_000 + 7)]
        .prop_map(|page| BASE + page * PAGE)
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![1..20_u64, 1..1500_u64, Just(2_000_000_u64)]
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 1..=2_u32;
    prop_oneof![
        4 => (slot(), page(), 1..700_u64, 0..STACKS)
            .prop_map(|(slot, page, pages, stack)| Step::Touch { slot, page, pages, stack }),
        2 => (slot(), page(), pages()).prop_map(|(slot, page, pages)| Step::Unmap { slot, page, pages }),
        1 => (slot(), page(), pages()).prop_map(|(slot, page, pages)| Step::DontNeed { slot, page, pages }),
        1 => (slot(), page(), 1..600_u64, 3000..4000_u64)
            .prop_map(|(slot, page, pages, to)| Step::Remap { slot, page, pages, to: BASE + to * PAGE }),
        1 => (slot(), page(), 1..1500_u64, 1..100_u64)
            .prop_map(|(slot, page, pages, kept)| Step::Shrink { slot, page, pages, kept }),
        1 => (slot(), page()).prop_map(|(slot, page)| Step::Brk { slot, page }),
    ]
}

const fn call(number: i64, first: u64, second: u64, third: u64, fourth: u64) -> Call {
    Call { number, arguments: [first, second, third, fourth] }
}

fn run(both: &mut Both, step: &Step) {
    let span = |page: u64, pages: u64| Span { from: page, to: page + pages * PAGE };
    match *step {
        Step::Touch { slot, page, pages, stack } => {
            for number in 0..pages {
                both.touch(slot, page + number * PAGE, stack);
            }
        }
        Step::Unmap { slot, page, pages } => {
            both.release(slot, call(11, page, pages * PAGE, 0, 0), span(page, pages));
        }
        Step::DontNeed { slot, page, pages } => {
            both.release(slot, call(28, page, pages * PAGE, 4, 0), span(page, pages));
        }
        Step::Remap { slot, page, pages, to } => {
            if page < to && page + pages * PAGE <= to {
                both.release(slot, call(11, to, pages * PAGE, 0, 0), span(to, pages));
                both.remap(slot, call(25, page, pages * PAGE, pages * PAGE + PAGE, 1), to);
            }
        }
        Step::Shrink { slot, page, pages, kept } => {
            if kept < pages {
                let gone = span(page + kept * PAGE, pages - kept);
                both.release(slot, call(25, page, pages * PAGE, kept * PAGE, 1), gone);
            }
        }
        Step::Brk { slot, page } => {
            // The model's heap ends below the next far page, or where nothing is.
            both.release(slot, call(12, page, 0, 0, 0), Span { from: page, to: page + (4 << 30) });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pages_come_and_go_as_the_kernel_says(steps in proptest::collection::vec(step(), 1..25)) {
        let mut both = Both::new();
        for step in &steps {
            run(&mut both, step);
            both.check();
        }
    }
}

#[test]
fn a_range_of_gigabytes_with_few_pages_is_passed_over() {
    let mut both = Both::new();
    for number in 0..2_000 {
        both.touch(1, BASE + number * 8 * REGION, 0);
    }
    let all = Span { from: BASE, to: BASE + (64 << 30) };
    both.release(1, call(11, all.from, all.to - all.from, 0, 0), all);
    both.check();
}

#[test]
fn equal_calls_one_after_the_other_take_all_away_each_time() {
    let mut both = Both::new();
    for round in 0..5 {
        for number in 0..3 * HUGE_PAGES + 7 {
            both.touch(1, BASE + (number + round) * PAGE, 1);
        }
        let all = Span { from: BASE, to: BASE + 5 * REGION };
        both.release(1, call(28, all.from, all.to - all.from, 4, 0), all);
        both.check();
    }
}

#[test]
fn what_calls_take_away() {
    let released = |call: Call| {
        let span = call.released(X86_64);
        (span.from, span.to)
    };
    // Whole pages, also where the caller counts bytes.
    assert_eq!(released(call(11, 0x1000, 5000, 0, 0)), (0x1000, 0x3000));
    // Only a fixed place has something that goes.
    assert_eq!(released(call(9, 0x1000, 4096, 3, 0x32)), (0x1000, 0x2000));
    assert_eq!(released(call(9, 0, 4096, 3, 0x22)), (0, 0));
    // FREE takes nothing away at once.
    assert_eq!(released(call(28, 0x1000, 4096, 8, 0)), (0, 0));
    // A new size that is larger takes nothing away.
    assert_eq!(released(call(25, 0x1000, 0x1000, 0x2000, 1)), (0, 0));
    assert_eq!(released(call(25, 0x10000, 0x3000, 0x1000, 1)), (0x11000, 0x13000));
    assert_eq!(released(call(12, 0x1001, 0, 0, 0)).0, 0x2000);
    // No call at all, another call, and lengths that no memory has.
    assert_eq!(released(call(-1, 0x1000, 4096, 4, 0)), (0, 0));
    assert_eq!(released(call(0, 3, 0x1000, 4096, 0)), (0, 0));
    assert_eq!(
        released(call(11, u64::MAX - 10, 4096, 0, 0)).1,
        released(call(11, u64::MAX - 10, 4096, 0, 0)).0
    );
}

#[test]
fn where_room_is() {
    let remap = call(25, BASE, 0x1000, REGION, 1);
    assert_eq!(remap.room(X86_64, BASE + 0x3000, REGION), Some(BASE + 0x3000));
    // The kernel has searched for more, to begin at a multiple of 2 MiB.
    assert_eq!(remap.room(X86_64, BASE + 0x3000, 2 * REGION), Some(BASE + REGION));
    assert_eq!(remap.room(X86_64, BASE, 2 * REGION), Some(BASE + REGION));
    // ENOMEM.
    assert_eq!(remap.room(X86_64, (-12_i64).cast_unsigned(), REGION), None);
    assert_eq!(call(25, BASE, 0x1000, REGION, 3).moved(X86_64), None, "the caller has chosen the place");
    assert!(call(9, 0, 4096, 3, 0x8022).populates(X86_64) && !call(9, 0, 4096, 3, 0x22).populates(X86_64));
}

#[test]
fn a_fault_is_of_what_runs_now() {
    let (own, in_call) = (call(-1, 0, 0, 0, 0), call(0, 3, 0, 0, 0));
    assert_eq!(Fault::new(0x1234, false).page(own), Some(0x1000));
    assert_eq!(Fault::new(0x1234, true).page(in_call), Some(0x1000));
    // One that brought no page of the process's own is followed by a call that fills memory without faults.
    assert_eq!(Fault::new(0x1234, false).page(in_call), None);
    assert_eq!(Fault::new(0x1234, true).page(own), None);
    assert_eq!(Fault(0).page(own), None);
}
