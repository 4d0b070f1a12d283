//! What `/proc` says of one process, read cheaply and without the right to trace it where that is not needed.
//!
//! A process may end between any two reads: whatever is missing then is unknown, and never an error.

use std::fs;
use std::io;
use std::path::Path;

/// One file that a process has mapped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Image {
    /// Device as `maps` has it.
    pub device: String,
    /// Inode on it.
    pub inode: u64,
    /// The name that the process knows it by.
    pub name: String,
}

impl Image {
    /// The last part of its name.
    pub fn base_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }
}

/// Whether a process is in the same namespace as we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// It is.
    Same,
    /// It has another.
    Other,
    /// We may not look.
    Unknown,
}

/// A process with memory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number here.
    pub pid: u32,
    /// Its number in its own PID namespace, where that is another.
    pub inner_pid: Option<u32>,
    /// The kernel's name for it: the beginning of the program's.
    pub name: String,
    /// Its command line.
    pub command: String,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Its PID namespace against ours.
    pub pid_namespace: Namespace,
    /// Its mount namespace against ours.
    pub mount_namespace: Namespace,
    /// The beginning of a container's id, where the name of its control group has one.
    pub container: Option<String>,
}

/// Characters of a container's id that tools show.
const SHORT_ID: usize = 12;
/// Characters of a whole one: a SHA-256 (Docker, containerd, CRI-O, Podman).
const WHOLE_ID: usize = 64;

impl Seen {
    /// Looks at a process. `None`: it has ended, or has no memory of its own, as kernel threads and zombies.
    pub fn read(proc_root: &Path, pid: u32) -> Option<Self> {
        let folder = proc_root.join(pid.to_string());
        let status = fs::read(folder.join("status")).ok()?;
        let status = String::from_utf8_lossy(&status);
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let resident: u64 = field("VmRSS")?.split_whitespace().next()?.parse().ok()?;
        let innermost = field("NSpid").and_then(|pids| pids.split_whitespace().last()?.parse().ok());
        let name = field("Name").unwrap_or_default().trim().to_owned();
        Some(Self {
            pid,
            inner_pid: innermost.filter(|inner| *inner != pid),
            command: command_line(&folder, &name),
            name,
            resident_bytes: resident << 10,
            pid_namespace: namespace(proc_root, &folder, "pid"),
            mount_namespace: namespace(proc_root, &folder, "mnt"),
            container: fs::read_to_string(folder.join("cgroup")).ok().and_then(|text| container_id(&text)),
        })
    }

    /// The last part of the program's name in its command line, or else the kernel's name for it.
    pub fn program(&self) -> &str {
        let program = self.command.split(' ').next().unwrap_or_default();
        let base = program.rsplit('/').next().unwrap_or_default();
        if base.is_empty() || base.starts_with('[') { &self.name } else { base }
    }
}

/// The numbers of all processes, in order.
pub fn process_ids(proc_root: &Path) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(proc_root)?;
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The files that a process has mapped, each once, in the order of their first mapping.
pub fn images(proc_root: &Path, pid: u32) -> io::Result<Vec<Image>> {
    let text = fs::read(proc_root.join(pid.to_string()).join("maps"))?;
    Ok(parse_images(&String::from_utf8_lossy(&text)))
}

/// Reads the text of `maps`; lines that are none are left out.
fn parse_images(text: &str) -> Vec<Image> {
    let mut images: Vec<Image> = Vec::new();
    for line in text.lines() {
        // Address, permissions, offset, device, inode, name.
        let mut fields = line.splitn(6, ' ').skip(3);
        let (Some(device), Some(inode), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (Ok(inode), name) = (inode.parse::<u64>(), name.trim_start()) else { continue };
        let is_it = |image: &Image| image.inode == inode && image.device == device && image.name == name;
        // Mappings of one file follow each other, nearly always.
        let is_known = images.iter().rev().any(is_it);
        if inode != 0 && name.starts_with('/') && !is_known {
            images.push(Image { device: device.to_owned(), inode, name: name.to_owned() });
        }
    }
    images
}

fn command_line(folder: &Path, name: &str) -> String {
    let bytes = fs::read(folder.join("cmdline")).unwrap_or_default();
    let arguments: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let line = arguments.join(" ").trim_end().to_owned();
    if line.is_empty() { format!("[{name}]") } else { line }
}

fn namespace(proc_root: &Path, folder: &Path, kind: &str) -> Namespace {
    let read = |folder: &Path| fs::read_link(folder.join("ns").join(kind));
    match (read(&proc_root.join("self")), read(folder)) {
        (Ok(ours), Ok(theirs)) if ours == theirs => Namespace::Same,
        (Ok(_), Ok(_)) => Namespace::Other,
        _ => Namespace::Unknown,
    }
}

/// The last id in the text of `/proc/PID/cgroup`, such as `0::/system.slice/docker-ID.scope`.
fn container_id(cgroups: &str) -> Option<String> {
    let mut words = cgroups.split(|character: char| !character.is_ascii_hexdigit());
    words.rfind(|word| word.len() == WHOLE_ID).map(|id| id[..SHORT_ID].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_maps_each_once() {
        let found = parse_images(
            "55d0-55d1 r--p 00000000 fe:01 42                         /usr/bin/a b\n\
             55d1-55d2 r-xp 00001000 fe:01 42                         /usr/bin/a b\n\
             7f00-7f01 rw-p 00000000 00:00 0 \n\
             nonsense\n\
             7f02-7f03 r--p 00000000 00:2a 42                         /usr/lib/libpython3.13.so.1.0\n\
             7f04-7f05 rw-p 00000000 00:01 7                          /dev/zero (deleted)\n\
             7ffd-7ffe rw-p 00000000 00:00 0                          [stack]\n",
        );
        let names: Vec<(&str, &str, &str)> = found
            .iter()
            .map(|image| (image.device.as_str(), image.name.as_str(), image.base_name()))
            .collect();
        assert_eq!(
            names,
            [
                ("fe:01", "/usr/bin/a b", "a b"),
                ("00:2a", "/usr/lib/libpython3.13.so.1.0", "libpython3.13.so.1.0"),
                ("00:01", "/dev/zero (deleted)", "zero (deleted)"),
            ]
        );
    }

    #[test]
    fn containers_by_the_name_of_their_group() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(container_id(&format!("0::/docker/{id}\n")).as_deref(), Some("0123456789ab"));
        assert_eq!(
            container_id(&format!("0::/kubepods.slice/pod-1.slice/cri-containerd-{id}.scope\n")).as_deref(),
            Some("0123456789ab")
        );
        assert_eq!(container_id("0::/user.slice/user-1000.slice\n"), None);
        assert_eq!(container_id(""), None);
    }
}
