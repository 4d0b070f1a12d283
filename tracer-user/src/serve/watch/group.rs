//! What a control group says of its memory: in use, limits, kills, and how much its tasks wait. Version 2, and of version 1 what there is.
//!
//! The folder is found from outside: below our own view of the tree, or, where the process is in another namespace of control groups (a sidecar's neighbour), in its own. All of
//! the latter belongs to the process, which may be hostile: only plain files are read, never more than some KiB, and what is no number is not known. It must not know what
//! figures mean.

use std::{
    fs::{self, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::serve::cgroup::{Cgroup, Version};

/// More of a file is not read; `memory.stat` has some 3 KiB.
const MOST_BYTES: u64 = 64 << 10;
/// Groups above a group that are looked at.
const MOST_LEVELS: usize = 16;
/// Version 1 says "no limit" by a number near the largest: the largest multiple of a page, whatever size pages have.
const NO_LIMIT: u64 = 1 << 62;

/// How often things have happened since the group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Over `memory.high`, and slowed down.
    pub high: u64,
    /// At `memory.max`.
    pub max: u64,
    /// Out of memory.
    pub oom: u64,
    /// Processes killed for that.
    pub oom_kill: u64,
}

/// Share of the last ten seconds in which tasks waited for memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Percent in which some did.
    pub some_percent: f64,
    /// Percent in which all did.
    pub full_percent: f64,
}

/// A control group at a moment. Of a group and those above it, it is the one that is nearest to its limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// The folder of the process's own group, which names it.
    pub name: String,
    /// In use, in bytes, files of the page cache included.
    pub current_bytes: u64,
    /// Of these: files that have not been used of late, which the kernel drops first.
    pub inactive_file_bytes: u64,
    /// At this, processes are killed; `None`: no limit.
    pub max_bytes: Option<u64>,
    /// From this on, tasks are slowed down; `None`: no limit.
    pub high_bytes: Option<u64>,
    /// What has happened.
    pub events: Events,
    /// `None`: the kernel does not say.
    pub pressure: Option<Pressure>,
}

impl Group {
    /// What counts towards a limit: in use, without what the kernel drops first. A cache of files fills every group to its limit and is no danger.
    #[must_use]
    pub fn working_bytes(&self) -> u64 {
        self.current_bytes.saturating_sub(self.inactive_file_bytes)
    }

    /// The lower of both limits.
    #[must_use]
    pub fn limit_bytes(&self) -> Option<u64> {
        self.max_bytes.into_iter().chain(self.high_bytes).min()
    }

    /// Its part of that; 1.0 is all of it.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        let limit = self.limit_bytes().filter(|limit| *limit > 0)?;
        Some(self.working_bytes() as f64 / limit as f64)
    }
}

/// Reads groups below a root.
#[derive(Debug, Clone)]
pub struct GroupReader {
    root: PathBuf,
}

impl GroupReader {
    /// `root` is `/`, or what looks like it.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// That of a process; `None`: it has ended, or its group cannot be found from here.
    #[must_use]
    pub fn of(&self, pid: u32) -> Option<Group> {
        let process = pid.to_string();
        let cgroup = Cgroup::of(&self.root.join("proc"), &process)?;
        let mount = match cgroup.version() {
            Version::Two => "sys/fs/cgroup",
            Version::One => "sys/fs/cgroup/memory",
        };
        let ours = self.root.join(mount);
        let seen_by_us = cgroup.below_our_root().map(|path| (ours.join(path), ours));
        let theirs = self.root.join("proc").join(process).join("root").join(mount);
        let mut places = seen_by_us.into_iter().chain([(theirs.clone(), theirs)]);
        places.find_map(|(folder, top)| nearest(&folder, &top, cgroup.version()))
    }
}

/// Of a group and those above it, up to `top`, the one that is nearest to its limit; the group itself if there is none.
fn nearest(folder: &Path, top: &Path, version: Version) -> Option<Group> {
    let read = match version {
        Version::Two => second,
        Version::One => first,
    };
    if !folder.is_dir() {
        // It is in another view of the tree, and what is above its path here is somebody else's.
        return None;
    }
    let own = read(folder);
    let above = folder.ancestors().skip(1).take_while(|ancestor| ancestor.starts_with(top)).take(MOST_LEVELS);
    let all = own.into_iter().chain(above.filter_map(read));
    let rank = |group: &Group| group.share().unwrap_or(-1.0);
    // Of equals the innermost.
    let nearest = all.reduce(|one, other| if rank(&other) > rank(&one) { other } else { one })?;
    Some(Group { name: folder.display().to_string(), ..nearest })
}

