//! Posting one request and telling what the answer means: blocking, with a limit for everything.
//!
//! No redirect is followed and no proxy is used: a token goes to the address that was given and nowhere else. It must not know profiles, nor when to try again.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use ureq::{
    Agent,
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{backoff::retry_after, token::TokenFile};
use crate::output::text;

/// More of an answer is not read.
const MOST_ANSWER_BYTES: u64 = 64 << 10;
/// More of a reason is not kept.
const MOST_REASON: usize = 200;
/// A connection takes at most so long, names included.
const CONNECT: Duration = Duration::from_secs(10);

/// What to post.
#[derive(Debug)]
pub struct Request {
    /// To where.
    pub url: String,
    /// What the body is.
    pub content_type: String,
    /// What is sent.
    pub body: Vec<u8>,
    /// Whether the body is compressed on its way.
    pub compress: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Taken; what the receiver said besides.
    Taken(Vec<u8>),
    /// It will never be taken.
    Refused {
        /// Why.
        why: String,
    },
    /// Not now: the receiver is not there, or has too much to do.
    Later {
        /// After what time, if it said so.
        after: Option<Duration>,
        /// Why.
        why: String,
    },
    /// The receiver failed at it.
    Broken {
        /// How.
        why: String,
    },
}

/// Why certificates of one's own cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file.
    #[error("failed to read the certificates `{}`: check `SSL_CERT_FILE`", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it.
    #[error("there is no certificate in `{}`: `SSL_CERT_FILE` names a file of them in PEM form", path.display())]
    None {
        /// Its path.
        path: PathBuf,
    },
}

/// A connection to one receiver, made again when it breaks.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    token: Option<TokenFile>,
}

impl Client {
    /// `timeout` is for a request as a whole. `certificates`: whom to trust in place of Mozilla's list, in PEM form.
    ///
    /// # Errors
    /// If the certificates cannot be read.
    pub fn new(
        timeout: Duration,
        token: Option<TokenFile>,
        certificates: Option<&Path>,
    ) -> Result<Self, CertificateError> {
        let roots = certificates.map_or(Ok(RootCerts::WebPki), read_certificates)?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("alloctrace/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(16 << 10)
            .input_buffer_size(16 << 10)
            .output_buffer_size(16 << 10)
            .max_idle_connections(1)
            .timeout_global(Some(timeout))
            .timeout_connect(Some(timeout.min(CONNECT)))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        Ok(Self { agent: Agent::new_with_config(config), token })
    }

    /// Posts it.
    pub fn post(&self, request: &Request) -> Answer {
        match self.try_post(request) {
            Ok(answer) => answer,
            Err(why) => Answer::Later { after: None, why },
        }
    }

    fn try_post(&self, request: &Request) -> Result<Answer, String> {
        let mut post = self.agent.post(&request.url).content_type(&request.content_type);
        if let Some(token) = &self.token {
            let authorization = token.read().map_err(|error| error.to_string())?;
            post = post.header("authorization", authorization.expose());
        }
        let compressed;
        let body = if request.compress {
            post = post.header("content-encoding", "gzip");
            compressed = gzip(&request.body).map_err(|error| error.to_string())?;
            &compressed
        } else {
            &request.body
        };
        let response = post.send(body).map_err(|error| reason(&error.to_string()))?;
        let status = response.status().as_u16();
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let after = after.and_then(|value| retry_after(value, SystemTime::now()));
        // What cannot be read of an answer does not change what its status says.
        let answer = response.into_body().into_with_config().limit(MOST_ANSWER_BYTES).read_to_vec();
        Ok(judge(status, after, answer.unwrap_or_default()))
    }
}

/// What a status means. Those that pass by themselves are as in OpenTelemetry's specification, and a request that took too long.
fn judge(status: u16, after: Option<Duration>, answer: Vec<u8>) -> Answer {
    let why = || match reason(&String::from_utf8_lossy(&answer)) {
        said if said.is_empty() => format!("it answered {status}"),
        said => format!("it answered {status}: {said}"),
    };
    match status {
        200..=299 => Answer::Taken(answer),
        408 | 425 | 429 | 502 | 503 | 504 => Answer::Later { after, why: why() },
        500..=599 => Answer::Broken { why: why() },
        _ => Answer::Refused { why: why() },
    }
}

/// What somebody else said, as one short line.
pub fn reason(said: &str) -> String {
    let line = said.trim().lines().next().unwrap_or_default();
    let line: String = line.chars().filter(|character| *character != '\u{fffd}').collect();
    text::shorten(&text::visible(&line), MOST_REASON).into_owned()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(bytes)?;
    gzip.finish()
}

fn read_certificates(path: &Path) -> Result<RootCerts, CertificateError> {
    let failed = |source| CertificateError::Read { path: path.to_owned(), source };
    let pem = fs::read(path).map_err(failed)?;
    let items = parse_pem(&pem).collect::<Result<Vec<_>, _>>();
    let items = items.map_err(|error| failed(io::Error::other(error.to_string())))?;
    let certificates = items.into_iter().filter_map(|item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    if certificates.is_empty() {
        return Err(CertificateError::None { path: path.to_owned() });
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_apart() {
        let asked = Some(Duration::from_secs(7));
        let what = |status| match judge(status, asked, Vec::new()) {
            Answer::Taken(_) => "taken",
            Answer::Refused { .. } => "refused",
            Answer::Later { after, .. } if after == asked => "later",
            Answer::Later { .. } => "forgot when",
            Answer::Broken { .. } => "broken",
        };
        for (statuses, expected) in [
            (&[200, 202, 204][..], "taken"),
            (&[301, 307, 400, 401, 403, 404, 413, 415, 422][..], "refused"),
            (&[408, 429, 502, 503, 504][..], "later"),
            (&[500, 501, 505][..], "broken"),
        ] {
            assert!(statuses.iter().all(|status| what(*status) == expected), "{statuses:?} {expected}");
        }
    }

    #[test]
    fn what_others_say_becomes_one_short_line() {
        assert_eq!(reason("  no \u{1b}[31mroom\nsecond line"), "no \\x1b[31mroom");
        assert!(reason(&"long ".repeat(10_000)).chars().count() <= MOST_REASON);
        assert_eq!(
            judge(418, None, b"teapot".to_vec()),
            Answer::Refused { why: "it answered 418: teapot".to_owned() }
        );
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorities.pem");
        fs::write(&path, "nothing").unwrap();
        let error = Client::new(CONNECT, None, Some(&path)).unwrap_err();
        assert!(error.to_string().starts_with("there is no certificate in `"), "{error}");
        assert!(Client::new(CONNECT, None, Some(&folder.path().join("none"))).is_err());
    }
}
