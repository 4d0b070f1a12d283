//! The account against a plain model, at its bounds, and under several threads at once.
//!
//! One binary, because all of it needs the same host tables.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy knows test functions, not the helpers of tests"
)]

mod capacity;
mod edges;
mod ended;
mod growth;
mod histories;
mod host;
mod model;
mod thinning;
mod threads;
