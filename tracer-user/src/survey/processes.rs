//! Every Python process that `/proc` shows, each with a verdict.
//!
//! A host may have thousands of processes and few different interpreters, so a file is looked into once, whatever the number of
//! processes that run it. A process that ends meanwhile is left out.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::binary::Binary;
use super::seen::{self, Image, Namespace, Seen};
use super::verdict::{self, Build, CLibrary, Inspected, Interpreter, Obstacle, Refusal, Tracing};
use crate::discover::{DiscoverError, Target};
use crate::plan::cache::PlanCache;

/// One Python process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonProcess {
    /// Its number here.
    pub pid: u32,
    /// Its number in its own PID namespace, where that is another.
    pub inner_pid: Option<u32>,
    /// Its command line.
    pub command: String,
    /// Its interpreter's version, where that is known.
    pub version: Option<String>,
    /// Where the interpreter lies; `None` where it could not be looked for.
    pub build: Option<Build>,
    /// Whether the program is another one, which has an interpreter in it.
    pub embedded: bool,
    /// The interpreter's file as the process knows it.
    pub file: Option<String>,
    /// Its C library.
    pub c_library: Option<CLibrary>,
    /// Its malloc.
    pub malloc: Option<&'static str>,
    /// Probe points in the interpreter; `None`: not looked for.
    pub points: Option<usize>,
    /// Its PID namespace against ours.
    pub pid_namespace: Namespace,
    /// Its mount namespace against ours.
    pub mount_namespace: Namespace,
    /// The beginning of its container's id.
    pub container: Option<String>,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Whether it can be traced.
    pub tracing: Tracing,
}

/// Looks at all processes below `proc_root` (`/proc`), in order of their numbers.
///
/// `host` is what keeps every process from being traced. Plans come from `cache`; interpreters that it does not know are planned
/// until that has taken `planning` altogether, and after that nobody looks for their points.
///
/// # Errors
/// When `proc_root` itself cannot be listed.
pub fn pythons(
    proc_root: &Path,
    host: Option<&Obstacle>,
    cache: Option<&PlanCache>,
    planning: Duration,
) -> io::Result<Vec<PythonProcess>> {
    let mut survey = Survey { proc_root, host, cache, planning, known: FxHashMap::default() };
    Ok(seen::process_ids(proc_root)?.into_iter().filter_map(|pid| survey.process(pid)).collect())
}

/// What is known already while processes are looked at one by one.
struct Survey<'a> {
    proc_root: &'a Path,
    host: Option<&'a Obstacle>,
    cache: Option<&'a PlanCache>,
    /// What is left of the time for plans.
    planning: Duration,
    /// By the files that may hold the interpreter.
    known: FxHashMap<Vec<Image>, Inspected>,
}

