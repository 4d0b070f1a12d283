//! Stage 4, the userspace end: what the kernel half hands over, as values.
//!
//! Records of the ring buffer come when something is new; counters are read when somebody asks. Only this stage and `attach`
//! know aya. It must not know names, frames or outputs.

mod account;
mod blocks;
mod flows;
mod records;
mod thinning;

pub use account::{AccountRow, Totals, account_row, read_accounts, read_totals};
pub use blocks::BlockSeen;
pub use flows::{FlowReader, Taken};
pub use records::{Event, PoolOpening, ProcessEvent, decode};
pub use thinning::{live_bytes_error, variance_of_block};
