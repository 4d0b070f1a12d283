//! The verbs that read profiles, as a user calls them: standard output, one line of error, exit status.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use alloctrace::profile::{Profile, pprof};
use assert_cmd::{assert::Assert, cargo::cargo_bin_cmd};
use tempfile::{TempDir, tempdir};

use crate::{damaged::gzip, fixture};

/// A folder with `example.pb.gz` and `empty.pb.gz` in it.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        let folder = Self(tempdir().unwrap());
        folder.save("example.pb.gz", &fixture::example());
        folder.save("empty.pb.gz", &Profile { samples: Vec::new(), ..fixture::example() });
        folder
    }

    pub fn save(&self, name: &str, profile: &Profile) {
        fs::write(self.path(name), pprof::encode(profile).unwrap()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, arguments: &[&str]) -> Assert {
        cargo_bin_cmd!("alloctrace").current_dir(self.0.path()).args(arguments).assert()
    }

    /// Runs, and returns standard output.
    #[track_caller]
    pub fn output(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.run(arguments).success().stderr("").get_output().stdout.clone()).unwrap()
    }

    /// Fails with `status`, with nothing on standard output, and returns its one line of error.
    #[track_caller]
    pub fn error(&self, arguments: &[&str], status: i32) -> String {
        let assert = self.run(arguments).code(status);
        assert!(assert.get_output().stdout.is_empty());
        let text = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.contains('\n') && !line.ends_with('.'), "{line}");
        line.strip_prefix("alloctrace: ").unwrap().to_owned()
    }
}

pub fn golden(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/output").join(name)).unwrap()
}

#[test]
fn report_prints_a_table() {
    let folder = Folder::new();
    assert_eq!(folder.output(&["report", "example.pb.gz", "--top", "4"]), golden("example.line.txt"));
    let text = folder.output(&["report", "example.pb.gz", "--by", "stack", "--metric", "peak", "--top", "4"]);
    assert_eq!(text, golden("example.stack.txt"));
    assert!(folder.output(&["report", "example.pb.gz"]).ends_with("all rows shown\n"));
}

#[test]
fn report_prints_json_and_csv() {
    let folder = Folder::new();
    let json = folder.output(&["report", "example.pb.gz", "--metric", "live", "--format", "json"]);
    assert_eq!(json, golden("example.line.json"));
    let csv =
        folder.output(&["report", "example.pb.gz", "--by", "module", "--unit", "count", "--format", "csv"]);
    assert_eq!(csv, golden("example.module.csv"));
    let top = folder.output(&["report", "example.pb.gz", "--format", "json", "--top", "2"]);
    let top: serde_json::Value = serde_json::from_str(&top).unwrap();
    assert_eq!((top["rows"].as_array().unwrap().len(), &top["rows_omitted"]), (2, &4.into()));
}

#[test]
fn report_reads_standard_input() {
    let bytes = pprof::encode(&fixture::example()).unwrap();
    let assert = cargo_bin_cmd!("alloctrace").args(["report", "-", "--top", "4"]).write_stdin(bytes).assert();
    assert.success().stdout(golden("example.line.txt"));
}

#[test]
fn types_are_not_recorded() {
    let error = Folder::new().error(&["report", "example.pb.gz", "--by", "type"], 2);
    assert!(error.starts_with("the profile was recorded without types: "), "{error}");
}

#[test]
fn a_folder_that_is_not_there_is_named_and_no_other_file() {
    let error = Folder::new().error(&["convert", "example.pb.gz", "-o", "not-there/out.svg"], 2);
    assert!(error.starts_with("cannot create a file in `not-there` "), "{error}");
    assert!(!error.contains(".alloctrace-"), "{error}");
}

#[test]
fn flamegraph_draws() {
    let folder = Folder::new();
    assert_eq!(folder.output(&["flamegraph", "example.pb.gz", "-o", "out.svg"]), "");
    assert_eq!(fs::read_to_string(folder.path("out.svg")).unwrap(), golden("example.svg"));
    let inverted =
        ["flamegraph", "example.pb.gz", "--inverted", "--metric", "allocated", "--unit", "count", "-o", "-"];
    assert_eq!(folder.output(&inverted), golden("example.inverted.svg"));
    let diff =
        folder.output(&["flamegraph", "example.pb.gz", "--diff", "example.pb.gz", "-o", "/dev/stdout"]);
    assert!(diff.contains("16.41 MiB to 16.41 MiB (+0 B)"), "{diff}");
}

