//! What only the kernel half has: maps, helpers, registers, and the programs around the pure logic.
//!
//! Every program that userspace probes can start contains a tail call. The kernel then gives it no private stack, which a
//! second run that preempts it on the same CPU would overwrite (docs/decisions/0002-no-per-cpu-scratch.md).

mod book;
mod call;
mod define;
mod growth;
mod maps;
mod memory;
mod mimalloc;
mod process;
mod pymalloc;
mod registers;
mod stack;
mod task;
