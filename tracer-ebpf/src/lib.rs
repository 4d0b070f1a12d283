//! What both halves of alloctrace share, and the pure logic of the kernel half.
//!
//! Everything here is compiled twice: into the eBPF object (`main.rs`), and for the host, where tests run it without root.
//! It must not know helpers, maps or system calls: memory and tables come in through the traits of [`memory`] and [`tables`].
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod account;
pub mod bucket;
pub mod calls;
pub mod cell;
pub mod free;
pub mod growth;
pub mod hash;
pub mod live;
pub mod memory;
pub mod tables;
pub mod threads;
pub mod walk;
