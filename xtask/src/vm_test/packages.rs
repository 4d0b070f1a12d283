//! What the machines are made of: packages of Debian, brought into a folder of ours and unpacked there.
//!
//! Names of kernels change weekly and old ones vanish from mirrors, so they are never written down: the packages `linux-image-cloud-*` of each suite name
//! the present one. From 7.2 on the image is in `linux-binary-*`.

use super::machine::{Architecture, Guest};
use crate::command::Machine;
use crate::setup::debian::{PrivateApt, Sources, unpack_archive};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Series of kernels, and the suite that has it as its own.
pub const KERNELS: [(&str, &str); 3] = [("6.1", "bookworm"), ("6.12", "trixie"), ("7.2", "sid")];
/// The suite whose qemu is new enough: version 7 crashes now and then while a guest starts.
const QEMU_SUITE: &str = "trixie";
/// A root with the newest C library, for all interpreters.
const ROOT: [&str; 7] = [
    "libc6",
    "libgcc-s1",
    "busybox-static",
    "python3.14-minimal",
    "python3.15-minimal",
    "libpython3.14-stdlib",
    "libpython3.15-stdlib",
];
/// An older interpreter on top, which finds its libraries there.
const OLDER: [&str; 3] = ["python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"];

/// The folder of packages and what was made of them.
pub struct Store {
    folder: PathBuf,
    /// Root folder of an unpacked qemu.
    pub qemu: PathBuf,
}

impl Store {
    /// Bring what guests of these architectures need.
    pub fn open(sources: &Sources, folder: &Path, architectures: &[Architecture]) -> Result<Self> {
        let store = Self { folder: folder.to_path_buf(), qemu: folder.join("qemu") };
        store.bring_qemu(sources)?;
        for architecture in architectures {
            store.bring_guests(sources, *architecture)?;
        }
        Ok(store)
    }

    /// The host is x86_64; qemu's packages for it emulate both architectures.
    fn bring_qemu(&self, sources: &Sources) -> Result<()> {
        let apt = PrivateApt::new(sources, QEMU_SUITE, &self.folder.join("host"))?;
        apt.update_if_old(&Machine)?;
        let names = apt.with_dependencies(&Machine, QEMU_SUITE, &["qemu-system-x86", "qemu-system-arm"])?;
        let files = apt.download(&Machine, QEMU_SUITE, &names, &self.folder.join("qemu-packages"))?;
        unpack(&files, &self.qemu)
    }

    fn bring_guests(&self, sources: &Sources, architecture: Architecture) -> Result<()> {
        let at = self.of(architecture);
        let packages = at.join("packages");
        let suites = KERNELS.map(|(_, suite)| suite);
        let apt = PrivateApt::with(sources, &suites, Some(architecture.debian()), &at)?;
        apt.update_if_old(&Machine)?;
        let names = apt.with_dependencies(&Machine, "sid", &ROOT)?;
        let mut files = apt.download(&Machine, "sid", &names, &packages)?;
        files.extend(apt.download(&Machine, "bookworm", &OLDER, &packages)?);
        unpack(&files, &self.root(architecture))?;
        for (kernel, suite) in KERNELS {
            let name = kernel_package(&apt, architecture, suite)?;
            let files = apt.download(&Machine, suite, &[name], &packages)?;
            unpack(&files, &at.join(kernel))?;
        }
        Ok(())
    }

    /// Folder of an architecture.
    pub fn of(&self, architecture: Architecture) -> PathBuf {
        self.folder.join(architecture.name())
    }

    /// The unpacked root of an architecture's guests.
    pub fn root(&self, architecture: Architecture) -> PathBuf {
        self.of(architecture).join("root")
    }

    /// The kernel image of a guest.
    pub fn kernel(&self, guest: &Guest) -> Result<PathBuf> {
        let unpacked = self.of(guest.architecture).join(guest.kernel);
        let found = find(&unpacked.join("boot")).or_else(|| {
            let mut versions = fs::read_dir(unpacked.join("usr/lib/modules")).ok()?.filter_map(Result::ok);
            versions.find_map(|version| find(&version.path()))
        });
        found.with_context(|| format!("no kernel image in `{}`", unpacked.display()))
    }
}

/// The package that holds the image of the suite's present kernel.
fn kernel_package(apt: &PrivateApt, architecture: Architecture, suite: &str) -> Result<String> {
    let meta = format!("linux-image-cloud-{}", architecture.debian());
    let names = apt.with_dependencies(&Machine, suite, &[&meta])?;
    choose_kernel(&names).with_context(|| format!("`{meta}` of {suite} names no kernel: {names:?}"))
}

fn choose_kernel(names: &[String]) -> Option<String> {
    let is_image = |name: &&String| {
        let version = name.strip_prefix("linux-binary-").or_else(|| name.strip_prefix("linux-image-"));
        version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    };
    // `linux-binary-` comes first in the alphabet; where there is one, the other is empty.
    names.iter().filter(is_image).min().cloned()
}

fn find(folder: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
}

/// Unpack packages into `to`, unless that has been made of the same ones. The list is written last: a folder without it is not whole.
fn unpack(files: &[PathBuf], to: &Path) -> Result<()> {
    let names: Vec<_> = files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    let names = names.join("\n");
    // Appended: `6.1` and `6.12` have the same name before the dot.
    let list = PathBuf::from(format!("{}.list", to.display()));
    if to.exists() && fs::read_to_string(&list).is_ok_and(|present| present == names) {
        return Ok(());
    }
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("failed to remove `{}`", to.display()))?;
    }
    for file in files {
        unpack_archive(&Machine, file, to, "./")?;
    }
    fs::write(&list, names).with_context(|| format!("failed to write `{}`", list.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_among_what_a_kernel_depends_on() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let older =
            names(&["kmod", "linux-base", "linux-image-6.1.0-50-cloud-amd64", "linux-image-cloud-amd64"]);
        assert_eq!(choose_kernel(&older).as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        let newer = names(&[
            "linux-base-7.2.13+deb14-cloud-arm64",
            "linux-binary-7.2.13+deb14-cloud-arm64",
            "linux-image-7.2.13+deb14-cloud-arm64",
            "linux-image-cloud-arm64",
        ]);
        assert_eq!(choose_kernel(&newer).as_deref(), Some("linux-binary-7.2.13+deb14-cloud-arm64"));
        assert_eq!(choose_kernel(&names(&["linux-image-cloud-amd64"])), None);
    }
}
