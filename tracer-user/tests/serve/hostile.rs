//! Names that are made to break a page break none: the browser is asked in `browser.rs`, its text here.

use alloctrace::{
    output::text::is_invisible,
    profile::{Metric, Process},
};

use crate::{
    fixture,
    support::{ask, look, nothing, service, told},
};

pub const TESTS: &[(&str, fn())] = &[
    ("the_page_holds_no_element_that_is_not_ours", page),
    ("drawings_may_run_their_own_script_alone", drawing),
    ("refusals_quote_without_harm", refusals),
    ("the_page_says_what_matters", realistic),
    ("the_page_without_anything_says_so", empty),
];

fn hostile() -> std::sync::Arc<crate::support::Told> {
    let mut profile = fixture::budget();
    let hostile = fixture::hostile();
    profile.frames = hostile.frames;
    profile.samples = hostile.samples;
    profile.processes = hostile.processes;
    for (number, process) in profile.processes.iter_mut().enumerate() {
        let name = &fixture::hostile_names()[11 + number];
        (process.interpreter, process.allocator) = (name.clone(), name.clone());
        process.unseen = vec![name.clone()];
        (0..3).for_each(|minute| process.memory.push(look(minute * 60, [50 + minute, 10, 80]), 100));
    }
    let estimated = fixture::budget().samples[0].estimated.clone();
    profile.samples.iter_mut().for_each(|sample| sample.estimated = estimated.clone());
    let windows = profile.recording.windows.as_mut().unwrap();
    windows.stopped = Some("<script>alert(2)</script>".to_owned());
    let long = Process { pid: 7, command: "x".repeat(10_000), ..Process::default() };
    profile.processes.push(long);
    let told = told(profile);
    told.now.lock().unwrap().problems.extend(fixture::hostile_names());
    told
}

fn page() {
    let page = ask(&hostile(), "/").text();
    assert_eq!(page.chars().find(|character| *character != '\n' && is_invisible(*character)), None);
    for forbidden in ["<script", "javascript:", "onerror=", "style=", "src="] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt;")
            && page.contains("a&quot;b&#39;c&amp;d&lt;e&gt;f")
    );
    assert!(!page.contains(&"x".repeat(500)), "long names are shortened");
    // Links lead to our own paths.
    for link in page.split("href=\"").skip(1) {
        assert!(link.starts_with('/'), "{link:.60}");
    }
}

fn drawing() {
    let answer = ask(&hostile(), "/flamegraph.svg?metric=allocated");
    let svg = answer.text();
    assert_eq!(svg.matches("<script").count(), 1);
    let policy = answer.header("content-security-policy");
    assert_eq!(
        policy.matches("'sha256-").count(),
        2,
        "the script, and what is done at its beginning: {policy}"
    );
    // The digest is that of OpenSSL, taken of what an XML parser finds in the element.
    let script = script_of(&svg);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script");
    std::fs::write(&path, script).unwrap();
    let command = format!("openssl dgst -sha256 -binary {} | openssl base64", path.display());
    if let Ok(output) = std::process::Command::new("sh").args(["-c", &command]).output() {
        let digest = String::from_utf8(output.stdout).unwrap();
        assert!(policy.contains(digest.trim()), "{digest} in {policy}");
    }
}

fn script_of(svg: &str) -> String {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(svg);
    let (mut script, mut inside) = (String::new(), false);
    loop {
        match reader.read_event().unwrap() {
            Event::Start(start) if start.name().as_ref() == b"script" => inside = true,
            Event::End(end) if end.name().as_ref() == b"script" => return script,
            Event::CData(data) if inside => script.push_str(&data.decode().unwrap()),
            Event::Text(text) if inside => script.push_str(&text.decode().unwrap()),
            Event::Eof => panic!("no script"),
            _ => {}
        }
    }
}

fn refusals() {
    let answer = ask(&nothing(), "/folded?metric=%3Cscript%3E%E2%80%AE%1B[31m");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.text().chars().find(|character| *character != '\n' && is_invisible(*character)), None);
    assert!(answer.error().contains("<script>"), "as JSON it is a text: {}", answer.error());
    assert_eq!(
        (answer.header("content-type"), answer.header("x-content-type-options")),
        ("application/json", "nosniff")
    );
}

fn realistic() {
    let told = service();
    let page = ask(&told, "/").text();
    let total = fixture::budget().total(Metric::Allocated).bytes;
    for expected in [
        "recording for 2.0 h",
        "gunicorn: worker [shop.wsgi:application]",
        "grows by use",
        "fragmentation",
        "killed at its limit: gunicorn 4690",
        "/flamegraph.svg?incident=2026-11-30T15-55-10Z%20killed%20at%20its%20limit%3A%20gunicorn%204690",
        "views.py:31",
        "get_lessons.&lt;locals&gt;.&lt;listcomp&gt;",
        "at least",
        "99.9 %",
        "80, 41 of them with a tail",
        "0.80 % of the processes&#39; time",
        "nothing lost",
        "area-requested",
        "/flamegraph.svg?metric=allocated&amp;from=-15m&amp;diff=-30m/-15m",
        &alloctrace::output::text::bytes(total),
        "1 that ended",
    ] {
        assert!(page.contains(expected), "`{expected}` in {page}");
    }
    assert!(!page.contains("Something does not work"));
    told.now.lock().unwrap().minutes_lost = 3;
    assert!(ask(&told, "/").text().contains("3 minutes could not be kept on disk"));
    let one = ask(&told, "/?pid=4711").text();
    assert!(
        one.contains("only process 4711")
            && !one.contains("celery")
            && one.contains("pid=4711&amp;metric=live")
    );
}

fn empty() {
    let page = ask(&nothing(), "/");
    assert_eq!(page.status, 200);
    assert!(page.text().contains("no snapshot yet") && page.text().contains("No process is known yet"));
}
