//! What is in `xtask/packages` fits together: files parse, grant the same and no more, mount what they name, and give flags that `serve` has.
//!
//! Tests only. Schemas are Kubernetes' and Compose's own business; these are the things that go wrong without one noticing.

mod chart;
mod flags;
mod rest;

use crate::workspace;
use std::fs;
use std::path::PathBuf;
use yaml_rust2::{Yaml, YamlLoader};

/// What alloctrace needs, in all manifests: programs, probes, other processes, those of other users.
const CAPABILITIES: [&str; 4] = ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"];

fn folder() -> PathBuf {
    workspace::root().join("xtask/packages")
}

fn text(path: &str) -> String {
    fs::read_to_string(folder().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn documents(text: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The document of that kind.
fn kind(documents: &[Yaml], kind: &str) -> Yaml {
    let found = documents.iter().find(|document| document["kind"].as_str() == Some(kind));
    found.unwrap_or_else(|| panic!("there is no {kind}")).clone()
}

fn strings(list: &Yaml) -> Vec<String> {
    let words = list.as_vec().unwrap_or_else(|| panic!("{list:?} is no list"));
    words
        .iter()
        .map(|word| word.as_str().unwrap_or_else(|| panic!("{word:?} is no text")).to_owned())
        .collect()
}

/// The entry of a list with that name.
fn named(list: &Yaml, name: &str) -> Yaml {
    let found = list.as_vec().and_then(|list| list.iter().find(|entry| entry["name"].as_str() == Some(name)));
    found.unwrap_or_else(|| panic!("there is no `{name}`")).clone()
}

/// Nobody is answered without the token, so it asks itself.
fn check_probe(probe: &Yaml, path: &str) {
    let command = strings(&probe["exec"]["command"]);
    assert_eq!(command[..3], ["/alloctrace", "probe", path]);
    assert!(
        command.windows(2).any(|pair| pair == ["--token-file", "/etc/alloctrace/token/token"]),
        "{command:?}"
    );
}

/// What a container of Kubernetes must be, whatever brings it.
fn check_container(container: &Yaml) {
    let security = &container["securityContext"];
    assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"]);
    assert_eq!(strings(&security["capabilities"]["add"]), CAPABILITIES);
    assert_eq!(security["runAsUser"].as_i64(), Some(0), "others get no capabilities");
    assert_eq!(security["allowPrivilegeEscalation"].as_bool(), Some(false));
    assert_eq!(security["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(security["seccompProfile"]["type"].as_str(), Some("RuntimeDefault"));
    assert!(security["privileged"].is_badvalue());
    check_probe(&container["livenessProbe"], "/healthz");
    named(&container["ports"], "alloctrace");
    for (name, field) in [
        ("POD_NAME", "metadata.name"),
        ("POD_UID", "metadata.uid"),
        ("NAMESPACE", "metadata.namespace"),
        ("NODE_NAME", "spec.nodeName"),
    ] {
        let variable = named(&container["env"], name);
        assert_eq!(variable["valueFrom"]["fieldRef"]["fieldPath"].as_str(), Some(field));
    }
    // A read-only root takes a mount for each folder that is written.
    let mounts = mounts(container);
    for folder in ["/var/lib/alloctrace", "/var/cache/alloctrace", "/etc/alloctrace/token"] {
        assert!(mounts.iter().any(|(_, path)| path == folder), "nothing is mounted at {folder}");
    }
}

/// Names of volumes, and where they go.
fn mounts(container: &Yaml) -> Vec<(String, String)> {
    let list = container["volumeMounts"].as_vec().expect("mounts");
    let field = |mount: &Yaml, name: &str| mount[name].as_str().expect("a text").to_owned();
    list.iter().map(|mount| (field(mount, "name"), field(mount, "mountPath"))).collect()
}

fn check_mounts(container: &Yaml, volumes: &Yaml) {
    let mounted: Vec<String> = mounts(container).into_iter().map(|(name, _)| name).collect();
    mounted.iter().for_each(|name| drop(named(volumes, name)));
    for volume in volumes.as_vec().expect("volumes") {
        let name = volume["name"].as_str().expect("a name");
        assert!(mounted.iter().any(|mounted| mounted == name), "nobody mounts `{name}`");
    }
}

/// Bytes of `384Mi` and the like.
fn size(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.find(|digit: char| !digit.is_ascii_digit()).expect("a unit"));
    let shift = ["Ki", "Mi", "Gi"].iter().position(|known| *known == unit).expect("a known unit");
    number.parse::<u64>().expect("a number") << (10 * (shift + 1))
}

#[test]
fn the_sidecar_shares_processes_and_no_more() {
    let documents = documents(&text("kubernetes/sidecar.yaml"));
    let deployment = kind(&documents, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["shareProcessNamespace"].as_bool(), Some(true));
    assert!(pod["hostPID"].is_badvalue());
    let container = named(&pod["containers"], "alloctrace");
    check_container(&container);
    check_mounts(&container, &pod["volumes"]);
    assert!(container["readinessProbe"].is_badvalue(), "it would take the service out of service");
    flags::check(&strings(&container["args"]));
    // 64 MiB of tables, 80 MB of its own, and room to write a profile.
    assert!(size(container["resources"]["limits"]["memory"].as_str().unwrap()) >= 256 << 20);
    let secret = kind(&documents, "Secret");
    let volume = named(&pod["volumes"], "alloctrace-token");
    assert_eq!(volume["secret"]["secretName"], secret["metadata"]["name"]);
    assert!(secret["stringData"]["token"].as_str().unwrap().len() >= 16);
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
}

#[test]
fn the_daemon_sees_the_node() {
    let documents = documents(&text("kubernetes/daemonset.yaml"));
    let daemon = kind(&documents, "DaemonSet");
    let pod = &daemon["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"].as_bool(), Some(true));
    assert!(pod["hostNetwork"].is_badvalue() && pod["hostIPC"].is_badvalue());
    assert_eq!(pod["automountServiceAccountToken"].as_bool(), Some(false));
    let container = named(&pod["containers"], "alloctrace");
    check_container(&container);
    check_mounts(&container, &pod["volumes"]);
    check_probe(&container["readinessProbe"], "/readyz");
    assert_eq!(container["securityContext"]["appArmorProfile"]["type"].as_str(), Some("Unconfined"));
    flags::check(&strings(&container["args"]));
    let name = kind(&documents, "Namespace")["metadata"]["name"].clone();
    for of_it in ["DaemonSet", "Secret", "ServiceAccount"] {
        assert_eq!(kind(&documents, of_it)["metadata"]["namespace"], name, "{of_it}");
    }
}

#[test]
fn compose_shares_processes_and_no_more() {
    let documents = documents(&text("compose.yaml"));
    let service = &documents[0]["services"]["alloctrace"];
    assert_eq!(service["pid"].as_str(), Some("service:app"));
    assert!(!documents[0]["services"]["app"].is_badvalue());
    assert_eq!(strings(&service["cap_drop"]), ["ALL"]);
    assert_eq!(strings(&service["cap_add"]), CAPABILITIES);
    assert_eq!(strings(&service["security_opt"]), ["no-new-privileges:true"]);
    assert_eq!(service["read_only"].as_bool(), Some(true));
    assert!(service["privileged"].is_badvalue() && service["network_mode"].is_badvalue());
    assert!(strings(&service["tmpfs"])[0].starts_with("/var/cache/alloctrace:"));
    assert_eq!(strings(&service["volumes"]), ["history:/var/lib/alloctrace"]);
    assert!(strings(&service["ports"]).iter().all(|port| port.starts_with("127.0.0.1:")));
    flags::check(&strings(&service["command"]));
}
