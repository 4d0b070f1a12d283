//! Packages from a Debian suite that this machine does not follow, by an apt of our own that leaves the machine's alone.
//!
//! The mirror is the one that the machine's own apt sources name, so that a machine behind a local mirror needs no configuration of ours.

use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const NO_DEBIAN: &str = "this machine has no apt sources of Debian to take a mirror from";

/// Where this machine gets Debian from; nothing where it is no Debian.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sources {
    mirror: Option<String>,
    keyring: Option<String>,
}

/// One deb entry: where and which suites.
struct Entry {
    mirror: String,
    suites: Vec<String>,
    components: Vec<String>,
    keyring: Option<String>,
}

impl Sources {
    /// Whether there is a mirror to take packages from.
    pub fn has_mirror(&self) -> bool {
        self.mirror.is_some()
    }

    /// Read the machine's apt configuration below `root`.
    pub fn read(root: &Path) -> Self {
        let release = fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
        let apt = root.join("etc/apt");
        let mut paths = vec![apt.join("sources.list")];
        if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
            paths.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
        }
        paths.sort();
        let texts: Vec<String> = paths.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
        Self::parse(&release, &texts)
    }

    /// The entry that serves the machine's own release, as it says in os-release.
    pub fn parse(os_release: &str, texts: &[String]) -> Self {
        let field = |name: &str| {
            let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.map(|value| value.trim_matches('"').to_owned())
        };
        let (Some("debian"), Some(codename)) = (field("ID").as_deref(), field("VERSION_CODENAME")) else {
            return Self::default();
        };
        let entry = texts.iter().flat_map(|text| entries(text)).find(|entry| {
            entry.suites.contains(&codename) && entry.components.iter().any(|component| component == "main")
        });
        entry.map_or_else(Self::default, |entry| Self { mirror: Some(entry.mirror), keyring: entry.keyring })
    }
}

/// Entries of a file in either of apt's two formats.
fn entries(text: &str) -> Vec<Entry> {
    let one_line = text.lines().filter_map(one_line_entry);
    let stanzas = text.split("\n\n").flat_map(stanza_entries);
    one_line.chain(stanzas).collect()
}

/// `deb [options] MIRROR SUITE COMPONENT...`
fn one_line_entry(line: &str) -> Option<Entry> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let keyring =
        options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(str::to_owned);
    Some(Entry { mirror: words.next()?, suites: vec![words.next()?], components: words.collect(), keyring })
}

/// `Types: deb`, `URIs:`, `Suites:`, `Components:`, `Signed-By:`; one entry for each of the URIs.
fn stanza_entries(stanza: &str) -> Vec<Entry> {
    let field = |name: &str| {
        let found = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    if !field("Types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let keyring = field("Signed-By").into_iter().find(|path| path.starts_with('/'));
    let entry = |mirror| Entry {
        mirror,
        suites: field("Suites"),
        components: field("Components"),
        keyring: keyring.clone(),
    };
    field("URIs").into_iter().map(entry).collect()
}

/// An apt with its own lists, cache and sources, for one suite.
pub struct PrivateApt {
    mirror: String,
    suite: String,
    folder: PathBuf,
}

impl PrivateApt {
    /// Write the configuration into `folder`.
    pub fn new(sources: &Sources, suite: &str, folder: &Path) -> Result<Self> {
        let mirror = sources.mirror.clone().context(NO_DEBIAN)?;
        let keyring = sources.keyring.as_deref().unwrap_or(KEYRING);
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("failed to create `{}`", path.display()))?;
        }
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
        };
        write("sources.list", format!("deb [signed-by={keyring}] {mirror} {suite} main\n"))?;
        write("apt.conf", configuration(folder))?;
        Ok(Self { mirror, suite: suite.to_owned(), folder: folder.to_path_buf() })
    }

    /// The same for packages of another architecture than the machine's.
    pub fn foreign(sources: &Sources, suite: &str, architecture: &str, folder: &Path) -> Result<Self> {
        let apt = Self::new(sources, suite, folder)?;
        let path = folder.join("apt.conf");
        let lines = format!(
            "APT::Architecture \"{architecture}\";\nAPT::Architectures {{ \"{architecture}\"; }};\n{}",
            configuration(folder)
        );
        fs::write(&path, lines).with_context(|| format!("failed to write `{}`", path.display()))?;
        Ok(apt)
    }

    /// Fetch the lists of the suite.
    pub fn update(&self, runner: &impl Runner) -> Result<()> {
        runner
            .output(&self.invocation("apt-get").args(["update", "-qq"]))
            .map(drop)
            .with_context(|| format!("cannot reach Debian's {} at `{}`", self.suite, self.mirror))
    }

    /// Versions of `package` in the suite, newest first as apt lists them.
    pub fn versions(&self, runner: &impl Runner, package: &str) -> Result<Vec<String>> {
        self.update(runner)?;
        let madison = runner.output(&self.invocation("apt-cache").args(["madison", package]))?;
        let version = |line: &str| line.split('|').nth(1).map(|version| version.trim().to_owned());
        Ok(madison.lines().filter_map(version).collect())
    }

    /// Download one package and unpack it; returns the folder that holds its files.
    pub fn unpack(&self, runner: &impl Runner, package: &str, version: &str) -> Result<PathBuf> {
        runner.output(
            &self.invocation("apt-get").args(["download", "-qq"]).args([format!("{package}={version}")]),
        )?;
        let archive = self.archive().with_context(|| {
            format!("cannot find the package that was downloaded in `{}`", self.folder.display())
        })?;
        let unpacked = self.folder.join("unpacked");
        let paths = [archive.display().to_string(), unpacked.display().to_string()];
        runner.output(&self.invocation("dpkg").args(["-x"]).args(paths))?;
        Ok(unpacked)
    }

    /// `packages` and all that they depend on: on a machine that has nothing, as this apt sees it, that is what it would install.
    pub fn with_dependencies(&self, runner: &impl Runner, packages: &[String]) -> Result<Vec<String>> {
        let install = ["install", "-y", "-qq", "--no-install-recommends", "--print-uris"];
        let uris = runner
            .output(&self.invocation("apt-get").args(install).args(packages.iter().map(String::as_str)))?;
        let name = |line: &str| {
            let file = line.strip_prefix('\'')?.split_whitespace().nth(1)?;
            Some(file.split_once('_')?.0.to_owned())
        };
        let names: Vec<String> = uris.lines().filter_map(name).collect();
        ensure!(!names.is_empty(), "Debian's {} has no packages {}", self.suite, packages.join(", "));
        Ok(names)
    }

    /// Download `packages` and unpack the part of each that lies below `part` (`./` for all) into `root`. What links `root` has, as
    /// those of a merged `/usr`, stay.
    pub fn unpack_into(
        &self,
        runner: &impl Runner,
        packages: &[String],
        root: &Path,
        part: &str,
    ) -> Result<()> {
        let folder = self.folder.join("archives");
        for path in [&folder, root] {
            fs::create_dir_all(path).with_context(|| format!("failed to create `{}`", path.display()))?;
        }
        let download = self.invocation("apt-get").args(["download", "-qq"]).directory(&folder);
        runner.output(&download.args(packages.iter().map(String::as_str)))?;
        for package in packages {
            let archive = find_archive(&folder, &format!("{package}_"))
                .with_context(|| format!("`{package}` was not downloaded to `{}`", folder.display()))?;
            let line = "dpkg-deb --fsys-tarfile \"$1\" | tar --extract --directory \"$2\" --keep-directory-symlink \"$3\"";
            let paths = [archive.display().to_string(), root.display().to_string(), part.to_owned()];
            runner.output(&Invocation::new("sh").args(["-c", line, "sh"]).args(paths))?;
            fs::remove_file(&archive).with_context(|| format!("failed to remove `{}`", archive.display()))?;
        }
        Ok(())
    }

    fn archive(&self) -> Option<PathBuf> {
        find_archive(&self.folder, "")
    }

    fn invocation(&self, program: &str) -> Invocation {
        Invocation::new(program)
            .env("APT_CONFIG", self.folder.join("apt.conf").display().to_string())
            .directory(&self.folder)
    }
}

