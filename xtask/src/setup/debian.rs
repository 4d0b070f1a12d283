//! Packages from a Debian suite that this machine does not follow, by an apt of our own that leaves the machine's alone.
//!
//! The mirror is the one that the machine's own apt sources name, so that a machine behind a local mirror needs no configuration of ours.

use crate::command::{Invocation, Runner};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const NO_DEBIAN: &str = "this machine has no apt sources of Debian to take a mirror from";

/// Keep what was parsed. Images for containers turn that off (`docker-clean`), and each call then parses the lists of three suites again, which takes 5 s
/// instead of 1; a file that `APT_CONFIG` names is read too early to turn it on.
const PARSED_LISTS: &str = "Dir::Cache::pkgcache=pkgcache.bin";
const PARSED_SOURCES: &str = "Dir::Cache::srcpkgcache=srcpkgcache.bin";

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

/// An apt with its own lists, cache and sources.
pub struct PrivateApt {
    mirror: String,
    suites: String,
    folder: PathBuf,
}

impl PrivateApt {
    /// Write the configuration into `folder`.
    pub fn new(sources: &Sources, suite: &str, folder: &Path) -> Result<Self> {
        Self::with(sources, &[suite], None, folder)
    }

    /// The same with the suite's source packages.
    pub fn with_sources(sources: &Sources, suite: &str, folder: &Path) -> Result<Self> {
        let apt = Self::new(sources, suite, folder)?;
        let path = folder.join("sources.list");
        let failed = || format!("failed to write `{}`", path.display());
        let lines = fs::read_to_string(&path).with_context(failed)?;
        let more = lines.replace("deb [", "deb-src [");
        fs::write(&path, lines + &more).with_context(failed)?;
        Ok(apt)
    }

    /// The same for several suites, and for another architecture than the machine's.
    pub fn with(
        sources: &Sources,
        suites: &[&str],
        architecture: Option<&str>,
        folder: &Path,
    ) -> Result<Self> {
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
        let lines = suites.iter().map(|suite| format!("deb [signed-by={keyring}] {mirror} {suite} main\n"));
        write("sources.list", lines.collect())?;
        let machine = architecture.map_or_else(String::new, |name| {
            format!("APT::Architecture \"{name}\";\nAPT::Architectures {{ \"{name}\"; }};\n")
        });
        write("apt.conf", configuration(folder) + &machine)?;
        Ok(Self { mirror, suites: suites.join(", "), folder: folder.to_path_buf() })
    }

    /// Read the mirror's lists.
    pub fn update(&self, runner: &impl Runner) -> Result<()> {
        runner
            .output(&self.invocation("apt-get").args(["update", "-qq"]))
            .map(drop)
            .with_context(|| format!("cannot reach Debian's {} at `{}`", self.suites, self.mirror))
    }

    /// The same, unless it has been done in the last twelve hours: an update of three suites takes longer than the boot of a machine.
    pub fn update_if_old(&self, runner: &impl Runner) -> Result<()> {
        let stamp = self.folder.join("updated");
        let age =
            fs::metadata(&stamp).and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < Duration::from_hours(12)) {
            return Ok(());
        }
        self.update(runner)?;
        fs::write(&stamp, "").with_context(|| format!("failed to write `{}`", stamp.display()))
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

