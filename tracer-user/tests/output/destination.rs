//! Files appear whole or not at all, and what was there keeps what a user gave it.

use std::{
    fs,
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use alloctrace::{
    output::{Format, Options, OutputError, check_writable, produce, write},
    profile::{Metric, Unit},
};
use tempfile::tempdir;

use crate::fixture;

const OPTIONS: Options = Options { metric: Metric::Peak, unit: Unit::Bytes };

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn endings_name_formats() {
    for (name, format) in [
        ("a.pb.gz", Format::Pprof),
        ("A.SVG", Format::Svg),
        ("x/y.folded", Format::Folded),
        ("a.json", Format::Json),
        ("a.speedscope.json", Format::Speedscope),
    ] {
        assert_eq!(Format::of(Path::new(name)).unwrap(), format, "{name}");
    }
    for name in ["a.png", "a", "", "-", "a.gz", "/"] {
        let error = Format::of(Path::new(name)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "cannot tell the format of `{name}`: end it in one of .pb.gz, .svg, .folded, .speedscope.json, .json"
            )
        );
    }
}

#[test]
fn a_failure_leaves_what_was_there() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("out.svg");
    fs::write(&path, "before").unwrap();
    let result = produce(&path, |writer| {
        writer.write_all(&[b'x'; 1 << 20]).unwrap();
        Err(OutputError::NoTypes)
    });
    assert!(result.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    assert_eq!(names_in(folder.path()), ["out.svg"]);
}

#[test]
fn a_check_leaves_nothing_behind_and_changes_nothing() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("out.folded");
    check_writable(&path).unwrap();
    assert!(names_in(folder.path()).is_empty());
    fs::write(&path, "before").unwrap();
    check_writable(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    for stream in ["-", "/dev/stdout", "/dev/null"] {
        check_writable(Path::new(stream)).unwrap();
    }
}

#[test]
fn impossible_outputs_are_found_beforehand() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for (name, expected) in [
        ("missing/out.svg", "cannot create a file in"),
        ("file/out.svg", "cannot write"),
        ("", "is a folder"),
        ("new.svg/", "is a folder"),
    ] {
        let path = folder.path().join(name);
        let error = check_writable(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert!(produce(&path, |_| Ok(())).is_err());
    }
    assert!(check_writable(Path::new("")).is_err());
    assert_eq!(names_in(folder.path()), ["file"]);
}

#[test]
fn new_files_get_the_umask_s_mode_and_old_ones_keep_theirs() {
    let folder = tempdir().unwrap();
    let (plain, path) = (folder.path().join("plain"), folder.path().join("out.folded"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    fs::write(&plain, "").unwrap();
    write(&fixture::example(), &path, OPTIONS).unwrap();
    assert_eq!(mode(&path), mode(&plain));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    write(&fixture::example(), &path, OPTIONS).unwrap();
    assert_eq!(mode(&path), 0o640);
}

#[test]
fn links_stay_links() {
    let folder = tempdir().unwrap();
    let (target, link) = (folder.path().join("target.folded"), folder.path().join("link.folded"));
    symlink("target.folded", &link).unwrap();
    // First to a file that does not exist yet, then to one that does.
    for _ in 0..2 {
        check_writable(&link).unwrap();
        write(&fixture::example(), &link, OPTIONS).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::metadata(&target).unwrap().len() > 0);
    }
    let circle = folder.path().join("circle.svg");
    symlink("circle.svg", &circle).unwrap();
    assert!(check_writable(&circle).is_err());
}

#[test]
fn pipes_are_written_to_and_not_replaced() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("pipe.folded");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    check_writable(&pipe).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || {
            let mut text = String::new();
            fs::File::open(pipe).unwrap().read_to_string(&mut text).unwrap();
            text
        }
    });
    write(&fixture::example(), &pipe, OPTIONS).unwrap();
    assert!(reader.join().unwrap().contains("get_lessons"));
    assert_eq!(names_in(folder.path()), ["pipe.folded"]);
}