/// Of version 2. The root of the tree has no such files.
fn second(folder: &Path) -> Option<Group> {
    let limit = |file: &str| number(&text(&folder.join(file))?);
    let events = text(&folder.join("memory.events")).unwrap_or_default();
    let stat = text(&folder.join("memory.stat")).unwrap_or_default();
    Some(Group {
        name: String::new(),
        current_bytes: number(&text(&folder.join("memory.current"))?)?,
        inactive_file_bytes: field(&stat, "inactive_file").unwrap_or(0),
        max_bytes: limit("memory.max"),
        high_bytes: limit("memory.high"),
        events: Events {
            high: field(&events, "high").unwrap_or(0),
            max: field(&events, "max").unwrap_or(0),
            oom: field(&events, "oom").unwrap_or(0),
            oom_kill: field(&events, "oom_kill").unwrap_or(0),
        },
        pressure: text(&folder.join("memory.pressure")).and_then(|text| pressure(&text)),
    })
}

/// Of version 1.
fn first(folder: &Path) -> Option<Group> {
    let value = |file: &str| number(&text(&folder.join(file))?);
    let stat = text(&folder.join("memory.stat")).unwrap_or_default();
    let control = text(&folder.join("memory.oom_control")).unwrap_or_default();
    Some(Group {
        name: String::new(),
        current_bytes: value("memory.usage_in_bytes")?,
        inactive_file_bytes: field(&stat, "total_inactive_file").unwrap_or(0),
        max_bytes: value("memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT),
        high_bytes: None,
        events: Events {
            max: value("memory.failcnt").unwrap_or(0),
            oom_kill: field(&control, "oom_kill").unwrap_or(0),
            ..Events::default()
        },
        pressure: None,
    })
}

/// A number alone; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a word at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `some avg10=0.12 avg60=… total=…` and the same for `full`.
fn pressure(text: &str) -> Option<Pressure> {
    let of = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
        value.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent))
    };
    Some(Pressure { some_percent: of("some")?, full_percent: of("full").unwrap_or(0.0) })
}

