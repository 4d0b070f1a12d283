//! The `profile` and `output` stages and the verbs that read profiles, from outside.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows test functions, not the helpers of tests"
)]

mod damaged;
mod destination;
mod estimates;
mod fixture;
mod golden;
mod hostile;
mod order;
mod round_trip;
mod verbs;
