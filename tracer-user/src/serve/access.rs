//! Who may ask: on loopback whoever is on this machine, elsewhere who has the token or a certificate.
//!
//! Nothing else can be chosen: an address that others can reach is refused without a secret. A token is compared in constant time, and
//! never logged. It must not know routes or answers.

use std::{
    fmt,
    fs::File,
    hint::black_box,
    io::{self, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine as _, engine::general_purpose::STANDARD_PAD_INDIFFERENT};

use super::tls::{Tls, TlsError, TlsFiles};

/// Shortest token that nobody guesses.
const LEAST_TOKEN_BYTES: usize = 16;
/// No token is longer.
const MOST_TOKEN_BYTES: usize = 4096;

/// Who may ask.
#[derive(Debug, Clone)]
pub enum Access {
    /// Who is on this machine: the address is a loopback one.
    Loopback,
    /// Who has the token.
    Token {
        /// It.
        token: Token,
        /// Whether connections are encrypted; its own rules hold beside the token.
        tls: Option<Tls>,
    },
    /// Who has a certificate of the authority.
    Mutual(Tls),
}

/// Files that the command line names.
#[derive(Debug, Clone, Default)]
pub struct AccessFiles {
    /// `--token-file`.
    pub token: Option<PathBuf>,
    /// `--tls-certificate`.
    pub certificate: Option<PathBuf>,
    /// `--tls-key`.
    pub key: Option<PathBuf>,
    /// `--tls-client-ca`.
    pub client_authority: Option<PathBuf>,
}

/// Why the sidecar does not listen.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Others could reach it.
    #[error(
        "`{address}` can be reached from other machines: give a secret by `--token-file FILE`, or certificates by `--tls-certificate`, `--tls-key` and `--tls-client-ca`, or listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// A flag without its companion.
    #[error("`{given}` needs `{missing}`: give both, or neither")]
    Incomplete {
        /// What was given.
        given: &'static str,
        /// What was not.
        missing: &'static str,
    },
    /// Encrypted, but open to everyone.
    #[error("certificates say who we are, and not who may ask: add `--token-file` or `--tls-client-ca`")]
    NobodyAsked,
    /// The token's file.
    #[error("failed to read the token `{}`", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it.
    #[error(
        "`{}` holds no token: it must be {LEAST_TOKEN_BYTES} to {MOST_TOKEN_BYTES} visible ASCII characters without blanks; make one by `openssl rand -hex 32`",
        path.display()
    )]
    NoToken {
        /// The path.
        path: PathBuf,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A secret that is shown nowhere.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Access {
    /// What the flags ask for at an address.
    ///
    /// # Errors
    /// If others can reach it and nothing says who may, or a file is wrong.
    pub fn choose(address: SocketAddr, files: &AccessFiles) -> Result<Self, AccessError> {
        let tls = TlsFiles::of(files)?.map(Tls::load).transpose()?;
        let token = files.token.as_deref().map(Token::read).transpose()?;
        match (token, tls) {
            (Some(token), tls) => Ok(Self::Token { token, tls }),
            (None, Some(tls)) if tls.asks_for_certificates() => Ok(Self::Mutual(tls)),
            (None, Some(_)) => Err(AccessError::NobodyAsked),
            (None, None) if address.ip().to_canonical().is_loopback() => Ok(Self::Loopback),
            (None, None) => Err(AccessError::Open { address }),
        }
    }

    /// How connections are encrypted, if they are.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Loopback => None,
            Self::Token { tls, .. } => tls.as_ref(),
            Self::Mutual(tls) => Some(tls),
        }
    }

    /// Whether a request may be answered. Those whose certificate was not known never came so far.
    #[must_use]
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Loopback | Self::Mutual(_) => true,
            Self::Token { token, .. } => {
                let mut given = headers.get_all(AUTHORIZATION).iter();
                // More than one is no question but a trick.
                let only = given.next().filter(|_| given.next().is_none());
                only.and_then(|value| value.to_str().ok())
                    .and_then(secret)
                    .is_some_and(|secret| token.equals(&secret))
            }
        }
    }
}

/// The secret of a bearer, or the password of the basic scheme: browsers and `go tool pprof` know only that one.
fn secret(header: &str) -> Option<Vec<u8>> {
    let (scheme, value) = header.split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD_PAD_INDIFFERENT.decode(value).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

impl Token {
    /// Reads one; blanks around it do not count.
    ///
    /// # Errors
    /// If there is none that nobody guesses.
    pub fn read(path: &Path) -> Result<Self, AccessError> {
        let source = |source| AccessError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let most = MOST_TOKEN_BYTES as u64 + 64;
        File::open(path).map_err(source)?.take(most).read_to_end(&mut bytes).map_err(source)?;
        Self::new(&bytes).ok_or_else(|| AccessError::NoToken { path: path.to_owned() })
    }

    fn new(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.trim_ascii();
        let is_right = (LEAST_TOKEN_BYTES..=MOST_TOKEN_BYTES).contains(&bytes.len())
            && bytes.iter().all(u8::is_ascii_graphic);
        is_right.then(|| Self(bytes.into()))
    }

    /// It, for a request to who knows it.
    #[must_use]
    pub fn expose(&self) -> std::borrow::Cow<'_, str> {
        // Only letters, digits and signs are let in.
        String::from_utf8_lossy(&self.0)
    }

    /// In a time that tells nothing of the token but its length.
    fn equals(&self, given: &[u8]) -> bool {
        if given.len() != self.0.len() {
            return false;
        }
        let difference = self.0.iter().zip(given).fold(0, |sum, (one, other)| sum | black_box(one ^ other));
        black_box(difference) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests;
