//! The plan cache: what it keeps, and that nothing damaged, foreign or writable by others is believed.

#![expect(clippy::expect_used, reason = "the fixture fails as tests do")]

#[path = "plan_x86/program.rs"]
#[expect(dead_code, reason = "the assembler is for plan_x86")]
mod program;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use alloctrace::plan::cache::PlanCache;
use alloctrace::plan::{InterpreterPlan, plan_interpreter};
use program::elf;

/// `mov 8(%rcx),%rax; addl $1,(%rcx); mov (%rax),%rdx; mov %rdx,8(%rcx); test %rdx,%rdx; je; ret`.
const POP: &[u8] = b"\x48\x8b\x41\x08\x83\x01\x01\x48\x8b\x10\x48\x89\x51\x08\x48\x85\xd2\x74\x00\xc3";

struct Fixture {
    directory: tempfile::TempDir,
    cache: PlanCache,
    file: Vec<u8>,
    fresh: InterpreterPlan,
}

impl Fixture {
    /// A cache that holds one plan.
    fn filled() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let cache = PlanCache::at(directory.path().join("plans"));
        let file = elf(POP);
        let fresh = plan_interpreter(&file).expect("a sound file");
        assert_eq!(fresh.plan.points.len(), 1);
        assert_eq!(cache.interpreter(&file).as_ref(), Ok(&fresh));
        Self { directory, cache, file, fresh }
    }

    fn entry(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.directory.path().join("plans")).expect("the cache directory");
        entries.next().expect("one entry").expect("a readable directory").path()
    }

    fn change_entry(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(self.entry()).expect("the entry");
        let changed = change(text.clone());
        assert_ne!(text, changed, "the change does not apply");
        fs::write(self.entry(), changed).expect("to write the entry");
    }

    /// Whether the next answer comes from the cache, told by a mark that only the entry has.
    fn believes(&self) -> bool {
        let answer = self.cache.interpreter(&self.file).expect("a sound file");
        let believed = answer.checks.pool_size == Some(123);
        assert!(believed || answer == self.fresh, "neither the entry nor a fresh plan");
        believed
    }

    fn mark_entry(&self) {
        self.change_entry(|text| text.replace("\"pool_size\":null", "\"pool_size\":123"));
    }
}

#[test]
fn answers_from_the_cache() {
    let fixture = Fixture::filled();
    fixture.mark_entry();
    assert!(fixture.believes());
}

#[test]
fn keeps_purposes_apart() {
    let fixture = Fixture::filled();
    assert_eq!(fixture.cache.malloc(&fixture.file).map(|plan| plan.points), Ok(Vec::new()));
    assert_eq!(fixture.cache.interpreter(&fixture.file), Ok(fixture.fresh));
}

#[test]
fn ignores_another_file_with_the_same_build_id() {
    let fixture = Fixture::filled();
    let longer = elf(&[POP, b"\xcc"].concat());
    assert_eq!(fixture.cache.interpreter(&longer), plan_interpreter(&longer));
    fs::rename(fixture.entry(), fixture.directory.path().join("kept")).expect("to move one entry away");
}

#[test]
fn ignores_damage_and_repairs_it() {
    type Change = fn(String) -> String;
    let changes: [Change; 9] = [
        |text| text[..text.len() / 2].to_owned(),
        |_| String::new(),
        |_| "[".repeat(100_000),
        |text| text.replace("\"format\":", "\"format\":9"),
        |text| text.replace("\"file_size\":", "\"file_size\":1"),
        |text| text.replace("\"build_id\":\"", "\"build_id\":\"00"),
        |text| text.replace("\"pool\":1", "\"pool\":200"),
        |text| text.replace("\"offset\":", "\"offset\":9999999"),
        |text| text + &" ".repeat(5 << 20),
    ];
    for change in changes {
        let fixture = Fixture::filled();
        fixture.mark_entry();
        fixture.change_entry(change);
        assert!(!fixture.believes());
        fixture.mark_entry();
        assert!(fixture.believes(), "a fresh plan replaces the damaged one");
    }
}

#[test]
fn ignores_what_others_could_have_written() {
    let fixture = Fixture::filled();
    fixture.mark_entry();
    fs::set_permissions(fixture.entry(), fs::Permissions::from_mode(0o666)).expect("to open up the entry");
    assert!(!fixture.believes());

    let fixture = Fixture::filled();
    fixture.mark_entry();
    let (entry, moved) = (fixture.entry(), fixture.directory.path().join("moved"));
    fs::rename(&entry, &moved).expect("to move the entry");
    std::os::unix::fs::symlink(&moved, &entry).expect("to put a link in its place");
    assert!(!fixture.believes());
}

#[test]
fn plans_without_a_usable_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let blocked = directory.path().join("a file");
    fs::write(&blocked, "").expect("to write a file");
    let file = elf(POP);
    assert_eq!(PlanCache::at(blocked.join("plans")).interpreter(&file), plan_interpreter(&file));
}

#[test]
fn leaves_no_other_files_behind() {
    let fixture = Fixture::filled();
    let count = fs::read_dir(fixture.directory.path().join("plans")).expect("the cache directory").count();
    assert_eq!(count, 1);
    let mode =
        fs::metadata(fixture.directory.path().join("plans")).expect("the directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
