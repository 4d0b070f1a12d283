//! A real browser on the page and the flame graph: hostile names run nothing, the policy forbids nothing that is ours, and it can be looked at.
//!
//! `ALLOCTRACE_SCREENSHOTS=FOLDER` keeps pictures there.

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use alloctrace::profile::{FrameKind, Profile};

use crate::{
    fixture,
    support::{Served, Told, service, told},
};

pub const TESTS: &[(&str, fn())] = &[
    ("the_test_would_notice_a_script", would_notice),
    ("hostile_names_run_nothing_in_the_page", page),
    ("hostile_names_run_nothing_in_the_flame_graph", drawing),
    ("the_viewer_of_flame_graphs_works", viewer),
    ("pictures_are_drawn", pictures),
];

/// Each changes the title, if it runs.
const ATTACKS: [&str; 8] = [
    "<script>document.title='owned'</script>",
    "</title></style></script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=\"document.title='owned'\">",
    "' onmouseover='document.title=1' autofocus onfocus='document.title=`owned`",
    "]]><script>document.title='owned'</script><![CDATA[",
    "javascript:document.title='owned'",
    "</text></g><script xmlns=\"http://www.w3.org/2000/svg\">document.title='owned'</script>",
];

fn chromium(arguments: &[&str], url: &str) -> Output {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("timeout");
    command.args(["60", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
    command.args(["--disable-background-networking", "--no-first-run", "--enable-logging=stderr"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.args(arguments).arg(url).output().unwrap()
}

/// The document after everything in it has run, and what the console said.
fn seen(url: &str) -> (String, String) {
    let output = chromium(&["--virtual-time-budget=3000", "--dump-dom"], url);
    let (dom, console) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success() && !dom.is_empty(), "{console}");
    (dom, console)
}

fn hostile() -> Arc<Told> {
    let mut build = fixture::Builder::new();
    for (number, attack) in (0..).zip(ATTACKS) {
        let process = build.process(100 + number, attack);
        let outer = build.python(attack, attack, 1);
        let inner = build.frame(FrameKind::Native, attack, Some(attack), 0);
        build.sample(process, 1, &[outer, inner], 1000, 2);
    }
    let mut profile: Profile = build.build();
    profile
        .processes
        .iter_mut()
        .zip(ATTACKS)
        .for_each(|(process, attack)| process.unseen = vec![attack.to_owned()]);
    let told = told(profile);
    told.now.lock().unwrap().problems = ATTACKS.map(str::to_owned).to_vec();
    told
}

fn would_notice() {
    let folder = tempfile::tempdir().unwrap();
    for (number, attack) in
        ATTACKS.into_iter().enumerate().filter(|(number, _)| [0, 1, 2, 3].contains(number))
    {
        let path = folder.path().join(format!("{number}.html"));
        std::fs::write(&path, format!("<!doctype html><title>ours</title><p title=\"x\">{attack}")).unwrap();
        let (dom, _) = seen(&format!("file://{}", path.display()));
        assert!(dom.contains("<title>owned</title>"), "{attack} runs nothing: {dom}");
    }
}

fn page() {
    let served = Served::of(&hostile());
    let (dom, console) = seen(&served.url("/"));
    assert!(dom.contains("<title>alloctrace</title>"), "{dom}");
    assert!(!dom.contains("<script") && !dom.contains("<img"), "{dom}");
    assert!(dom.contains("&lt;script&gt;document.title"), "the names are there: {dom}");
    assert!(!console.contains("Content Security Policy"), "{console}");
}

fn drawing() {
    let served = Served::of(&hostile());
    let (dom, console) = seen(&served.url("/flamegraph.svg?metric=allocated"));
    assert_eq!(dom.matches("<script").count(), 1, "{dom}");
    assert!(!dom.contains("<title>owned"), "{dom}");
    assert!(!console.contains("Content Security Policy"), "{console}");
}

/// The viewer's script, which the policy names, runs: it searches what the address says.
fn viewer() {
    let served = Served::of(&told(fixture::example()));
    let (dom, console) = seen(&served.url("/flamegraph.svg?metric=allocated&s=get_lessons"));
    assert!(dom.contains("Matched: 6"), "nothing was searched: {console}");
    assert!(!console.contains("Content Security Policy"), "{console}");
    let (still, _) = seen(&served.url("/flamegraph.svg?metric=allocated"));
    assert!(!still.contains("Matched: 6"));
}

fn pictures() {
    let folder = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("ALLOCTRACE_SCREENSHOTS");
    let folder = kept.as_deref().map_or(folder.path(), Path::new);
    let served = [("service", Served::of(&service())), ("hostile", Served::of(&hostile()))];
    let kinds: [(&str, &[&str]); 3] = [
        ("light", &["--window-size=1280,2300"]),
        (
            "dark",
            &["--window-size=1280,2300", "--force-dark-mode", "--blink-settings=preferredColorScheme=0"],
        ),
        ("narrow", &["--window-size=500,3600"]),
    ];
    for (name, served) in &served {
        for (kind, arguments) in kinds {
            let path = folder.join(format!("{name}-{kind}.png"));
            let screenshot = format!("--screenshot={}", path.display());
            let output = chromium(&[arguments, &[&*screenshot]].concat(), &served.url("/"));
            let picture = std::fs::read(&path)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
            assert!(picture.len() > 20_000, "{name} {kind}: {} bytes", picture.len());
        }
    }
}
