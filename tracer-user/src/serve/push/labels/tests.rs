//! Labels against folders that look like a host's, a pod's and a node's.

use super::*;
use crate::serve::fake_root::root;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "8dbc5577-d0e2-4706-8787-57d52c03ddf2";

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn process(pid: u32, command: &str) -> Process {
    Process { pid, command: command.to_owned(), ..Process::default() }
}

fn plain(labels: &Labels) -> Vec<(&str, &str)> {
    labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn on_a_plain_host_there_are_a_service_and_a_host() {
    let root = root(&[
        ("proc/sys/kernel/hostname", "box\n"),
        ("proc/self/cgroup", "0::/system.slice/alloctrace.service\n"),
        ("proc/7/cgroup", "0::/system.slice/shop.service\n"),
    ]);
    let mut labeller = Labeller::gather(root.path(), [], &[]);
    let labels = labeller.label(&[process(7, "python3 /srv/main.py"), process(8, "python3 -m gone")]);
    assert_eq!(plain(&labels[0]), [("host.name", "box"), ("service.name", "main.py")]);
    assert_eq!(plain(&labels[1]), [("host.name", "box"), ("service.name", "gone")]);
}

#[test]
fn a_sidecar_speaks_of_its_own_pod() {
    let scope = format!("0::/../cri-containerd-{ID}.scope\n");
    let root = root(&[
        ("proc/sys/kernel/hostname", "shop-5d59-x2x\n"),
        ("proc/self/cgroup", "0::/\n"),
        ("proc/7/cgroup", &scope),
        ("etc/podinfo/labels", "app.kubernetes.io/name=\"shop\"\npod-template-hash=\"5d59\"\n"),
        ("etc/podinfo/uid", UID),
    ]);
    let environment =
        environment(&[("POD_NAME", "shop-5d59-x2x"), ("NAMESPACE", "store"), ("NODE_NAME", "node-3")]);
    let mut labeller = Labeller::gather(root.path(), environment, &[]);
    let expected = [
        ("container.id", ID),
        ("host.name", "node-3"),
        ("k8s.namespace.name", "store"),
        ("k8s.node.name", "node-3"),
        ("k8s.pod.label.app.kubernetes.io/name", "shop"),
        ("k8s.pod.name", "shop-5d59-x2x"),
        ("k8s.pod.uid", UID),
        ("service.name", "shop"),
    ];
    let processes = [process(7, "python3 /srv/main.py")];
    assert_eq!(plain(&labeller.label(&processes)[0]), expected);
    // It ends, and what is known of it stays known.
    fs::remove_file(root.path().join("proc/7/cgroup")).unwrap();
    assert_eq!(plain(&labeller.label(&processes)[0]), expected);
    labeller.label(&[]);
    assert!(!labeller.label(&processes)[0].contains_key("container.id"), "nothing is kept for ever");
}

#[test]
fn a_daemon_does_not_lend_its_pods_name_to_others() {
    let theirs = format!("0::/../../kubepods-pod{}.slice/cri-containerd-{ID}.scope\n", UID.replace('-', "_"));
    let root = root(&[("proc/self/cgroup", "0::/\n"), ("proc/7/cgroup", &theirs)]);
    let environment = environment(&[
        ("POD_NAME", "alloctrace-abc"),
        ("POD_UID", "11111111-2222-3333-4444-555555555555"),
        ("NODE_NAME", "node-3"),
    ]);
    let mut labeller = Labeller::gather(root.path(), environment, &[]);
    let expected = [
        ("container.id", ID),
        ("host.name", "node-3"),
        ("k8s.node.name", "node-3"),
        ("k8s.pod.uid", UID),
        ("service.name", "main.py"),
    ];
    assert_eq!(plain(&labeller.label(&[process(7, "python3 main.py")])[0]), expected);
}

#[test]
fn what_is_given_counts_most() {
    let root = root(&[]);
    let environment = environment(&[
        ("OTEL_SERVICE_NAME", "from-otel"),
        ("ALLOCTRACE_LABEL_team", "blue"),
        ("ALLOCTRACE_LABEL_deployment__environment", "test"),
        ("ALLOCTRACE_LABEL_", "no name"),
        ("ALLOCTRACE_LABEL_empty", " "),
        ("PATH", "/bin"),
    ]);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let given = [pair("team", "red"), pair("service.name", "shop")];
    let labels = Labeller::gather(root.path(), environment, &given).label(&[process(1, "x")]).remove(0);
    assert_eq!(
        plain(&labels),
        [("deployment.environment", "test"), ("service.name", "shop"), ("team", "red")]
    );
}

#[test]
fn neither_many_nor_long_ones_get_through() {
    let root = root(&[]);
    let many = (0..500).map(|number| (format!("ALLOCTRACE_LABEL_{number}"), "ü".repeat(5000)));
    let labels = Labeller::gather(root.path(), many, &[]).label(&[process(1, "x")]).remove(0);
    assert!(labels.len() <= MOST + 2, "{}", labels.len());
    assert!(labels.values().all(|value| value.len() <= MOST_BYTES));
}