    /// The names of `packages` of a suite and of all that they depend on, sorted: on a machine that has nothing, as this apt sees it, that is
    /// what it would install.
    pub fn with_dependencies(
        &self,
        runner: &impl Runner,
        suite: &str,
        packages: &[impl AsRef<str>],
    ) -> Result<Vec<String>> {
        let install = ["install", "-y", "-t", suite, "--no-install-recommends", "--print-uris", "-qq"];
        let asked = packages.iter().map(AsRef::as_ref);
        let uris = runner.output(&self.lists().args(install).args(asked))?;
        let name = |line: &str| Some(uri_file(line)?.split_once('_')?.0.to_owned());
        let mut names: Vec<String> = uris.lines().filter_map(name).collect();
        ensure!(!names.is_empty(), "Debian's {suite} has no packages {}", list(packages));
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Download packages of a suite into `folder` unless they are there, and return the files.
    pub fn download(
        &self,
        runner: &impl Runner,
        suite: &str,
        packages: &[impl AsRef<str>],
        folder: &Path,
    ) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
        let asked = packages.iter().map(|name| format!("{}/{suite}", name.as_ref()));
        let command = self.lists().args(["download", "-qq"]).args(asked);
        let uris = runner.output(&command.clone().args(["--print-uris"]))?;
        let files: Vec<PathBuf> = uris.lines().filter_map(uri_file).map(|file| folder.join(file)).collect();
        ensure!(files.len() >= packages.len(), "Debian's {suite} lacks packages of {}", list(packages));
        if !files.iter().all(|file| file.exists()) {
            runner.output(&command.directory(folder))?;
        }
        Ok(files)
    }

    /// Download the upstream archive of a source package into `folder`, unless one is there.
    pub fn download_source(&self, runner: &impl Runner, source: &str, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
        let words = ["source", "-qq", "--download-only", "--tar-only", source];
        runner.output(&self.invocation("apt-get").args(words).directory(folder)).map(drop)
    }

    /// Download packages of a suite, unpack the part of each that lies below `part` (`./` for all) into `root`, and keep no archive.
    pub fn unpack_into(
        &self,
        runner: &impl Runner,
        suite: &str,
        packages: &[impl AsRef<str>],
        root: &Path,
        part: &str,
    ) -> Result<()> {
        for archive in self.download(runner, suite, packages, &self.folder.join("archives"))? {
            unpack_archive(runner, &archive, root, part)?;
            fs::remove_file(&archive).with_context(|| format!("failed to remove `{}`", archive.display()))?;
        }
        Ok(())
    }

    fn archive(&self) -> Option<PathBuf> {
        let mut paths = fs::read_dir(&self.folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        paths.find(|path| path.extension().is_some_and(|extension| extension == "deb"))
    }

    /// For calls that read the lists, of which there are many.
    fn lists(&self) -> Invocation {
        self.invocation("apt-get").args(["-o", PARSED_LISTS, "-o", PARSED_SOURCES])
    }

    fn invocation(&self, program: &str) -> Invocation {
        Invocation::new(program)
            .env("APT_CONFIG", self.folder.join("apt.conf").display().to_string())
            .directory(&self.folder)
    }
}

/// Unpack the part of a package that lies below `part` (`./` for all) into `root`. What links `root` has, as those of a merged `/usr`, stay:
/// `dpkg-deb -x` would replace them by the folders of older packages.
pub fn unpack_archive(runner: &impl Runner, archive: &Path, root: &Path, part: &str) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("failed to create `{}`", root.display()))?;
    let line =
        "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --keep-directory-symlink --no-same-owner \"$3\"";
    let paths = [archive.display().to_string(), root.display().to_string(), part.to_owned()];
    runner.output(&Invocation::new("sh").args(["-c", line, "unpack"]).args(paths)).map(drop)
}

/// The file that a line of `--print-uris` names: `'http://MIRROR/pool/FILE' NAME_VERSION_ARCHITECTURE.deb SIZE SUM`.
fn uri_file(line: &str) -> Option<&str> {
    line.strip_prefix('\'')?.split_whitespace().nth(1)
}

fn list(packages: &[impl AsRef<str>]) -> String {
    packages.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

/// What only software centres read is not downloaded.
fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::State \"{folder}\";\nDir::State::Lists \"{folder}/lists\";\nDir::State::status \"/dev/null\";\nDir::Cache \"{folder}/cache\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
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
        PrivateApt::with(&Sources::parse(RELEASE, &[line]), &["sid"], Some("arm64"), folder.path()).unwrap();
        let written = fs::read_to_string(folder.path().join("apt.conf")).unwrap();
        assert!(
            written.ends_with(
                "APT::Architecture \"arm64\";
APT::Architectures { \"arm64\"; };
"
            ),
            "{written}"
        );
    }
}
