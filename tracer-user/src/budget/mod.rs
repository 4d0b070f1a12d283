//! Budget mode: tracing in short windows that together cost no more than a share of the target's own CPU time, and what such windows say of the whole.
//!
//! Pure: values in, values out. It must not know the kernel, clocks, processes, the account, nor any output; the session
//! measures, arms and waits, and hands what it saw to these types. Why it is built like this: docs/decisions/0021-budget.md.
//! `waiting`, `survivors`, `retained`, `leaks` and `classes` are what becomes of the blocks that windows saw: docs/decisions/0028-survivors.md.

#[cfg(test)]
mod chance;
pub mod classes;
pub mod costs;
pub mod flows;
pub mod governor;
pub mod interval;
pub mod leaks;
pub mod ledger;
pub mod look_pace;
pub mod pace;
pub mod points;
pub mod progress;
pub mod retained;
pub mod rotation;
pub mod strata;
pub mod survivors;
mod units;
pub mod waiting;
pub mod window;
