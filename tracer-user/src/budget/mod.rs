//! Budget mode: tracing in short windows that together cost no more than a share of the target's own CPU time, and what such windows say of the whole.
//!
//! Pure: values in, values out. It must not know the kernel, clocks, processes, the account, nor any output; the session
//! measures, arms and waits, and hands what it saw to these types. Why it is built like this: docs/decisions/0021-budget.md.
//! `survivors`, `leaks` and `classes` are for windows with a tail of frees, of which there are none yet: only tests call them.

#[cfg(test)]
mod chance;
pub mod classes;
pub mod costs;
pub mod flows;
pub mod governor;
pub mod interval;
pub mod leaks;
pub mod ledger;
pub mod pace;
pub mod points;
pub mod progress;
pub mod rotation;
pub mod strata;
pub mod survivors;
pub mod window;
