//! Whether one Python process can be traced, and if not, why and what to do: from what was seen of it to a verdict.
//!
//! Pure. It must not know how anything was found out.

use serde::Serialize;

use super::binary::Binary;
use super::seen::Image;
use crate::discover::DiscoverError;

/// What keeps something from being traced, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What is in the way.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Obstacle {
    /// Both texts.
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

/// Whether a process can be traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracing {
    /// It can.
    Yes,
    /// It can, but not everything is seen.
    Partly(Obstacle),
    /// It cannot.
    No(Obstacle),
}

/// How an interpreter is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Build {
    /// Inside the program.
    Static,
    /// In a libpython.
    Shared,
}

/// The C library that a process has mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CLibrary {
    /// GNU's.
    Glibc,
    /// musl.
    Musl,
    /// None: it is linked into the program.
    Static,
}

/// What a look into the interpreter's file gave. It is the same for all processes that run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// As Python writes it.
    pub version: String,
    /// Probe points; `None`: nobody has looked for them yet.
    pub points: Option<usize>,
    /// What the finder says against its own plan.
    pub notes: Vec<String>,
}

/// The interpreter, or why it is none for us; `None`: no Python at all.
pub type Inspected = Option<Result<Interpreter, Refusal>>;

/// An interpreter that cannot be traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its version, where that is known.
    pub version: Option<String>,
    /// Why not.
    pub obstacle: Obstacle,
}

/// Other mallocs by the beginning of their libraries' names.
const OTHER_MALLOCS: [(&str, &str); 5] = [
    ("libjemalloc", "jemalloc"),
    ("libtcmalloc", "tcmalloc"),
    ("libmimalloc", "mimalloc"),
    ("libsnmalloc", "snmalloc"),
    ("libhoard", "Hoard"),
];

/// The C library among a process's files.
pub fn c_library(images: &[Image]) -> CLibrary {
    let of_name = |name: &str| match name {
        // Debian's name of musl is `libc.so` alone; glibc's has a number.
        _ if name.starts_with("ld-musl") || name.starts_with("libc.musl") || name == "libc.so" => {
            Some(CLibrary::Musl)
        }
        _ if name.starts_with("libc.so.") || name.starts_with("libc-2.") => Some(CLibrary::Glibc),
        _ => None,
    };
    images.iter().find_map(|image| of_name(image.base_name())).unwrap_or(CLibrary::Static)
}

/// The malloc that a process uses, as far as the names of its files tell.
pub fn malloc(images: &[Image]) -> &'static str {
    let other = images.iter().find_map(|image| other_malloc(image.base_name()));
    other.unwrap_or(match c_library(images) {
        CLibrary::Glibc => "glibc",
        CLibrary::Musl => "musl",
        CLibrary::Static => "unknown",
    })
}

fn other_malloc(name: &str) -> Option<&'static str> {
    OTHER_MALLOCS.iter().find_map(|(start, malloc)| name.starts_with(start).then_some(*malloc))
}

/// The verdict on a process that runs a supported interpreter: what `host` says of all processes comes first.
pub fn of_interpreter(interpreter: &Interpreter, images: &[Image], host: Option<&Obstacle>) -> Tracing {
    if interpreter.points == Some(0) {
        return Tracing::No(Obstacle::new(
            "no allocator code was found in the interpreter",
            "please report this build of CPython",
        ));
    }
    if let Some(obstacle) = host {
        return Tracing::No(obstacle.clone());
    }
    let mut obstacles = partial(interpreter, images);
    if obstacles.is_empty() {
        return Tracing::Yes;
    }
    let first = obstacles.remove(0);
    Tracing::Partly(obstacles.into_iter().fold(first, |all, next| {
        Obstacle::new(format!("{}; {}", all.reason, next.reason), format!("{}; {}", all.remedy, next.remedy))
    }))
}

/// What is not seen although the process can be traced.
fn partial(interpreter: &Interpreter, images: &[Image]) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    if c_library(images) == CLibrary::Static {
        obstacles.push(Obstacle::new(
            "no C library is mapped: memory from a malloc whose symbols are stripped is not seen",
            "use an interpreter that is linked dynamically, or keep its symbols",
        ));
    }
    if !interpreter.notes.is_empty() {
        obstacles.push(Obstacle::new(interpreter.notes.join("; "), "look at the coverage of a recording"));
    }
    obstacles
}

/// What an error of discovery means to a reader. `None`: the process has ended, or is none that could be traced by anybody.
pub fn of_error(error: &DiscoverError) -> Option<Refusal> {
    let refusal = |version: Option<String>, reason: String, remedy: &str| {
        Some(Refusal { version, obstacle: Obstacle::new(reason, remedy) })
    };
    match error {
        DiscoverError::NoProcess { .. } | DiscoverError::NotPython { .. } => None,
        DiscoverError::NotAllowed { .. } => Some(not_allowed()),
        DiscoverError::UnsupportedVersion { version, .. } => {
            let is_old = (version.major, version.minor) < (3, 8);
            let remedy = if is_old { "run it with CPython 3.8 or later" } else { "use a newer alloctrace" };
            refusal(Some(version.to_string()), "only CPython 3.8 to 3.15 can be traced".to_owned(), remedy)
        }
        DiscoverError::PreRelease { version, .. } => refusal(
            Some(version.clone()),
            "the structures of a pre-release are not final".to_owned(),
            "install the release",
        ),
        DiscoverError::FreeThreaded { version, .. } => refusal(
            Some(version.to_string()),
            "free-threaded builds are not supported yet".to_owned(),
            "run it with a build that has the interpreter lock",
        ),
        DiscoverError::Published { version, source, .. } => refusal(
            Some(version.to_string()),
            format!("its table of offsets cannot be used: {source}"),
            "please report this build of CPython",
        ),
        DiscoverError::UnknownVersion { .. } => {
            refusal(None, "it does not say its version".to_owned(), "please report this build of CPython")
        }
        DiscoverError::Read { path, source } => refusal(
            None,
            format!("cannot read `{}`: {source}", path.display()),
            "if it was deleted or replaced, restart the process, or run as root",
        ),
    }
}

