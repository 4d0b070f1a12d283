//! Which processes are followed, and where each is recorded: the kernel half's table of them.

use std::io;

use aya::maps::{HashMap, MapData, MapError};

use super::kernel::{missing, table_error};
use super::{AttachError, Kernel};

impl Kernel {
    /// Follows a process: its children, its execs and its end are told. `slot`: where it is recorded; 0: nowhere yet.
    pub fn follow(&mut self, pid: u32, slot: u16) -> Result<(), AttachError> {
        self.followed()?.insert(pid, u32::from(slot), 0).map_err(table_error("FOLLOWED"))
    }

    /// Says where a followed process is recorded; `false` if it is not followed: it has ended.
    pub fn move_followed(&mut self, pid: u32, slot: u16) -> Result<bool, AttachError> {
        /// `BPF_EXIST`, include/uapi/linux/bpf.h.
        const IF_THERE: u64 = 2;
        match self.followed()?.insert(pid, u32::from(slot), IF_THERE) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                Ok(false)
            }
            Err(error) => Err(table_error("FOLLOWED")(error)),
        }
    }

    /// Follows it no longer.
    pub fn unfollow(&mut self, pid: u32) -> Result<(), AttachError> {
        match self.followed()?.remove(&pid) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            // It has ended, and the kernel half has removed it.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(table_error("FOLLOWED")(error)),
        }
    }

    fn followed(&mut self) -> Result<HashMap<&mut MapData, u32, u32>, AttachError> {
        let map = self.maps.get_mut("FOLLOWED").ok_or_else(|| missing("FOLLOWED"))?;
        HashMap::try_from(map).map_err(table_error("FOLLOWED"))
    }
}
