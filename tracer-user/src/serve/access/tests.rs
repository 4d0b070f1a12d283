//! Who is let in, and what is refused at the start.

use axum::http::HeaderValue;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::*;

const SECRET: &str = "0123456789abcdef-secret";

fn token() -> Access {
    Access::Token { token: Token::new(SECRET.as_bytes()).unwrap(), tls: None }
}

fn with(authorization: &[&str]) -> HeaderMap {
    authorization.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
}

fn file(text: &str) -> (tempfile::TempDir, AccessFiles) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, text).unwrap();
    (folder, AccessFiles { token: Some(path), ..AccessFiles::default() })
}

#[test]
fn only_the_token_opens() {
    let bearer = format!("Bearer {SECRET}");
    let basic = format!("basic {}", BASE64_STANDARD.encode(format!("any:{SECRET}")));
    for right in [&*bearer, &format!("bEARER  {SECRET} "), &basic] {
        assert!(token().admits(&with(&[right])), "{right}");
    }
    for wrong in [
        SECRET,
        "Bearer",
        "Bearer ",
        &format!("Bearer {SECRET}x"),
        &format!("Bearer {}", &SECRET[1..]),
        &format!("Basic {SECRET}"),
        &format!("Basic {}", BASE64_STANDARD.encode(SECRET)),
        &format!("Digest {SECRET}"),
    ] {
        assert!(!token().admits(&with(&[wrong])), "{wrong}");
    }
    assert!(!token().admits(&with(&[])));
    assert!(!token().admits(&with(&[&bearer, &bearer])));
}

#[test]
fn addresses_that_others_reach_need_a_secret() {
    let choose = |address: &str, files: &AccessFiles| Access::choose(address.parse().unwrap(), files);
    let none = AccessFiles::default();
    for loopback in ["127.0.0.1:7070", "127.9.9.9:1", "[::1]:7070", "[::ffff:127.0.0.1]:7070"] {
        assert!(matches!(choose(loopback, &none), Ok(Access::Loopback)), "{loopback}");
    }
    for open in ["0.0.0.0:7070", "[::]:7070", "10.0.0.1:7070", "[fe80::1]:7070"] {
        let error = choose(open, &none).unwrap_err().to_string();
        assert!(error.contains(open) && error.contains("--token-file"), "{error}");
    }
    let (_folder, files) = file(&format!("{SECRET}\n"));
    let access = choose("0.0.0.0:7070", &files).unwrap();
    assert!(access.admits(&with(&[&format!("Bearer {SECRET}")])));
    assert!(!format!("{access:?}").contains("secret"), "{access:?}");
}

#[test]
fn tokens_that_are_none_are_refused() {
    for wrong in [
        "",
        "short",
        "0123456789abcde",
        "with a blank inside it",
        "with\u{e9}accents-and-more",
        "\0".repeat(20).as_str(),
    ] {
        let (_folder, files) = file(wrong);
        let error = Access::choose("0.0.0.0:1".parse().unwrap(), &files).unwrap_err().to_string();
        assert!(error.contains("holds no token") && error.contains("openssl"), "{error}");
    }
    let (_folder, files) = file(&"x".repeat(9000));
    assert!(Access::choose("127.0.0.1:1".parse().unwrap(), &files).is_err());
    let missing = AccessFiles { token: Some("/does/not/exist".into()), ..AccessFiles::default() };
    let error = Access::choose("127.0.0.1:1".parse().unwrap(), &missing).unwrap_err().to_string();
    assert_eq!(error, "failed to read the token `/does/not/exist`");
}

#[test]
fn half_of_a_pair_is_refused() {
    let path = || Some(PathBuf::from("x.pem"));
    let none = AccessFiles::default;
    for (files, expected) in [
        (AccessFiles { certificate: path(), ..none() }, "`--tls-certificate` needs `--tls-key`"),
        (AccessFiles { key: path(), ..none() }, "`--tls-key` needs `--tls-certificate`"),
        (AccessFiles { client_authority: path(), ..none() }, "`--tls-client-ca` needs `--tls-certificate`"),
    ] {
        let error = Access::choose("0.0.0.0:1".parse().unwrap(), &files).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn no_other_header_opens(value in "[ -~]{0,60}") {
        prop_assume!(!value.contains(SECRET));
        prop_assert!(!token().admits(&with(&[&value])));
    }

    #[test]
    fn tokens_are_equal_to_themselves_alone(one in "[!-~]{16,40}", other in "[!-~]{16,40}") {
        let token = Token::new(one.as_bytes()).unwrap();
        prop_assert!(token.equals(one.as_bytes()));
        prop_assert_eq!(token.equals(other.as_bytes()), one == other);
    }
}
