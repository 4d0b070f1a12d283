//! Where the checkout lies, and the folders of it that more than one verb uses.

use std::path::{Path, PathBuf};

/// Folder of the checked-in eBPF objects, from the root of the checkout.
pub const PREBUILT: &str = "tracer-ebpf/prebuilt";

/// Root of the checkout. Asked from cargo at run time, because a binary that was built for one checkout may run for a copy of it.
pub fn root() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest = PathBuf::from(manifest);
    manifest.parent().map_or(manifest.clone(), Path::to_path_buf)
}

/// Folder for what tasks bring or build and `cargo clean` may take away.
pub fn scratch() -> PathBuf {
    root().join("target/xtask")
}
