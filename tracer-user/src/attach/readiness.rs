//! A descriptor that the runtime waits for: the ring buffer's, or a process's.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Becomes readable when there is something to do.
#[derive(Debug)]
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Registers with the running runtime.
    ///
    /// # Errors
    /// When the kernel cannot watch it.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped, and it is only dropped with this value.
        let registered = unsafe { AsyncFd::register(descriptor) };
        registered.map(Self).map_err(|error| error.into_parts().1)
    }

    /// Waits until it is readable, once for each time that it becomes so.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
