//! Rules for the docs: paths that they name exist, and there is a change log that users can read.

use super::File;
use std::path::Path;

/// Folders of the checkout whose names make a word in backticks a path.
const FOLDERS: [&str; 5] = ["tracer-ebpf/", "tracer-user/", "xtask/", "docs/", ".ci/"];

/// Paths that a page names and that are not there.
pub fn faults(file: &File, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let Some(text) = file.text().filter(|_| file.has_extension("md")) else { return Vec::new() };
    let mut faults = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for path in named_paths(line).filter(|path| !exists(Path::new(path))) {
            faults.push(format!(
                "line {} of `{}` names `{path}`, which is not there",
                number + 1,
                file.path.display()
            ));
        }
    }
    faults
}

/// Words in backticks that are paths of the checkout. Patterns (`*`, `{}`, `<>`, `…`) and names in capitals stand for many paths and are left alone.
fn named_paths(line: &str) -> impl Iterator<Item = &str> {
    let quoted = line.split('`').skip(1).step_by(2);
    let paths = quoted.filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)));
    let plain = paths.filter(|word| !word.contains(['*', '{', '<', '…', ' ']));
    plain.map(|word| word.split([':', '#']).next().unwrap_or(word))
}

/// The change log must exist and have a place for what comes next.
pub fn change_log(files: &[File]) -> Option<String> {
    let text = files.iter().find(|file| file.path.as_os_str() == "CHANGELOG.md").and_then(File::text);
    match text {
        None => Some("`CHANGELOG.md` is missing; say there what users will notice".to_owned()),
        Some(text) if !text.contains("## [") => {
            Some("`CHANGELOG.md` has no section like `## [Unreleased]`".to_owned())
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn named_paths_must_exist() {
        let page = file(
            "docs/A.md",
            "In `xtask/src/tidy.rs:12` and `xtask/src/gone.rs`, not `Profile` or `docs/*.md`.\n`docs`",
        );
        let found = faults(&page, |path| path == Path::new("xtask/src/tidy.rs"));
        assert_eq!(found, ["line 1 of `docs/A.md` names `xtask/src/gone.rs`, which is not there"]);
    }

    #[test]
    fn the_change_log_is_asked_for() {
        assert!(change_log(&[]).unwrap().contains("missing"));
        assert!(change_log(&[file("CHANGELOG.md", "# Changes\n")]).unwrap().contains("Unreleased"));
        assert_eq!(change_log(&[file("CHANGELOG.md", "# Changes\n\n## [Unreleased]\n")]), None);
    }
}
