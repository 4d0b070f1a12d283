//! Where a process is in the tree of control groups: its container, its pod, and whether that is ours.
//!
//! Runtimes name a container's group after its id (64 hexadecimal digits) in ways of their own: `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`,
//! or the id alone. In a namespace of control groups paths are told from our own group, so what is beside it begins with `..`. It must not know labels.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Digits of a container's id.
const ID_DIGITS: usize = 64;
/// Characters of a pod's id, a UUID: five groups of digits with something between them.
const UUID_LENGTH: usize = 36;
/// More of such a file is not looked at.
const MOST_BYTES: usize = 64 << 10;

/// Which of the kernel's two trees of control groups accounts for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A tree for each controller.
    One,
    /// One tree.
    Two,
}

/// The path of a control group, by its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    parts: Vec<String>,
}

impl Cgroup {
    /// That of a process (`self`, or its number); `None` if it cannot be read.
    pub fn of(proc_root: &Path, process: &str) -> Option<Self> {
        let text = fs::read(proc_root.join(process).join("cgroup")).ok()?;
        Self::parse(&String::from_utf8_lossy(&text[..text.len().min(MOST_BYTES)]))
    }

    /// Reads the text of `/proc/PID/cgroup`: the group of the memory controller of version 1, else that of version 2, else the first.
    pub fn parse(text: &str) -> Option<Self> {
        let lines: Vec<(&str, &str)> = text.lines().filter_map(fields).collect();
        let memory =
            lines.iter().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
        let v2 = lines.iter().find(|(controllers, _)| controllers.is_empty());
        let (controllers, path) = memory.or(v2).or(lines.first())?;
        let version = if controllers.is_empty() { Version::Two } else { Version::One };
        let parts = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Some(Self { version, parts })
    }

    /// In which tree it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its path from the root of what we see, unless it is outside of that.
    pub fn below_our_root(&self) -> Option<PathBuf> {
        let is_inside = self.parts.iter().all(|part| part != "..");
        is_inside.then(|| self.parts.iter().collect())
    }

    /// Its path, as `/proc` has it.
    pub fn path(&self) -> String {
        format!("/{}", self.parts.join("/"))
    }

    /// The id of its container; the innermost where one is within another.
    pub fn container(&self) -> Option<String> {
        let is_id = |word: &&str| word.len() == ID_DIGITS;
        let id = |part: &String| {
            part.split(|character: char| !character.is_ascii_hexdigit()).rfind(is_id).map(str::to_owned)
        };
        self.parts.iter().rev().find_map(id)
    }

    /// The id of its pod in Kubernetes, where the path names one.
    pub fn pod(&self) -> Option<String> {
        self.parts.iter().rev().find_map(|part| {
            // `pod…` alone, or `kubepods-burstable-pod….slice` with underscores for dashes.
            let (_, rest) = part.rsplit_once("pod")?;
            let uuid = rest.get(..UUID_LENGTH)?.replace('_', "-");
            let is_end = matches!(rest.as_bytes().get(UUID_LENGTH), None | Some(b'.'));
            (is_end && is_uuid(&uuid)).then_some(uuid)
        })
    }

    /// Whether it is in the group that ours is in: another container of our pod, or our own.
    pub fn is_beside(&self, ours: &Self) -> bool {
        let outer = || "..".to_owned();
        let parent = match ours.parts.split_last() {
            // The root of a namespace is in a group that has no name in it.
            None => vec![outer()],
            Some((last, parent)) if *last == ".." => [parent, &[outer(), outer()]].concat(),
            Some((_, parent)) => parent.to_vec(),
        };
        let own = self.parts.starts_with(&ours.parts) && self.parts.get(ours.parts.len()) != Some(&outer());
        let beside = self.parts.starts_with(&parent) && self.parts.get(parent.len()) != Some(&outer());
        own || beside
    }
}

/// Controllers and path of a line such as `4:cpu,memory:/docker/ID`; the former are empty for version 2.
fn fields(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    path.starts_with('/').then_some((controllers, path))
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12]
        && text.chars().all(|character| character == '-' || character.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn cgroup(path: &str) -> Cgroup {
        Cgroup::parse(&format!("0::{path}\n")).unwrap()
    }

    #[test]
    fn every_runtime_names_its_containers() {
        let uid = "8dbc5577-d0e2-4706-8787-57d52c03ddf2";
        let scoped = uid.replace('-', "_");
        for (path, pod) in [
            (format!("/docker/{ID}"), false),
            (format!("/system.slice/docker-{ID}.scope"), false),
            (format!("/machine.slice/libpod-{ID}.scope/container"), false),
            (format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"), false),
            (format!("/kubepods/burstable/pod{uid}/{ID}"), true),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{scoped}.slice/cri-containerd-{ID}.scope"
                ),
                true,
            ),
            (format!("/kubepods.slice/kubepods-pod{scoped}.slice/crio-{ID}.scope"), true),
            (format!("/../../kubepods-pod{scoped}.slice/cri-containerd-{ID}.scope/init.scope"), true),
            (format!("/../cri-containerd-{ID}.scope"), false),
        ] {
            let found = cgroup(&path);
            assert_eq!(found.container().as_deref(), Some(ID), "{path}");
            assert_eq!(found.pod(), pod.then(|| uid.to_owned()), "{path}");
            assert_eq!(found.path(), path);
        }
    }

    #[test]
    fn what_is_no_container_is_none() {
        for path in [
            "/",
            "/system.slice/shop.service",
            "/user.slice/user-0.slice/session-1.scope",
            "/pod1/abc",
            "/podé",
            "/pod",
        ] {
            let found = cgroup(path);
            assert_eq!((found.container(), found.pod()), (None, None), "{path}");
        }
        assert_eq!(Cgroup::parse(""), None);
        assert_eq!(Cgroup::parse("nonsense\n:\n0::no/path\n"), None);
    }

    #[test]
    fn the_memory_controller_tells_where_there_is_one() {
        let text = format!("12:cpu,cpuacct:/a\n4:memory:/docker/{ID}\n1:name=systemd:/b\n0::/\n");
        let found = Cgroup::parse(&text).unwrap();
        assert_eq!((found.path(), found.version()), (format!("/docker/{ID}"), Version::One));
        assert_eq!(Cgroup::parse("3:pids:/x\n").unwrap().path(), "/x");
        let root = Cgroup::parse("0::/\n").unwrap();
        assert_eq!((root.path().as_str(), root.version()), ("/", Version::Two));
        assert_eq!(root.below_our_root(), Some(PathBuf::new()));
        assert_eq!(cgroup("/a/b").below_our_root(), Some(PathBuf::from("a/b")));
        assert_eq!(cgroup("/../b").below_our_root(), None);
    }

    #[test]
    fn only_siblings_are_beside_us() {
        let inside = cgroup("/");
        for (theirs, is_beside) in [
            ("/", true),
            ("/worker.scope", true),
            ("/../cri-containerd-b.scope", true),
            ("/../cri-containerd-b.scope/init.scope", true),
            ("/../../kubepods-podx.slice/cri-containerd-c.scope", false),
            ("/../../../system.slice/shop.service", false),
        ] {
            assert_eq!(cgroup(theirs).is_beside(&inside), is_beside, "{theirs}");
        }
        let outside = cgroup("/kubepods/burstable/poda/one");
        assert!(cgroup("/kubepods/burstable/poda/two").is_beside(&outside));
        assert!(!cgroup("/kubepods/burstable/podb/two").is_beside(&outside));
        assert!(!cgroup("/system.slice/x.service").is_beside(&outside));
    }
}