impl Survey<'_> {
    /// `None`: it has ended, or runs no Python.
    fn process(&mut self, pid: u32) -> Option<PythonProcess> {
        match seen::images(self.proc_root, pid) {
            Ok(images) => self.readable(pid, &images),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let seen = Seen::read(self.proc_root, pid)?;
                let is_python = ["python", "pypy"].iter().any(|name| seen.program().starts_with(name));
                is_python.then(|| refused(seen, verdict::not_allowed()))
            }
            Err(_) => None,
        }
    }

    /// Most processes run no Python, and of these nothing but the mappings is read.
    fn readable(&mut self, pid: u32, images: &[Image]) -> Option<PythonProcess> {
        let candidates = candidates(images);
        let file = candidates.first().cloned()?;
        let inspected = match self.known.get(&candidates) {
            Some(known) => known.clone(),
            None => self.inspect(pid, &candidates)?,
        }?;
        let seen = Seen::read(self.proc_root, pid)?;
        let program = images.first().map_or("", Image::base_name);
        let mut found = match inspected {
            Ok(interpreter) => {
                let tracing = verdict::of_interpreter(&interpreter, images, self.host);
                let (version, points) = (Some(interpreter.version), interpreter.points);
                PythonProcess { version, points, tracing, ..unknown(seen) }
            }
            Err(refusal) => refused(seen, refusal),
        };
        found.build =
            Some(if file.base_name().contains("libpython") { Build::Shared } else { Build::Static });
        found.embedded = !program.starts_with("python") && !program.starts_with("pypy");
        found.file = Some(file.name);
        found.c_library = Some(verdict::c_library(images));
        found.malloc = Some(verdict::malloc(images));
        Some(found)
    }

    /// Looks into the files, for this process and all that have the same. `None`: it has ended meanwhile, which says nothing of others.
    fn inspect(&mut self, pid: u32, candidates: &[Image]) -> Option<Inspected> {
        let inspected = match Target::inspect(self.proc_root, pid) {
            Ok(target) => Some(Ok(self.interpreter(&target))),
            Err(DiscoverError::NoProcess { .. }) => return None,
            // What this process may not be asked, another with the same files may.
            Err(error @ (DiscoverError::NotAllowed { .. } | DiscoverError::Read { .. })) => {
                return Some(verdict::of_error(&error).map(Err).filter(|_| is_python_name(candidates)));
            }
            Err(DiscoverError::NotPython { .. }) => self.unrecognised(pid, candidates).map(Err),
            Err(error) => verdict::of_error(&error).map(Err),
        };
        self.known.insert(candidates.to_vec(), inspected.clone());
        Some(inspected)
    }

    fn unrecognised(&self, pid: u32, candidates: &[Image]) -> Option<Refusal> {
        let root = self.proc_root.join(pid.to_string()).join("root");
        candidates.iter().find_map(|image| {
            let path = root.join(image.name.trim_start_matches('/'));
            verdict::of_unrecognised(image.base_name(), Binary::of(&path))
        })
    }

    fn interpreter(&mut self, target: &Target) -> Interpreter {
        let version = target.interpreter.version.to_string();
        let bytes = std::fs::read(&target.interpreter.file.path).unwrap_or_default();
        let plan = self.plan(&bytes);
        let points = plan.as_ref().map(|plan| plan.plan.points.len());
        let notes = plan.map(|plan| plan.checks.notes.iter().map(ToString::to_string).collect());
        Interpreter { version, points, notes: notes.unwrap_or_default() }
    }

    fn plan(&mut self, file: &[u8]) -> Option<crate::plan::InterpreterPlan> {
        let cache = self.cache?;
        if let Some(known) = cache.known_interpreter(file) {
            return Some(known);
        }
        if self.planning.is_zero() {
            return None;
        }
        let start = Instant::now();
        let plan = cache.interpreter(file).ok();
        self.planning = self.planning.saturating_sub(start.elapsed());
        plan
    }
}

/// The files that `Target::inspect` looks into: libpython, then the program.
fn candidates(images: &[Image]) -> Vec<Image> {
    let libraries = images
        .iter()
        .filter(|image| image.base_name().contains("libpython") || image.base_name().starts_with("libpypy"));
    let mut found: Vec<Image> = libraries.cloned().collect();
    if let Some(program) = images.first().filter(|program| !found.contains(program)) {
        found.push(program.clone());
    }
    found
}

fn is_python_name(candidates: &[Image]) -> bool {
    candidates.iter().any(|image| image.base_name().contains("python"))
}

fn refused(seen: Seen, Refusal { version, obstacle }: Refusal) -> PythonProcess {
    PythonProcess { version, tracing: Tracing::No(obstacle), ..unknown(seen) }
}

