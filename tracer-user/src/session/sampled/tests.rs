//! Blocks of windows and what looks find of them, without a process.

use std::time::{Duration, Instant};

use super::eye::Mark;
use super::{FoundAt, Sampled, SampledStack, Scales, place};
use crate::budget::waiting::Seen;
use crate::drain::BlockSeen;
use crate::session::processes::Processes;

const SCALES: Scales = Scales { pymalloc: 100.0, malloc: 10.0, seconds: 50.0 };

fn block(account: u32, address: u64, is_malloc: bool) -> BlockSeen {
    BlockSeen {
        process: 3,
        account,
        address,
        bytes: if is_malloc { 1000 } else { 64 },
        is_malloc,
        level: 1,
        window: 0,
    }
}

/// Ten windows, each with a block of pymalloc's account 7 and two of malloc's account 9; all outlive their looks.
fn sampled() -> Sampled {
    let mut sampled = Sampled::new(1);
    for number in 1..=10_u32 {
        let at = u64::from(number) << 20;
        let blocks = vec![
            block(5, at, false),
            block(7, at, false),
            block(9, at + 64, true),
            block(9, at + 4096, true),
        ];
        sampled.window(number, blocks, 0, Instant::now());
    }
    let after = sampled.began.elapsed() + Duration::from_secs(2);
    let found: FoundAt =
        sampled.waiting.due(after).map(|(place, _)| (place, Seen::There(Mark::Chunk(1)))).collect();
    sampled.settle(after, &found);
    sampled
}

fn stack(sampled: &Sampled, account: u32) -> Option<SampledStack> {
    sampled.results(3, SCALES).into_iter().find(|stack| stack.account == account)
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6 * expected.max(1.0), "{found} is not {expected}");
}

#[test]
fn each_allocator_has_its_scale() {
    let sampled = sampled();
    let (small, large) = (stack(&sampled, 7).unwrap(), stack(&sampled, 9).unwrap());
    // Ten blocks of weight two, a hundred times.
    close(small.live_bytes.value(), 10.0 * 2.0 * 64.0 * 100.0);
    close(small.live_count.value(), 10.0 * 2.0 * 100.0);
    close(large.live_bytes.value(), 20.0 * 2.0 * 1000.0 * 10.0);
    close(large.retained_bytes_per_second.value(), 20.0 * 2.0 * 1000.0 * 10.0 / 50.0);
    assert!(small.live_bytes.interval().is_some() && small.age_seconds < 60.0);
    // Its address was told of again in the same window.
    assert!(stack(&sampled, 5).is_none());
    assert!(sampled.results(4, SCALES).is_empty() && sampled.unknown(3).is_none());
}

#[test]
fn what_is_gone_is_not_live_and_still_was_retained() {
    let mut sampled = sampled();
    let gone: FoundAt = (1..=5_u64).map(|number| (place(3, number << 20), Seen::Free)).collect();
    sampled.check(sampled.began.elapsed(), &gone);
    let another: FoundAt = [(place(3, (6 << 20) + 64), Seen::There(Mark::Chunk(2)))].into_iter().collect();
    sampled.check(sampled.began.elapsed(), &another);
    let (small, large) = (stack(&sampled, 7).unwrap(), stack(&sampled, 9).unwrap());
    close(small.live_count.value(), 5.0 * 2.0 * 100.0);
    close(small.retained_bytes_per_second.value(), 10.0 * 2.0 * 64.0 * 100.0 / 50.0);
    close(large.live_count.value(), 19.0 * 2.0 * 10.0);
}

#[test]
fn a_window_whose_looks_are_not_over_is_left_out_of_what_is_retained() {
    let mut sampled = sampled();
    let before = stack(&sampled, 7).unwrap().retained_bytes_per_second.value();
    sampled.window(11, vec![block(7, 1 << 30, false)], 0, Instant::now());
    close(stack(&sampled, 7).unwrap().retained_bytes_per_second.value(), before * 11.0 / 10.0);
}

#[test]
fn looks_are_due_at_once_and_without_a_process_say_nothing() {
    let mut sampled = Sampled::new(1);
    assert!(sampled.next_look().is_none());
    sampled.window(1, vec![block(7, 1 << 20, false)], 0, Instant::now());
    assert!(sampled.next_look().is_some_and(|next| next <= Instant::now()));
    sampled.look_if_due(&Processes::default());
    assert!(sampled.next_look().is_some_and(|next| next > Instant::now()));
    sampled.last_look(&Processes::default());
    assert!(sampled.results(3, SCALES).is_empty());
}

#[test]
fn who_is_gone_is_forgotten() {
    let mut sampled = sampled();
    sampled.forget_account(7);
    assert!(stack(&sampled, 7).is_none() && stack(&sampled, 9).is_some());
    sampled.process_ended(3);
    close(stack(&sampled, 9).unwrap().live_bytes.value(), 0.0);
    assert!(sampled.next_look().is_none());
}
