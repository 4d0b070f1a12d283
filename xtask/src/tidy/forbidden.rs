//! What must not get into the repository: folders of somebody's machine, and names of package servers, which each machine has its own of.

use super::File;

/// First parts of absolute paths that exist on one machine only.
const FOLDERS: [&str; 3] = ["/root", "/work", "/home"];
/// Parts of the names of package servers.
const SERVERS: [&str; 7] = [
    "crates.io",
    "static.rust-lang.org",
    "pypi.org",
    "pythonhosted.org",
    "deb.debian.org",
    "proxy.golang.org",
    "registry.npmjs.org",
];
/// Files that have a right to such words: cargo writes its registry into the lock file, and this one lists them.
const EXEMPT: [&str; 2] = ["Cargo.lock", "xtask/src/tidy/forbidden.rs"];

/// The forbidden words of this file, with their lines where it has lines.
pub fn faults(file: &File) -> Vec<String> {
    if EXEMPT.iter().any(|path| file.path.as_os_str() == *path) {
        return Vec::new();
    }
    // Objects count as well: a path that the compiler left in one makes it another object on another machine.
    let text = String::from_utf8_lossy(&file.bytes);
    let words = |line: &str| {
        let folders = FOLDERS.into_iter().filter(|folder| names_folder(line, folder));
        folders
            .chain(SERVERS.into_iter().filter(|server| line.contains(server)))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut faults = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let place = if file.text().is_some() { format!("line {} of ", number + 1) } else { String::new() };
        faults.extend(
            words(line).iter().map(|word| format!("{place}`{}` names `{word}`", file.path.display())),
        );
    }
    faults
}

/// Whether the line has the folder as the beginning of an absolute path, not as a part of a longer word or path.
fn names_folder(line: &str, folder: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || "._-~})>*$/".contains(character);
    line.match_indices(folder).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + folder.len()..].chars().next();
        !before.is_some_and(is_word) && after == Some('/')
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn paths_of_one_machine_are_found() {
        assert_eq!(
            faults(&file("a.rs", "x\nlet a = \"/root/.pyenv\";\n")),
            ["line 2 of `a.rs` names `/root`"]
        );
        assert_eq!(faults(&file("a.md", "see /home/me/x")).len(), 1);
    }

    #[test]
    fn other_paths_with_such_parts_are_not() {
        for line in [
            "/proc/{pid}/root/usr",
            "/proc/PID/root/",
            "/workspace/x",
            "a/work/b",
            "./work/",
            "https://x.example/home/",
            "/root",
        ] {
            assert!(faults(&file("a.rs", line)).is_empty(), "{line}");
        }
    }

    #[test]
    fn package_servers_are_found() {
        assert_eq!(faults(&file("a.sh", "curl https://pypi.org/simple")).len(), 1);
    }

    #[test]
    fn objects_are_searched_too() {
        let object =
            File { path: "tracer.o".into(), bytes: b"\x7fELF\xff\0/root/.cargo/registry\0".to_vec() };
        assert_eq!(faults(&object), ["`tracer.o` names `/root`"]);
    }
}