/// What is known of any process.
fn unknown(seen: Seen) -> PythonProcess {
    PythonProcess {
        pid: seen.pid,
        inner_pid: seen.inner_pid,
        command: seen.command,
        version: None,
        build: None,
        embedded: false,
        file: None,
        c_library: None,
        malloc: None,
        points: None,
        pid_namespace: seen.pid_namespace,
        mount_namespace: seen.mount_namespace,
        container: seen.container,
        resident_bytes: seen.resident_bytes,
        tracing: Tracing::Yes,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A `/proc` with processes in it that do not run.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn process(&self, pid: u32, program: &str, file: &[u8]) -> std::path::PathBuf {
            let folder = self.0.path().join(pid.to_string());
            let path = folder.join("root").join(program.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
            fs::write(folder.join("status"), format!("Name:\tx\nNSpid:\t{pid}\t7\nVmRSS:\t    2048 kB\n"))
                .unwrap();
            fs::write(folder.join("cmdline"), format!("{program}\0main.py\0")).unwrap();
            let maps = format!("1000-2000 r-xp 00000000 fe:01 {pid}      {program}\n");
            fs::write(folder.join("maps"), maps).unwrap();
            folder
        }

        fn pythons(&self) -> Vec<PythonProcess> {
            pythons(self.0.path(), None, None, Duration::ZERO).unwrap()
        }
    }

    fn head(class: u8) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
        head
    }

    #[test]
    fn programs_that_are_no_python_are_left_out() {
        let fake = Fake::new();
        fake.process(10, "/bin/bash", &head(2));
        fake.process(11, "/bin/sh", b"");
        assert_eq!(fake.pythons(), []);
    }

    #[test]
    fn processes_that_vanish_and_kernel_threads_are_left_out() {
        let fake = Fake::new();
        let folder = fake.process(10, "/usr/bin/python3", &head(1));
        fs::remove_file(folder.join("maps")).unwrap();
        let thread = fake.process(11, "/usr/bin/python3", &head(1));
        fs::write(thread.join("status"), "Name:\tkworker/0:1\n").unwrap();
        fs::create_dir(fake.0.path().join("12")).unwrap();
        assert_eq!(fake.pythons(), []);
    }

    #[test]
    fn a_program_of_32_bits_is_told() {
        let fake = Fake::new();
        fake.process(10, "/usr/bin/python3.11", &head(1));
        let found = &fake.pythons()[0];
        assert_eq!((found.pid, found.inner_pid, found.resident_bytes), (10, Some(7), 2 << 20));
        assert_eq!((found.command.as_str(), found.embedded), ("/usr/bin/python3.11 main.py", false));
        let Tracing::No(obstacle) = &found.tracing else { panic!("{found:?}") };
        assert!(obstacle.reason.contains("32-bit"), "{obstacle:?}");
    }

    #[test]
    fn a_libpython_in_another_program_is_embedded() {
        let fake = Fake::new();
        let folder = fake.process(10, "/usr/sbin/uwsgi", &head(2));
        let library = "/usr/lib/libpython3.11.so.1.0";
        fs::create_dir_all(folder.join("root/usr/lib")).unwrap();
        fs::write(folder.join("root").join(&library[1..]), head(1)).unwrap();
        let maps = fs::read_to_string(folder.join("maps")).unwrap();
        fs::write(folder.join("maps"), format!("{maps}3000-4000 r-xp 00000000 fe:01 9 {library}\n")).unwrap();
        let found = &fake.pythons()[0];
        assert_eq!((found.embedded, found.build), (true, Some(Build::Shared)));
        assert_eq!(found.file.as_deref(), Some(library));
    }

    #[test]
    fn this_process_is_no_python() {
        let found = pythons(Path::new("/proc"), None, None, Duration::ZERO).unwrap();
        assert!(found.iter().all(|process| process.pid != std::process::id()));
    }

    proptest::proptest! {
        #[test]
        fn hostile_files_do_no_harm(status in ".{0,200}", maps in ".{0,300}", file in proptest::collection::vec(0_u8.., 0..200)) {
            let fake = Fake::new();
            let folder = fake.process(10, "/usr/bin/python3", &file);
            fs::write(folder.join("maps"), &maps).unwrap();
            let _ = fake.pythons();
            fs::write(folder.join("status"), status).unwrap();
            let _ = fake.pythons();
        }
    }
}
