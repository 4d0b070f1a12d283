//! The Helm chart, without Helm: templates are read as YAML once their actions are gone, with all branches in, and the values that they ask for must be there.

use super::{check_container, check_mounts, documents, folder, named, strings, text};
use std::collections::BTreeSet;
use std::fs;
use yaml_rust2::Yaml;

const CHART: &str = "helm/alloctrace";

/// The text of a template with each action replaced: what stands alone on a line goes, with its line; the rest becomes a word.
fn plain(template: &str) -> String {
    let lines = template.lines().filter_map(|line| {
        let trimmed = line.trim();
        let stands_alone =
            trimmed.starts_with("{{") && trimmed.ends_with("}}") && trimmed.matches("{{").count() == 1;
        if stands_alone { None } else { Some(without_actions(line)) }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn without_actions(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, action)) = rest.split_once("{{") {
        let (_, after) = action.split_once("}}").expect("the end of an action");
        text.push_str(before);
        text.push('x');
        rest = after;
    }
    text + rest
}

/// What stands between `define` and the `end` at the beginning of a line.
fn definition(name: &str) -> String {
    let helpers = text(&format!("{CHART}/templates/_helpers.tpl"));
    let (_, body) = helpers.split_once(&format!("{{{{- define \"{name}\" -}}}}\n")).expect("a definition");
    let lines = body.lines().scan(0_i32, |depth, line| {
        let action = line.trim_start().trim_start_matches("{{-").trim_start_matches("{{").trim_start();
        let word = action.split(' ').next().unwrap_or_default();
        if line.trim_start().starts_with("{{") {
            *depth += i32::from(["if", "with", "range"].contains(&word)) - i32::from(word == "end");
        }
        (*depth >= 0).then_some(line)
    });
    plain(&lines.collect::<Vec<_>>().join("\n"))
}

fn templates() -> Vec<(String, String)> {
    let entries = fs::read_dir(folder().join(CHART).join("templates")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn the_container_is_as_in_the_manifests() {
    let containers = &documents(&definition("alloctrace.container"))[0];
    let container = named(containers, "alloctrace");
    check_container(&container);
    super::check_probe(&container["readinessProbe"], "/readyz");
    check_mounts(&container, &documents(&definition("alloctrace.volumes"))[0]);
    // All branches at once: no flag that `serve` does not have.
    super::flags::check(&strings(&container["args"]));
}

#[test]
fn every_template_is_yaml() {
    for (path, template) in templates() {
        if path.ends_with(".yaml") {
            let document = documents(&plain(&template)).remove(0);
            assert!(!document["apiVersion"].is_badvalue() && !document["kind"].is_badvalue(), "{path}");
        }
    }
    let daemon = documents(&plain(&text(&format!("{CHART}/templates/daemonset.yaml")))).remove(0);
    let pod = &daemon["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"].as_bool(), Some(true));
    assert_eq!(pod["automountServiceAccountToken"].as_bool(), Some(false));
}

/// Paths of all values: `image.tag`. Lists, and maps that are empty, count as values.
fn paths(prefix: &str, values: &Yaml, all: &mut BTreeSet<String>) {
    for (key, value) in values.as_hash().expect("a map") {
        let path = format!("{prefix}{}", key.as_str().expect("a name"));
        match value.as_hash() {
            Some(map) if !map.is_empty() => paths(&format!("{path}."), value, all),
            _ => drop(all.insert(path)),
        }
    }
}

#[test]
fn templates_ask_for_values_that_are_there_and_all_are_asked_for() {
    let values = &documents(&text(&format!("{CHART}/values.yaml")))[0];
    let mut known = BTreeSet::new();
    paths("", values, &mut known);
    let is_of_path = |character: char| character.is_alphanumeric() || character == '.';
    let mut asked = BTreeSet::new();
    for (_, template) in templates() {
        for rest in template.split(".Values.").skip(1) {
            let end = rest.find(|character| !is_of_path(character)).unwrap_or(rest.len());
            asked.insert(rest[..end].to_owned());
        }
    }
    for path in &asked {
        let is_known = known.iter().any(|known| known == path || known.starts_with(&format!("{path}.")));
        assert!(is_known, "a template asks for `{path}`");
    }
    for path in &known {
        let is_asked = asked.iter().any(|asked| asked == path || path.starts_with(&format!("{asked}.")));
        assert!(is_asked, "no template asks for `{path}`");
    }
}

#[test]
fn the_chart_is_of_this_version() {
    let chart = &documents(&text(&format!("{CHART}/Chart.yaml")))[0];
    assert_eq!(chart["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(chart["appVersion"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    for path in ["compose.yaml", "kubernetes/sidecar.yaml", "kubernetes/daemonset.yaml"] {
        assert!(
            text(path).contains(concat!("image: alloctrace:", env!("CARGO_PKG_VERSION"), "\n")),
            "{path}"
        );
    }
}
