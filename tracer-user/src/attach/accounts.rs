//! What accounts have allocated and what of it lives, read from the kernel half's table while its programs change it.
//!
//! It must not know what is made of it.

use std::ops::Range;

use tracer_ebpf::tables::Account;

use super::kernel::table_error;
use super::mapped::Mapped;
use super::{AttachError, Kernel};

/// What an account says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocated {
    /// `tracer_ebpf::account::owner`; 0: nobody's.
    pub owner: u64,
    /// Blocks.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// Pools that it opened, where that is told.
    pub pools: u64,
    /// Blocks that came at points which are armed all the time, where there are windows; they are not in `count`.
    pub kept_count: u64,
    /// Bytes of those.
    pub kept_bytes: u64,
    /// Blocks of them that live, where frees are seen.
    pub live_count: u64,
    /// Bytes of those.
    pub live_bytes: u64,
}

impl Kernel {
    /// Shows what each of these accounts has so far. The range must begin with a page of the table.
    pub fn read_allocated(
        &self,
        range: Range<u32>,
        mut show: impl FnMut(u32, Allocated),
    ) -> Result<(), AttachError> {
        let places = range.start as usize..range.end as usize;
        let table =
            Mapped::<Account>::new(self.table("ACCOUNTS")?, places).map_err(table_error("ACCOUNTS"))?;
        for number in range {
            let Some(account) = table.get(number as usize) else { continue };
            let (count, bytes) = (account.allocated_count.load(), account.allocated_bytes.load());
            let (live_count, live_bytes) = (account.live_count.load(), account.live_bytes.load());
            let (owner, pools) = (account.owner.load(), account.sent().pools());
            let (kept_count, kept_bytes) = (account.temporary_count.load(), account.temporary_bytes.load());
            let kept = Allocated { kept_count, kept_bytes, ..Allocated::default() };
            show(number, Allocated { owner, count, bytes, pools, live_count, live_bytes, ..kept });
        }
        Ok(())
    }
}
