//! What a service is called when nobody has said it: as its pod is labelled, else as its program is named.
//!
//! It must not know where labels come from.

use super::{Labels, downward::POD_LABEL};

/// Labels of pods that name what runs in them, the best first.
const NAMES: [&str; 4] = ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app", "k8s-app"];
/// Options of the interpreter that take the next word.
const TAKE_A_WORD: [&str; 2] = ["-X", "-W"];

/// A name from the labels of a pod, or from a command line; never empty.
pub fn name(labels: &Labels, command: &str) -> String {
    let labelled = NAMES.into_iter().find_map(|name| labels.get(&format!("{POD_LABEL}{name}")));
    labelled.cloned().unwrap_or_else(|| of_command(command))
}

/// `python3 -m shop.web` is `shop.web`, `/usr/bin/python3 /srv/main.py` is `main.py`, `gunicorn: master [shop]` is `gunicorn`.
fn of_command(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = base(words.next().unwrap_or_default());
    let named = if program.starts_with("python") { script(words) } else { None };
    let name = named.unwrap_or(program);
    if name.is_empty() { "unknown_service".to_owned() } else { name.to_owned() }
}

/// What an interpreter was told to run.
fn script<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    while let Some(word) = words.next() {
        match word {
            "-m" => return words.next(),
            "-c" => return None,
            _ if TAKE_A_WORD.contains(&word) => drop(words.next()),
            _ if word.starts_with('-') => {}
            _ => return Some(base(word)).filter(|name| !name.is_empty()),
        }
    }
    None
}

fn base(word: &str) -> &str {
    let word = word.trim_end_matches(':');
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_its_service() {
        for (command, name) in [
            ("/usr/bin/python3 /srv/shop/main.py --port 80", "main.py"),
            ("python3.12 -X dev -B -m shop.web", "shop.web"),
            ("python3 -c import\u{a0}this", "python3"),
            ("python3", "python3"),
            ("/srv/venv/bin/gunicorn shop:app", "gunicorn"),
            ("gunicorn: master [shop]", "gunicorn"),
            ("[kworker]", "[kworker]"),
            ("", "unknown_service"),
            ("/", "unknown_service"),
        ] {
            assert_eq!(of_command(command), name, "{command}");
        }
    }

    #[test]
    fn a_pods_own_name_counts_more() {
        let mut labels = Labels::new();
        labels.insert(format!("{POD_LABEL}app"), "shop".to_owned());
        assert_eq!(name(&labels, "python3 main.py"), "shop");
    }
}
