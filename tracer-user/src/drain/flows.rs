//! What accounts have allocated since the last look: read between windows, thousands of accounts at a time.

use tracer_ebpf::abi::{PROCESSES, domain};

use crate::attach::{Allocated, AttachError, Globals, Kernel};

/// Accounts that are mapped at one time: 768 KiB of them, a multiple of a page whatever its size.
const STRETCH: u32 = 8192;

/// What one account has allocated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Its number.
    pub account: u32,
    /// Process slot.
    pub process: u16,
    /// Whether it is malloc's; else pymalloc's.
    pub is_malloc: bool,
    /// Bytes.
    pub bytes: u64,
    /// Blocks.
    pub count: u64,
    /// Pools that it opened.
    pub pools: u64,
    /// Blocks that came at points which are armed all the time, beside windows and in them; they are not in `count`.
    pub kept_count: u64,
    /// Bytes of those.
    pub kept_bytes: u64,
}

/// Remembers what there was.
#[derive(Debug, Default)]
pub struct FlowReader {
    /// By account.
    before: Vec<Before>,
}

/// What an account had.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    count: u64,
    bytes: u64,
    pools: u64,
    kept_count: u64,
    kept_bytes: u64,
}

impl FlowReader {
    /// What has come since this was last asked, of every account of which something has.
    pub fn take(&mut self, kernel: &Kernel) -> Result<Vec<Taken>, AttachError> {
        let [_, used, ..]: Globals = kernel.words("GLOBALS", 0)?;
        let used = u32::try_from(used).unwrap_or(u32::MAX).min(kernel.sizes().accounts).max(PROCESSES);
        self.before.resize(used as usize, Before::default());
        let mut taken = Vec::new();
        for start in (0..used).step_by(STRETCH as usize) {
            let range = start..used.min(start.saturating_add(STRETCH));
            kernel.read_allocated(range, |account, now| taken.extend(self.compare(account, now)))?;
        }
        Ok(taken)
    }

    /// An account was given back, and begins anew.
    pub fn forget(&mut self, account: u32) {
        if let Some(before) = self.before.get_mut(account as usize) {
            *before = Before::default();
        }
    }

    fn compare(&mut self, account: u32, now: Allocated) -> Option<Taken> {
        let before = self.before.get_mut(account as usize)?;
        let Allocated { owner, count, bytes, pools, kept_count, kept_bytes, .. } = now;
        let then = std::mem::replace(before, Before { count, bytes, pools, kept_count, kept_bytes });
        let (count, bytes) = (count.wrapping_sub(then.count), bytes.wrapping_sub(then.bytes));
        let pools = pools.wrapping_sub(then.pools);
        let kept_count = kept_count.wrapping_sub(then.kept_count);
        let kept_bytes = kept_bytes.wrapping_sub(then.kept_bytes);
        let process = (owner >> 40) as u16 & (PROCESSES - 1) as u16;
        let is_malloc = owner >> 32 & 3 == u64::from(domain::MALLOC);
        (count + pools + kept_count > 0 && owner != 0).then_some(Taken {
            account,
            process,
            is_malloc,
            bytes,
            count,
            pools,
            kept_count,
            kept_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_come_since_is_taken() {
        let mut reader = FlowReader { before: vec![Before::default(); 3] };
        let owner = tracer_ebpf::account::owner(7, domain::MALLOC, 5);
        let mut look = |account, count, bytes| {
            reader.compare(account, Allocated { owner, count, bytes, ..Allocated::default() })
        };
        let taken = |bytes, count| {
            Some(Taken { account: 2, process: 5, is_malloc: true, bytes, count, ..Taken::default() })
        };
        assert_eq!(look(2, 3, 300), taken(300, 3));
        assert_eq!(look(2, 3, 300), None);
        assert_eq!(look(2, 4, 420), taken(120, 1));
        assert_eq!(look(9, 4, 420), None, "outside of the table");
    }
}
