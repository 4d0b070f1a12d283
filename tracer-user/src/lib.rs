//! alloctrace: a memory-allocation tracer for CPython that watches from the kernel.
//!
//! The modules are the stages of docs/ARCHITECTURE.md, in the order in which data passes them.
pub mod attach;
pub mod budget;
pub mod census;
pub mod cli;
pub mod discover;
pub mod drain;
pub mod identity;
pub mod output;
pub mod plan;
pub mod profile;
pub mod resolve;
pub mod serve;
pub mod session;
pub mod survey;