#[test]
fn convert_writes_every_format() {
    let folder = Folder::new();
    for (name, expected) in [
        ("out.folded", golden("example.folded")),
        ("out.svg", golden("example.svg")),
        ("out.speedscope.json", golden("example.speedscope.json")),
    ] {
        assert_eq!(folder.output(&["convert", "example.pb.gz", "-o", name]), "");
        assert_eq!(fs::read_to_string(folder.path(name)).unwrap(), expected);
    }
    folder.output(&["convert", "example.pb.gz", "--metric", "live", "-o", "out.json"]);
    assert_eq!(fs::read_to_string(folder.path("out.json")).unwrap(), golden("example.line.json"));
    folder.output(&["convert", "example.pb.gz", "-o", "copy.pb.gz"]);
    assert_eq!(fs::read(folder.path("copy.pb.gz")).unwrap(), fs::read(folder.path("example.pb.gz")).unwrap());
    let folded = folder.output(&["convert", "example.pb.gz", "-o", "-", "--format", "folded"]);
    assert_eq!(folded, golden("example.folded"));
}

#[test]
fn an_output_that_cannot_be_is_an_error() {
    let folder = Folder::new();
    let error = folder.error(&["convert", "example.pb.gz", "-o", "out.png"], 2);
    assert_eq!(
        error,
        "cannot tell the format of `out.png`: end it in one of .pb.gz, .svg, .folded, .speedscope.json, .json"
    );
    let error = folder.error(&["convert", "example.pb.gz", "-o", "missing/out.svg"], 2);
    assert!(
        error.starts_with(
            "cannot create a file in `missing` (choose another folder for the output): no such file"
        ),
        "{error}"
    );
    let error = folder.error(&["flamegraph", "example.pb.gz", "-o", "."], 2);
    assert!(error.starts_with("`.` is a folder"), "{error}");
    let error = folder.error(&["convert", "example.pb.gz", "--format", "folded", "-o", "/dev/full"], 2);
    assert!(error.starts_with("cannot write the output: no space left"), "{error}");
}

