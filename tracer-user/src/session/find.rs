//! Which processes there are: all of the host, or those of a control group.
//!
//! It must not know which of them are Python.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::SessionError;

/// Where version 2 is mounted: by itself, or beside version 1.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Control groups below one that are looked at: far more than any host has.
const MAX_GROUPS: usize = 100_000;

/// What processes are looked for.
#[derive(Debug, Clone)]
pub enum Finder {
    /// Every process that we can see.
    Everything,
    /// Those of a control group and of the groups below it.
    Cgroup(PathBuf),
    /// Those whose command line holds one of these.
    Named(Vec<String>),
}

impl Finder {
    /// A control group by its folder, or by its path below where they are mounted, as /proc/PID/cgroup has it.
    pub fn cgroup(path: &Path) -> Result<Self, SessionError> {
        let below = path.strip_prefix("/").unwrap_or(path);
        let mut folders =
            CGROUPS.map(|mounted| Path::new(mounted).join(below)).into_iter().chain([path.to_owned()]);
        let folder = folders.find(|folder| folder.join("cgroup.procs").exists());
        folder.map(Self::Cgroup).ok_or_else(|| SessionError::NoCgroup { path: path.to_owned() })
    }

    /// Their numbers, now.
    pub fn processes(&self) -> Result<Vec<u32>, SessionError> {
        let found = match self {
            Self::Everything => everything(),
            Self::Cgroup(folder) => in_groups(folder),
            Self::Named(words) => {
                everything().map(|found| found.into_iter().filter(|pid| is_named(*pid, words)).collect())
            }
        };
        found.map_err(|source| SessionError::System { what: "list processes", source })
    }

    /// Whether this one is among them.
    pub fn wants(&self, pid: u32) -> Result<bool, SessionError> {
        match self {
            Self::Everything => Ok(true),
            Self::Cgroup(_) => Ok(self.processes()?.contains(&pid)),
            Self::Named(words) => Ok(is_named(pid, words)),
        }
    }
}

fn everything() -> io::Result<Vec<u32>> {
    let own = std::process::id();
    let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).filter(|pid| *pid != own).collect())
}

/// Whether its command line, arguments joined by spaces, holds one of these.
fn is_named(pid: u32, words: &[String]) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    words.iter().any(|word| line.contains(word.as_str()))
}

fn in_groups(folder: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut folders = VecDeque::from([folder.to_owned()]);
    for _ in 0..MAX_GROUPS {
        let Some(folder) = folders.pop_front() else { break };
        // A group may go while it is looked at; one of threads cannot be read, and its processes are in the group above.
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        // 0: a process that our PID namespace does not see.
        found.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &u32| *pid != 0));
        let below = fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
        folders.extend(
            below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_among_all_but_us() {
        let all = Finder::Everything.processes().unwrap();
        assert!(all.contains(&1) || !all.is_empty());
        assert!(!all.contains(&std::process::id()));
    }

    #[test]
    fn a_group_has_those_of_the_groups_below() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        for (group, text) in [("", "1\n"), ("a", "20\n0\n"), ("a/b", "300\n")] {
            fs::write(folder.path().join(group).join("cgroup.procs"), text).unwrap();
        }
        let finder = Finder::cgroup(folder.path()).unwrap();
        assert_eq!(finder.processes().unwrap(), [1, 20, 300]);
        assert!(finder.wants(300).unwrap() && !finder.wants(4).unwrap());
    }

    #[test]
    fn processes_by_what_their_command_line_holds() {
        let mut child = std::process::Command::new("sleep").arg("271.25").spawn().unwrap();
        let named = |word: &str| Finder::Named(vec![word.to_owned()]);
        // Until it has execed it is a copy of this test.
        let found = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            named("sleep 271.25").processes().unwrap().contains(&child.id())
        });
        let other = named("sleep 272").wants(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found && !other);
    }

    #[test]
    fn a_group_that_is_not_there() {
        let error = Finder::cgroup("/no/such/group".as_ref()).unwrap_err();
        assert!(error.to_string().contains("`/no/such/group`"), "{error}");
    }
}
