//! Stage 5: from raw frames and raw code definitions to names and lines.
//!
//! Pure: what the kernel half sent comes in, interned [`crate::profile::Frame`]s go out. It must not know the kernel, the
//! wire format or any output. Everything that comes in was read from a target and is hostile.
pub mod code;
pub mod frames;
pub mod lines;

pub use code::{CodeDefinition, RawString};
pub use frames::{Limits, ResolveCounts, Resolver};
pub use tracer_ebpf::abi::RawFrame;