#[test]
fn damaged_profiles_are_one_line_and_status_2() {
    let folder = Folder::new();
    let good = fs::read(folder.path("example.pb.gz")).unwrap();
    let bomb = gzip(&vec![0; 600 << 20]);
    let noise: Vec<u8> = (0..4096_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (name, bytes, expected) in [
        ("zero.pb.gz", &b""[..], "the file is empty"),
        ("short.pb.gz", &good[..good.len() / 2], "the file is truncated"),
        ("noise.pb.gz", &noise, "not a pprof profile"),
        ("noise2.pb.gz", &gzip(&noise), "not a pprof profile"),
        ("text.pb.gz", b"hello\n", "not a pprof profile"),
        ("bomb.pb.gz", &bomb, "more than 512 MiB once decompressed"),
    ] {
        fs::write(folder.path(name), bytes).unwrap();
        for verb in
            [&["report", name][..], &["flamegraph", name, "-o", "x.svg"], &["convert", name, "-o", "x.json"]]
        {
            let error = folder.error(verb, 2);
            assert!(error.starts_with(&format!("cannot read profile `{name}`: {expected}")), "{error}");
        }
    }
    assert!(!folder.path("x.svg").exists() && !folder.path("x.json").exists());
    let error = folder.error(&["report", "missing.pb.gz"], 2);
    assert!(error.starts_with("cannot read profile `missing.pb.gz`: "), "{error}");
    let error = folder.error(&["report", "."], 2);
    assert_eq!(error, "cannot read profile `.`: it is a folder: name a file in it");
}

#[test]
fn a_profile_of_nothing_is_status_1() {
    let folder = Folder::new();
    let line = "nothing was recorded in `empty.pb.gz`";
    assert_eq!(folder.error(&["flamegraph", "empty.pb.gz", "-o", "x.svg"], 1), line);
    assert_eq!(folder.error(&["convert", "empty.pb.gz", "-o", "x.folded"], 1), line);
    assert!(!folder.path("x.svg").exists() && !folder.path("x.folded").exists());
    let report = folder.run(&["report", "empty.pb.gz", "--format", "json"]).code(1);
    let document: serde_json::Value = serde_json::from_slice(&report.get_output().stdout).unwrap();
    assert_eq!(document["rows"].as_array().unwrap().len(), 0);
}

#[test]
fn a_metric_of_nothing_cannot_be_drawn() {
    let folder = Folder::new();
    let mut profile = fixture::example();
    for sample in &mut profile.samples {
        sample.values.live = Default::default();
    }
    folder.save("freed.pb.gz", &profile);
    let error = folder.error(&["flamegraph", "freed.pb.gz", "--metric", "live", "-o", "x.svg"], 2);
    assert_eq!(error, "nothing to draw: the profile holds no live memory; choose another --metric");
    let text = folder.output(&["report", "freed.pb.gz", "--metric", "live"]);
    assert!(text.ends_with("no live memory in this profile\n"), "{text}");
}

#[test]
fn usage_errors_are_one_line_and_status_2() {
    let folder = Folder::new();
    for (arguments, expected) in [
        (&["report"][..], "the following required arguments were not provided: <PROFILE> (see --help)"),
        (
            &["flamegraph", "x"],
            "the following required arguments were not provided: --output <FILE.svg> (see --help)",
        ),
        (
            &["report", "x", "--by", "colour"],
            "invalid value 'colour' for '--by <WHAT>' [possible values: line, function, file, module, stack, type, process, thread] (see --help)",
        ),
        (
            &["report", "x", "--top", "-3"],
            "unexpected argument '-3' found; tip: to pass '-3' as a value, use '-- -3' (see --help)",
        ),
        (
            &["report", "x", "--top", "many"],
            "invalid value 'many' for '--top <N>': invalid digit found in string (see --help)",
        ),
        (&["frobnicate"], "unrecognized subcommand 'frobnicate' (see --help)"),
        (&["man", "frobnicate"], "no verb `frobnicate`: see `alloctrace --help`"),
    ] {
        assert_eq!(folder.error(arguments, 2), expected);
    }
}

#[test]
fn help_version_completions_and_manual() {
    let folder = Folder::new();
    assert!(folder.output(&["--version"]).starts_with("alloctrace "));
    for verb in ["report", "flamegraph", "convert", "completions", "man"] {
        assert!(folder.output(&["--help"]).contains(verb));
        assert!(folder.output(&[verb, "--help"]).contains("Usage: alloctrace"), "{verb}");
        assert!(folder.output(&["man", verb]).contains(&format!("alloctrace\\-{verb}")), "{verb}");
    }
    assert!(folder.output(&["man"]).contains(".TH alloctrace 1"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(folder.output(&["completions", shell]).contains("inverted"), "{shell}");
    }
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let folder = Folder::new();
    for arguments in [&["convert", "example.pb.gz", "--format", "svg", "-o", "-"][..], &["--help"]] {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("alloctrace"))
            .current_dir(folder.0.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{arguments:?}");
    }
}

/// An appending redirection must not lose what the file holds.
#[test]
fn standard_output_is_written_to_and_not_replaced() {
    let folder = Folder::new();
    fs::write(folder.path("log"), "before\n").unwrap();
    let log = fs::OpenOptions::new().append(true).open(folder.path("log")).unwrap();
    let status = Command::new(assert_cmd::cargo::cargo_bin!("alloctrace"))
        .current_dir(folder.0.path())
        .args(["convert", "example.pb.gz", "--format", "folded", "-o", "/dev/stdout"])
        .stdout(log)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(
        fs::read_to_string(folder.path("log")).unwrap(),
        format!("before\n{}", golden("example.folded"))
    );
}

#[test]
fn memory_that_was_not_seen_is_said_wherever_a_figure_is() {
    let folder = Folder::new();
    let mut blind = fixture::example();
    blind.processes[1].unseen.push("no malloc was found \x1b[2J".to_owned());
    folder.save("blind.pb.gz", &blind);
    let said = "some memory was not seen";
    assert!(folder.output(&["report", "blind.pb.gz"]).contains(said));
    assert!(!folder.output(&["report", "example.pb.gz"]).contains(said));
    let json = folder.output(&["report", "blind.pb.gz", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["processes"][1]["unseen"][0], "no malloc was found \x1b[2J");
    folder.run(&["flamegraph", "blind.pb.gz", "-o", "blind.svg"]).success();
    assert!(fs::read_to_string(folder.path("blind.svg")).unwrap().contains(said));
    let lines = alloctrace::output::summary::lines(&blind);
    let last = lines.last().unwrap();
    assert!(
        last.contains("[4712]") && last.contains("no malloc was found ") && !last.contains('\x1b'),
        "{last}"
    );
}
