//! The order of rows that are equally big: always the same, and one that a sort can rely on.

use alloctrace::output::aggregate::{By, Key, aggregate};
use alloctrace::profile::{FrameId, Metric, Unit};

use crate::fixture::Builder;

/// Stacks that are outer parts of one another, with ids in another order than names: sorting by names here and by ids there
/// contradicted itself, which made the sort of the standard library panic.
#[test]
fn stacks_of_equal_size_have_one_order() {
    let mut builder = Builder::new();
    let process = builder.process(1, "python");
    let inner: Vec<_> = (0..60).rev().map(|n| builder.python(&format!("inner_{n:02}"), "a.py", 1)).collect();
    let outer: Vec<_> = (0..3).map(|n| builder.python(&format!("outer_{n}"), "a.py", 1)).collect();
    for outer in &outer {
        builder.sample(process, 1, &[*outer], 100, 1);
        for inner in &inner {
            builder.sample(process, 1, &[*outer, *inner], 100, 1);
        }
    }
    let profile = builder.build();
    let report = aggregate(&profile, By::Stack, Metric::Live, Unit::Bytes).unwrap();
    let names: Vec<Vec<&str>> = report
        .rows
        .iter()
        .map(|row| {
            let Key::Stack(stack) = row.key else { panic!("not a stack") };
            let name = |id: FrameId| &*profile.frames[id.0 as usize].function;
            stack.to_vec().into_iter().rev().map(name).collect()
        })
        .collect();
    assert_eq!(names.len(), 183);
    assert!(names.is_sorted(), "{names:?}");
}
