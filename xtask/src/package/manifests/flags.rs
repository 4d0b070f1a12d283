//! The flags of `alloctrace serve`, as far as manifests use them, and a check of a command line against them.

/// Flags and whether a value follows. A contract with `alloctrace serve`: what is here must be there.
const FLAGS: [(&str, bool); 20] = [
    ("--all", false),
    ("--budget", true),
    ("--cgroup", true),
    ("--history", true),
    ("--history-age", true),
    ("--history-size", true),
    ("--label", true),
    ("--listen", true),
    ("--name", true),
    ("--no-growth", false),
    ("--otlp", true),
    ("--pid", true),
    ("--push-token-file", true),
    ("--pyroscope", true),
    ("--redact", false),
    ("--snapshot-when", true),
    ("--tls-certificate", true),
    ("--tls-client-ca", true),
    ("--tls-key", true),
    ("--token-file", true),
];

/// Whether `serve` would take it, and whether it is safe: an address that others reach takes a token.
pub fn check(words: &[impl AsRef<str>]) {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    assert_eq!(words.first(), Some(&"serve"));
    let mut rest = words[1..].iter();
    let mut given: Vec<(&str, &str)> = Vec::new();
    while let Some(flag) = rest.next() {
        let known = FLAGS.iter().find(|(name, _)| name == flag);
        let (_, takes_value) = known.unwrap_or_else(|| panic!("`serve` has no `{flag}`"));
        let value =
            if *takes_value { rest.next().unwrap_or_else(|| panic!("`{flag}` has no value")) } else { "" };
        assert!(!value.starts_with("--"), "`{flag}` has no value");
        given.push((flag, value));
    }
    let value = |flag: &str| given.iter().find(|(name, _)| *name == flag).map(|(_, value)| *value);
    assert!(
        ["--all", "--pid", "--cgroup", "--name"].iter().any(|whom| value(whom).is_some()),
        "watches nobody"
    );
    assert_eq!(value("--history"), Some("/var/lib/alloctrace"));
    let listen = value("--listen").expect("an address");
    let is_loopback = listen.starts_with("127.") || listen.starts_with("[::1]");
    assert!(is_loopback || value("--token-file").is_some(), "`{listen}` without a token");
}

#[test]
#[should_panic(expected = "without a token")]
fn an_open_address_is_noticed() {
    check(&["serve", "--all", "--history", "/var/lib/alloctrace", "--listen", "0.0.0.0:7070"]);
}

#[test]
#[should_panic(expected = "has no `--quick`")]
fn an_unknown_flag_is_noticed() {
    check(&["serve", "--quick"]);
}
