//! The last account of a process that was killed, or of a moment that somebody asked for: a profile and a flame graph that no merge touches.
//!
//! Few, so that they are found by looking into their folder. It must not know why something is an incident.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::disk::{Disk, Listed, is_left_over};
use super::name::ENDING;
use super::{History, HistoryError, Writer};
use crate::profile::{Profile, pprof};

/// Their folder.
pub const FOLDER: &str = "incidents";

/// How many are kept, the newest.
const MOST: usize = 64;
/// Of the history's bytes they may have one part in this many.
const PARTS: u64 = 2;
/// Bytes of a name; a number may follow.
const MOST_NAME: usize = 120;
/// The ending of flame graphs.
const GRAPH_ENDING: &str = ".svg";

/// An incident of which there is a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// Its name, which is a file's without an ending.
    pub name: String,
    /// When it was written.
    pub written: SystemTime,
    /// Where its profile is.
    pub profile: PathBuf,
    /// Where its flame graph is, if it has one.
    pub flame_graph: Option<PathBuf>,
    /// Size of both, in bytes.
    pub bytes: u64,
}

impl History {
    /// The account of one; `None`: there is none of that name.
    ///
    /// # Errors
    /// If it cannot be read; one that is no profile is none.
    pub fn incident(&self, name: &str) -> Result<Option<Profile>, HistoryError> {
        let Some(found) = self.incidents()?.into_iter().find(|incident| incident.name == name) else {
            return Ok(None);
        };
        let bytes = std::fs::read(&found.profile).map_err(super::disk::failed("read", &found.profile))?;
        Ok(pprof::decode(&bytes).ok())
    }

    /// Keeps an incident until 64 newer ones have come, or they take more than half of the limit. What cannot be in a file's name becomes `-`; a name that is taken gets a number.
    ///
    /// # Errors
    /// If it cannot be written. The profile may be there if only the flame graph cannot.
    pub fn keep_incident(
        &self,
        name: &str,
        profile: &Profile,
        svg: Option<&[u8]>,
    ) -> Result<Incident, HistoryError> {
        let bytes = pprof::encode(profile)?;
        let mut writer = self.writer();
        let folder = self.disk.folder().join(FOLDER);
        let name = free_name(&safe_name(name), &list(&self.disk)?);
        let written = self.write_incident(&folder, &name, &bytes, svg);
        let bounded = self.bound_incidents(&mut writer);
        written?;
        bounded?;
        let graph_bytes = svg.map_or(0, |svg| svg.len() as u64);
        Ok(Incident {
            written: SystemTime::now(),
            profile: folder.join(format!("{name}{ENDING}")),
            flame_graph: svg.map(|_| folder.join(format!("{name}{GRAPH_ENDING}"))),
            bytes: bytes.len() as u64 + graph_bytes,
            name,
        })
    }

    /// All of them, oldest first.
    ///
    /// # Errors
    /// If their folder cannot be read.
    pub fn incidents(&self) -> Result<Vec<Incident>, HistoryError> {
        list(&self.disk)
    }

    fn write_incident(
        &self,
        folder: &Path,
        name: &str,
        profile: &[u8],
        svg: Option<&[u8]>,
    ) -> Result<(), HistoryError> {
        self.disk.write(&folder.join(format!("{name}{ENDING}")), profile)?;
        match svg {
            Some(svg) => self.disk.write(&folder.join(format!("{name}{GRAPH_ENDING}")), svg),
            None => Ok(()),
        }
    }

    /// Removes those that are too many, and then makes room for them in the history.
    fn bound_incidents(&self, writer: &mut Writer) -> Result<(), HistoryError> {
        let incidents = list(&self.disk)?;
        let mut bytes: u64 = incidents.iter().map(|incident| incident.bytes).sum();
        let most_bytes = self.limits.bytes / PARTS;
        for (left, incident) in (1..=incidents.len()).rev().zip(&incidents) {
            if left <= MOST && (bytes <= most_bytes || left == 1) {
                break;
            }
            if let Some(graph) = &incident.flame_graph {
                self.disk.remove(graph)?;
            }
            self.disk.remove(&incident.profile)?;
            bytes = bytes.saturating_sub(incident.bytes);
        }
        writer.incident_bytes = bytes;
        self.drop_too_much(writer)
    }
}

/// Removes what was being written, and says how large the others are.
pub fn recover(disk: &Disk) -> Result<u64, HistoryError> {
    for file in disk.list(&disk.folder().join(FOLDER))?.iter().filter(|file| is_left_over(&file.name)) {
        disk.remove(&file.path)?;
    }
    Ok(list(disk)?.iter().map(|incident| incident.bytes).sum())
}

/// Oldest first.
fn list(disk: &Disk) -> Result<Vec<Incident>, HistoryError> {
    let mut files = disk.list(&disk.folder().join(FOLDER))?;
    files.sort_by(|one, other| (one.written, &one.name).cmp(&(other.written, &other.name)));
    let incident = |file: &Listed| {
        let name = file.name.strip_suffix(ENDING).filter(|_| !is_left_over(&file.name))?;
        let graph_name = format!("{name}{GRAPH_ENDING}");
        let graph = files.iter().find(|other| other.name == graph_name);
        let since = Duration::from_nanos(u64::try_from(file.written).unwrap_or(0));
        Some(Incident {
            name: name.to_owned(),
            written: SystemTime::UNIX_EPOCH + since,
            profile: file.path.clone(),
            flame_graph: graph.map(|graph| graph.path.clone()),
            bytes: file.bytes.saturating_add(graph.map_or(0, |graph| graph.bytes)),
        })
    };
    Ok(files.iter().filter_map(incident).collect())
}

fn safe_name(name: &str) -> String {
    let is_safe = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let safe: String = name
        .chars()
        .take(MOST_NAME)
        .map(|character| if is_safe(character) { character } else { '-' })
        .collect();
    // Names that begin with a dot are hidden, and two of them lead out of the folder.
    match safe.trim_start_matches('.') {
        "" => "incident".to_owned(),
        safe => safe.to_owned(),
    }
}

fn free_name(name: &str, taken: &[Incident]) -> String {
    let is_free = |name: &String| taken.iter().all(|incident| incident.name != *name);
    let names = std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}-{number}")));
    // Those that are taken are finite, so one of them is free.
    names.take(taken.len() + 1).find(is_free).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        assert_eq!(safe_name("oom-4711.worker_2"), "oom-4711.worker_2");
        assert_eq!(safe_name("../../etc/passwd"), "-..-etc-passwd");
        assert_eq!(safe_name("..."), "incident");
        assert_eq!(safe_name(""), "incident");
        assert_eq!(safe_name("a b\n\0\u{e9}/"), "a-b----");
        assert_eq!(safe_name(&"x".repeat(1000)).len(), MOST_NAME);
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let incident = |name: &str| Incident {
            name: name.to_owned(),
            written: SystemTime::UNIX_EPOCH,
            profile: PathBuf::new(),
            flame_graph: None,
            bytes: 0,
        };
        let taken = ["oom", "oom-2", "other"].map(incident);
        assert_eq!(free_name("oom", &taken), "oom-3");
        assert_eq!(free_name("new", &taken), "new");
    }
}
