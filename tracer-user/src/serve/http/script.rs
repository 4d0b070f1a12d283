//! Which scripts and styles an answer may run: a content security policy of digests.
//!
//! A flame graph brings the script of its viewer. Only that one may run, by its digest; a name that breaks out of its quotes would be a
//! text that does nothing. It must not know what is drawn.

use axum::http::HeaderValue;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::digest::{SHA256, digest};

/// What the viewer's outermost element says to be done once it is there.
const ON_LOAD: &str = "init(evt)";
/// For answers that nobody should run anything of.
pub const NOTHING: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The digest of a script or a style, as a policy names it.
#[must_use]
pub fn source(text: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

/// The policy of a flame graph: its first script, which the drawing crate writes before any name.
#[must_use]
pub fn policy(svg: &[u8]) -> HeaderValue {
    let script = first_script(svg).map(|script| source(&script)).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'unsafe-hashes' {script} {}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
        source(ON_LOAD)
    );
    // Digests and words of ours: always a header.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static(NOTHING))
}

/// Its text, as a browser reads it: pieces of character data joined.
fn first_script(svg: &[u8]) -> Option<String> {
    let svg = std::str::from_utf8(svg).ok()?;
    let inside = svg.get(svg.find("<script")?..)?;
    let inside = inside.get(inside.find('>')? + 1..inside.find("</script>")?)?;
    Some(inside.replace("<![CDATA[", "").replace("]]>", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By OpenSSL: `printf 'init(evt)' | openssl dgst -sha256 -binary | base64`.
    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(source(ON_LOAD), "'sha256-WiAVSnuYekflqQvM3Bgx4QYmF4g+iml28eRUaqE8Qeo='");
    }

    #[test]
    fn only_the_first_script_is_named() {
        let svg =
            b"<svg><script type=\"x\"><![CDATA[one]]><![CDATA[two]]></script><script>evil()</script></svg>";
        let policy = policy(svg);
        let policy = policy.to_str().unwrap();
        assert!(policy.contains(&source("onetwo")) && !policy.contains(&source("evil()")), "{policy}");
        assert_eq!(first_script(b"<svg/>"), None);
    }
}
