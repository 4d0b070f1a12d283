//! The census: what a process's memory holds, read from outside, with no probe.
//!
//! Pure readers over [`crate::discover::memory`]. It must not know probes, the account or outputs.
pub mod allocators;
pub mod arenas;
pub mod blocks;
pub mod figures;
mod header;
pub mod malloc;
pub mod mimalloc;
pub mod pools;

#[cfg(test)]
mod tests;