/// A package in `folder` whose file's name begins with `start`.
fn find_archive(folder: &Path, start: &str) -> Option<PathBuf> {
    let mut paths = fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    paths.find(|path| {
        path.extension().is_some_and(|extension| extension == "deb")
            && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start))
    })
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::State \"{folder}\";\nDir::State::Lists \"{folder}/lists\";\nDir::State::status \"/dev/null\";\nDir::Cache \"{folder}/cache\";\n\
         Dir::Etc::SourceList \"{folder}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\nDir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"/dev/null\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";

    fn mirror(text: &str) -> Option<String> {
        Sources::parse(RELEASE, &[text.to_owned()]).mirror
    }

    #[test]
    fn both_formats_of_apt_are_read() {
        let stanzas = "Types: deb\n# comment\nURIs: http://tools.example/node\nSuites: nodistro\nComponents: main\n\n\
                       Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\n";
        assert_eq!(mirror(stanzas).as_deref(), Some("http://mirror.example/debian"));
        let lines = "# deb http://old.example/debian bookworm main\ndeb http://other.example stable main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main\n";
        assert_eq!(mirror(lines).as_deref(), Some("http://mirror.example/debian"));
    }

    #[test]
    fn the_security_suite_alone_is_no_mirror_of_the_archive() {
        assert_eq!(mirror("deb http://mirror.example/debian-security bookworm-security main\n"), None);
    }

    #[test]
    fn another_distribution_has_no_mirror_of_debian() {
        let text = "deb http://mirror.example/ubuntu noble main\n".to_owned();
        assert_eq!(Sources::parse("ID=ubuntu\nVERSION_CODENAME=noble\n", &[text]), Sources::default());
    }

    #[test]
    fn the_private_apt_names_the_machines_mirror_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let line = "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main\n".to_owned();
        PrivateApt::new(&Sources::parse(RELEASE, &[line]), "trixie-backports", folder.path()).unwrap();
        let written = fs::read_to_string(folder.path().join("sources.list")).unwrap();
        assert_eq!(written, "deb [signed-by=/k.gpg] http://mirror.example/debian trixie-backports main\n");
    }

    #[test]
    fn the_private_apt_of_another_architecture_knows_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let line = "deb http://mirror.example/debian bookworm main\n".to_owned();
        PrivateApt::foreign(&Sources::parse(RELEASE, &[line]), "sid", "arm64", folder.path()).unwrap();
        let written = fs::read_to_string(folder.path().join("apt.conf")).unwrap();
        assert!(
            written
                .starts_with("APT::Architecture \"arm64\";\nAPT::Architectures { \"arm64\"; };\nDir::State ")
        );
    }
}