/// A plain file's text, or nothing. Pipes and devices are not waited for.
fn text(path: &Path) -> Option<String> {
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    if !file.metadata().as_ref().is_ok_and(fs::Metadata::is_file) {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tempfile::TempDir;

    use super::*;
    use crate::serve::fake_root::root as tree;

    const MIB: u64 = 1 << 20;

    fn of(root: &TempDir) -> Option<Group> {
        GroupReader::new(root.path()).of(7)
    }

    #[test]
    fn version_two_says_all() {
        let root = tree(&[
            ("proc/7/cgroup", "0::/shop.slice/web\n"),
            ("sys/fs/cgroup/shop.slice/web/memory.current", "104857600\n"),
            ("sys/fs/cgroup/shop.slice/web/memory.max", "134217728\n"),
            ("sys/fs/cgroup/shop.slice/web/memory.high", "max\n"),
            ("sys/fs/cgroup/shop.slice/web/memory.stat", "anon 1\ninactive_file 20971520\nactive_file 9\n"),
            (
                "sys/fs/cgroup/shop.slice/web/memory.events",
                "low 0\nhigh 1\nmax 22\noom 3\noom_kill 4\noom_group_kill 5\n",
            ),
            (
                "sys/fs/cgroup/shop.slice/web/memory.pressure",
                "some avg10=1.50 avg60=0.20 avg300=0.00 total=1\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=1\n",
            ),
        ]);
        let group = of(&root).unwrap();
        assert_eq!(group.name, root.path().join("sys/fs/cgroup/shop.slice/web").display().to_string());
        assert_eq!((group.working_bytes(), group.limit_bytes()), (80 * MIB, Some(128 * MIB)));
        assert_eq!(group.share(), Some(0.625));
        assert_eq!(group.events, Events { high: 1, max: 22, oom: 3, oom_kill: 4 });
        assert_eq!(group.pressure, Some(Pressure { some_percent: 1.5, full_percent: 0.25 }));
    }

    #[test]
    fn the_limit_of_a_pod_counts_where_it_is_nearer() {
        let root = tree(&[
            ("proc/7/cgroup", "0::/pod/web\n"),
            ("sys/fs/cgroup/pod/web/memory.current", "100\n"),
            ("sys/fs/cgroup/pod/web/memory.max", "1000\n"),
            ("sys/fs/cgroup/pod/memory.current", "450\n"),
            ("sys/fs/cgroup/pod/memory.max", "500\n"),
            // Above the root of what we see nothing counts.
            ("sys/fs/memory.current", "99\n"),
            ("sys/fs/memory.max", "99\n"),
        ]);
        let group = of(&root).unwrap();
        assert_eq!((group.current_bytes, group.max_bytes), (450, Some(500)));
        assert!(group.name.ends_with("/pod/web"), "it keeps the name of its own group");
    }

    #[test]
    fn version_one_says_what_it_can() {
        let root = tree(&[
            ("proc/7/cgroup", "4:memory:/docker/web\n0::/\n"),
            ("sys/fs/cgroup/memory/docker/web/memory.usage_in_bytes", "300\n"),
            ("sys/fs/cgroup/memory/docker/web/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/docker/web/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
            (
                "sys/fs/cgroup/memory/docker/web/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let group = of(&root).unwrap();
        assert_eq!((group.share(), group.events.oom_kill, group.pressure), (Some(0.2), 2, None));
    }

    #[test]
    fn a_neighbours_group_is_found_in_its_own_view() {
        let root = tree(&[
            ("proc/7/cgroup", "0::/../cri-containerd-x.scope\n"),
            ("proc/7/root/sys/fs/cgroup/memory.current", "5\n"),
            ("proc/7/root/sys/fs/cgroup/memory.max", "10\n"),
            ("sys/fs/cgroup/memory.current", "1\n"),
        ]);
        assert_eq!(of(&root).unwrap().share(), Some(0.5));
        assert_eq!(GroupReader::new(root.path()).of(8), None, "it has ended");
    }

    #[test]
    fn a_path_of_another_view_is_not_mistaken_for_ours() {
        // The host's path, while our own mount shows our own group as its root.
        let root = tree(&[
            ("proc/7/cgroup", "0::/kubepods/podx/web\n"),
            ("sys/fs/cgroup/memory.current", "1\n"),
            ("proc/7/root/sys/fs/cgroup/memory.current", "5\n"),
        ]);
        assert_eq!(of(&root).unwrap().current_bytes, 5);
    }

    #[test]
    fn a_group_without_a_limit_is_near_none() {
        let root = tree(&[
            ("proc/7/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.current", "5\n"),
            ("sys/fs/cgroup/a/memory.max", "max\n"),
        ]);
        assert_eq!(of(&root).unwrap().share(), None);
        let zero = Group { max_bytes: Some(0), current_bytes: 5, ..Group::default() };
        assert_eq!(zero.share(), None);
    }

    #[test]
    fn neither_pipes_nor_devices_are_waited_for() {
        let root = tree(&[("proc/7/cgroup", "0::/../x\n"), ("proc/7/root/sys/fs/cgroup/memory.max", "10\n")]);
        let folder = root.path().join("proc/7/root/sys/fs/cgroup");
        symlink("/dev/zero", folder.join("memory.current")).unwrap();
        assert_eq!(of(&root), None);
        fs::remove_file(folder.join("memory.current")).unwrap();
        let pipe = folder.join("memory.current");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(of(&root), None);
    }

    proptest! {
        #[test]
        fn no_file_is_too_odd(text in "[ -~\n]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let root = tree(&[("proc/7/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.current", "5\n")]);
            for name in ["memory.max", "memory.high", "memory.stat", "memory.events", "memory.pressure"] {
                fs::write(root.path().join("sys/fs/cgroup/a").join(name), [text.as_bytes(), &bytes].concat()).unwrap();
            }
            let group = of(&root).unwrap();
            prop_assert!(group.share().is_none_or(f64::is_finite));
            prop_assert!(group.pressure.is_none_or(|pressure| pressure.some_percent <= 100.0));
        }
    }
}
