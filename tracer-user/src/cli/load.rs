//! Profiles from files or standard input, for the verbs that take one.
//!
//! It must not know formats: the bytes go to `profile::pprof`.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, bail};

use crate::profile::{Profile, pprof};

/// Most bytes that are read; a profile that may be decompressed is far smaller.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Reads the profile at `path`; `-` is standard input.
pub fn profile(path: &Path) -> anyhow::Result<Profile> {
    let context = || format!("cannot read profile `{}`", path.display());
    let bytes = bytes(path).with_context(context)?;
    pprof::decode(&bytes).with_context(context)
}

fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut reader: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => {
            let file = File::open(path)
                .context("cannot open it (name a .pb.gz file that `alloctrace record` wrote)")?;
            if file.metadata()?.is_dir() {
                bail!("it is a folder: name a file in it");
            }
            Box::new(file)
        }
    };
    let mut bytes = Vec::new();
    reader.by_ref().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        bail!("more than {} MiB: record a shorter time or fewer processes", MAX_FILE_BYTES >> 20);
    }
    Ok(bytes)
}