/// A process that we may not look into.
pub fn not_allowed() -> Refusal {
    let obstacle = Obstacle::new("not allowed to read the process", "run as root, or with CAP_SYS_PTRACE");
    Refusal { version: None, obstacle }
}

/// What is wrong with a program that is called Python and holds no CPython that we know.
pub fn of_unrecognised(program: &str, binary: Binary) -> Option<Refusal> {
    let is_pypy = program.starts_with("pypy") || program.starts_with("libpypy");
    let is_python = program.starts_with("python") || program.starts_with("libpython");
    let obstacle = match binary {
        _ if is_pypy => Obstacle::new("it is PyPy, which has no pymalloc", "run it with CPython"),
        _ if !is_python => return None,
        Binary::ThirtyTwoBit => {
            Obstacle::new("it is a 32-bit program", "run it with a 64-bit build of Python")
        }
        Binary::Foreign(machine) => Obstacle::new(
            format!("it is built for another architecture (ELF machine {machine})"),
            "run it with a build for this machine",
        ),
        Binary::Native | Binary::Unknown => {
            Obstacle::new("no CPython was recognised in it", "please report this build if it is CPython")
        }
    };
    Some(Refusal { version: None, obstacle })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::target::Version;

    fn images(names: &[&str]) -> Vec<Image> {
        let image = |name: &&str| Image { device: "fe:01".to_owned(), inode: 1, name: (*name).to_owned() };
        names.iter().map(image).collect()
    }

    fn interpreter() -> Interpreter {
        Interpreter { version: "3.11.2".to_owned(), points: Some(254), notes: Vec::new() }
    }

    const GLIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

    #[test]
    fn c_libraries_by_their_names() {
        for (name, expected) in [
            (GLIBC, CLibrary::Glibc),
            ("/lib/libc-2.31.so", CLibrary::Glibc),
            ("/lib/ld-musl-x86_64.so.1", CLibrary::Musl),
            ("/lib/x86_64-linux-musl/libc.so", CLibrary::Musl),
            ("/lib/libcrypto.so.3", CLibrary::Static),
        ] {
            assert_eq!(c_library(&images(&["/usr/bin/python3", name])), expected, "{name}");
        }
    }

    #[test]
    fn what_is_not_seen_is_said() {
        let noted = Interpreter { notes: vec!["a note".to_owned()], ..interpreter() };
        let seen = |of: &Interpreter, names: &[&str]| of_interpreter(of, &images(names), None);
        assert_eq!(seen(&interpreter(), &[GLIBC]), Tracing::Yes);
        assert_eq!(seen(&interpreter(), &[GLIBC, "/usr/lib/libjemalloc.so.2"]), Tracing::Yes);
        for (of, names, part) in [
            (interpreter(), &[][..], "no C library"),
            (noted.clone(), &[GLIBC], "a note"),
            (noted, &[], "is not seen; a note"),
        ] {
            let Tracing::Partly(obstacle) = seen(&of, names) else { panic!("{part}") };
            assert!(obstacle.reason.contains(part), "{obstacle:?}");
        }
    }

    #[test]
    fn the_host_comes_before_what_is_missed_and_the_build_before_the_host() {
        let host = Obstacle::new("no CAP_BPF", "run as root");
        let of = |interpreter: &Interpreter| of_interpreter(interpreter, &images(&[]), Some(&host));
        assert_eq!(of(&interpreter()), Tracing::No(host.clone()));
        let empty = Interpreter { points: Some(0), ..interpreter() };
        let Tracing::No(obstacle) = of(&empty) else { panic!() };
        assert!(obstacle.remedy.contains("report"));
    }

    #[test]
    fn points_that_nobody_has_looked_for_are_no_obstacle() {
        let unknown = Interpreter { points: None, ..interpreter() };
        assert_eq!(of_interpreter(&unknown, &images(&[GLIBC]), None), Tracing::Yes);
    }

    #[test]
    fn errors_say_what_to_do() {
        let version = |minor| Version { major: 3, minor, micro: None };
        let old = of_error(&DiscoverError::UnsupportedVersion { pid: 1, version: version(6) }).unwrap();
        assert_eq!((old.version.as_deref(), old.obstacle.remedy.contains("3.8")), (Some("3.6"), true));
        let new = of_error(&DiscoverError::UnsupportedVersion { pid: 1, version: version(16) }).unwrap();
        assert!(new.obstacle.remedy.contains("newer alloctrace"));
        let free = of_error(&DiscoverError::FreeThreaded { pid: 1, version: version(14) }).unwrap();
        assert!(free.obstacle.reason.contains("free-threaded"));
        assert!(of_error(&DiscoverError::NoProcess { pid: 1 }).is_none());
    }

    #[test]
    fn what_is_called_python_and_is_none_of_ours() {
        let reason =
            |program, binary| of_unrecognised(program, binary).map(|refusal| refusal.obstacle.reason);
        assert!(reason("python3.11", Binary::ThirtyTwoBit).unwrap().contains("32-bit"));
        assert!(reason("libpython3.11.so.1.0", Binary::Foreign(21)).unwrap().contains("machine 21"));
        assert!(reason("pypy3.10", Binary::Native).unwrap().contains("PyPy"));
        assert!(reason("python-wrapper", Binary::Native).unwrap().contains("no CPython"));
        assert_eq!(reason("bash", Binary::ThirtyTwoBit), None);
    }
}
