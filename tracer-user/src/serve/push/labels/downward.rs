//! The folder of Kubernetes' downward API: files that the kubelet fills with what a pod is called.
//!
//! `name`, `namespace`, `uid` and `node` hold one value; `labels` has a `key="value"` a line. It must not know whose labels these become.

use std::{fs::File, io::Read, path::Path};

/// Files of one value, and the names of these.
const FILES: [(&str, &str); 4] = [
    ("name", "k8s.pod.name"),
    ("namespace", "k8s.namespace.name"),
    ("uid", "k8s.pod.uid"),
    ("node", "k8s.node.name"),
];
/// More of a file is not read.
const MOST_BYTES: u64 = 64 << 10;
/// Where the labels of a pod go.
pub const POD_LABEL: &str = "k8s.pod.label.";
/// What controllers write for themselves, and differs with each release: no name of anything.
const NOISE: [&str; 3] = ["pod-template-hash", "controller-revision-hash", "pod-template-generation"];

/// What is there, if anything.
pub fn read(folder: &Path) -> Vec<(String, String)> {
    let single =
        FILES.into_iter().filter_map(|(file, name)| Some((name.to_owned(), text(&folder.join(file))?)));
    let labels = text(&folder.join("labels")).unwrap_or_default();
    single.chain(parse(&labels)).collect()
}

fn parse(text: &str) -> Vec<(String, String)> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let named = pairs.filter(|(key, _)| !NOISE.contains(&key.trim()));
    named.map(|(key, value)| (format!("{POD_LABEL}{}", key.trim()), unquoted(value.trim()))).collect()
}

/// Without the quotes of Go's `%q`, which escapes nothing in what labels may hold.
fn unquoted(value: &str) -> String {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.unwrap_or(value).replace("\\\"", "\"").replace("\\\\", "\\")
}

fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_lose_their_quotes_and_noise_is_left_out() {
        let found =
            parse("app.kubernetes.io/name=\"shop\"\npod-template-hash=\"5d59\"\nteam=plain\nnonsense\n");
        let pair = |key: &str, value: &str| (format!("{POD_LABEL}{key}"), value.to_owned());
        assert_eq!(found, [pair("app.kubernetes.io/name", "shop"), pair("team", "plain")]);
    }

    #[test]
    fn a_folder_that_is_not_there_says_nothing() {
        assert_eq!(read(Path::new("/no/such/folder")), []);
    }
}
