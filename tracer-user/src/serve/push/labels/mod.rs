//! What a profile is called where it is pushed to: service, host, pod, container, and whatever else was given.
//!
//! Labels come from the command line, from the environment, from the folder of Kubernetes' downward API, and from the control group of each process. Their names are those of
//! OpenTelemetry's semantic conventions; who needs others turns them round. What belongs to our own pod is said of processes of our own pod only: a daemon on the host sees others'.
//! It must not know destinations. Nothing here is an error: what cannot be read is not said.

mod downward;
mod service;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rustc_hash::FxHashMap;

use crate::{profile::Process, serve::cgroup::Cgroup};

/// Names to values, in the order of names.
pub type Labels = BTreeMap<String, String>;

/// Where the volume of the downward API is, unless `ALLOCTRACE_PODINFO` names another place.
const PODINFO: &str = "etc/podinfo";
/// The beginning of variables that are labels; two underscores in the rest are a dot.
const VARIABLE: &str = "ALLOCTRACE_LABEL_";
/// Variables that manifests fill from the downward API, and what they are called.
const KUBERNETES: [(&str, &str); 6] = [
    ("POD_NAME", "k8s.pod.name"),
    ("POD_UID", "k8s.pod.uid"),
    ("NAMESPACE", "k8s.namespace.name"),
    ("POD_NAMESPACE", "k8s.namespace.name"),
    ("CLUSTER_NAME", "k8s.cluster.name"),
    ("NODE_NAME", "k8s.node.name"),
];
/// Of these only the ones that hold for all pods of a node.
const OF_THE_NODE: [&str; 2] = ["k8s.cluster.name", "k8s.node.name"];
/// Most labels that are taken from anywhere: receivers have limits too.
pub const MOST: usize = 64;
/// Most bytes of a name or a value; what is longer is cut.
pub const MOST_BYTES: usize = 1024;
/// What everything is called that has no better name.
pub const SERVICE: &str = "service.name";
/// The name of the host, of which a node's name is one.
const HOST: &str = "host.name";

/// Labels of processes: those of us all, and what is known of each.
#[derive(Debug)]
pub struct Labeller {
    proc_root: PathBuf,
    /// Given by name, or in the environment: for every process.
    given: Labels,
    /// Of the host or node.
    host: Labels,
    /// Of our own pod.
    pod: Labels,
    /// Where we are ourselves.
    ours: Option<Cgroup>,
    /// Of processes in the last profile, by pid and command: one that has ended since cannot be asked again.
    known: FxHashMap<(u32, String), Option<Cgroup>>,
}

impl Labeller {
    /// Gathers what is the same for all processes. `root` is `/`, `environment` ours; `given` counts most.
    pub fn gather(
        root: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
        given: &[(String, String)],
    ) -> Self {
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        let mut pod = Labels::new();
        for (variable, name) in KUBERNETES {
            if let Some(value) = environment.get(variable) {
                add(&mut pod, name, value);
            }
        }
        let podinfo = environment.get("ALLOCTRACE_PODINFO").map_or_else(|| root.join(PODINFO), PathBuf::from);
        for (name, value) in downward::read(&podinfo) {
            add(&mut pod, &name, &value);
        }
        let mut host = Labels::new();
        for name in OF_THE_NODE {
            host.extend(pod.remove_entry(name));
        }
        // In a pod the host's own name is that of the pod.
        let name = host.get("k8s.node.name").cloned().or_else(|| host_name(root));
        add(&mut host, HOST, &name.unwrap_or_default());
        let proc_root = root.join("proc");
        let ours = Cgroup::of(&proc_root, "self");
        Self {
            proc_root,
            given: given_labels(&environment, given),
            host,
            pod,
            ours,
            known: FxHashMap::default(),
        }
    }

    /// The labels of each process of a profile, in their order.
    pub fn label(&mut self, processes: &[Process]) -> Vec<Labels> {
        let before = std::mem::take(&mut self.known);
        for process in processes {
            let key = (process.pid, process.command.clone());
            let known = before.get(&key).cloned().flatten();
            let cgroup = known.or_else(|| Cgroup::of(&self.proc_root, &process.pid.to_string()));
            self.known.insert(key, cgroup);
        }
        processes.iter().map(|process| self.labels(process)).collect()
    }

    fn labels(&self, process: &Process) -> Labels {
        let mut labels = self.host.clone();
        let cgroup = self.known.get(&(process.pid, process.command.clone())).and_then(Option::as_ref);
        if let Some(cgroup) = cgroup {
            let of_it = [("container.id", cgroup.container()), ("k8s.pod.uid", cgroup.pod())];
            for (name, value) in of_it {
                add(&mut labels, name, &value.unwrap_or_default());
            }
        }
        let is_of_our_pod = match (cgroup, &self.ours) {
            (Some(theirs), Some(ours)) => theirs.is_beside(ours),
            // Nobody knows: only a process that cannot be read is in no group.
            _ => false,
        };
        if is_of_our_pod {
            labels.extend(self.pod.clone());
        }
        labels.extend(self.given.clone());
        if !labels.contains_key(SERVICE) {
            let name = service::name(&labels, &process.command);
            add(&mut labels, SERVICE, &name);
        }
        labels
    }
}

/// Those of the command line over those of the environment.
fn given_labels(environment: &BTreeMap<String, String>, given: &[(String, String)]) -> Labels {
    let mut labels = Labels::new();
    if let Some(name) = environment.get("OTEL_SERVICE_NAME") {
        add(&mut labels, SERVICE, name);
    }
    for (variable, value) in environment {
        if let Some(name) = variable.strip_prefix(VARIABLE) {
            add(&mut labels, &name.replace("__", "."), value);
        }
    }
    for (name, value) in given {
        labels.remove(name.trim());
        add(&mut labels, name, value);
    }
    labels
}

/// Adds one that says something, cut to a length that receivers take. What is full stays as it is.
fn add(labels: &mut Labels, name: &str, value: &str) {
    let (name, value) = (cut(name.trim()), cut(value.trim()));
    if !name.is_empty() && !value.is_empty() && labels.len() < MOST {
        labels.insert(name.to_owned(), value.to_owned());
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MOST_BYTES)]
}

fn host_name(root: &Path) -> Option<String> {
    let name = fs::read_to_string(root.join("proc/sys/kernel/hostname")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
