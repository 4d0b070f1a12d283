//! The secret that a receiver wants to see, read from its file each time: it may be replaced at any time, and is in memory only while it is used.
//!
//! It is in no log, no error and no `Debug`. It must not know requests.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// More is no token.
const MOST_BYTES: u64 = 16 << 10;

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile(PathBuf);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file.
    #[error("failed to read the token file `{}`: check `--push-token-file`", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it.
    #[error("the token file `{}` holds no token: write one line of visible characters into it", path.display())]
    NoToken {
        /// Its path.
        path: PathBuf,
    },
}

/// The value of a header; whoever prints it sees nothing.
pub struct Authorization(String);

impl TokenFile {
    /// Of a file that is read later.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// What goes into the header: `Bearer` and the token, or the file's own words where it says `Basic …` or `Bearer …`.
    ///
    /// # Errors
    /// [`TokenError`]; none of its texts holds anything that was in the file.
    pub fn read(&self) -> Result<Authorization, TokenError> {
        let path = || self.0.clone();
        let mut bytes = Vec::new();
        let read = File::open(&self.0).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|source| TokenError::Read { path: path(), source })?;
        let is_too_long = bytes.len() as u64 > MOST_BYTES;
        let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        let is_visible = text.chars().all(|character| character.is_ascii_graphic() || character == ' ');
        if is_too_long || text.is_empty() || !is_visible {
            return Err(TokenError::NoToken { path: path() });
        }
        let has_scheme = ["Basic ", "Bearer "].iter().any(|scheme| text.starts_with(scheme));
        Ok(Authorization(if has_scheme { text.to_owned() } else { format!("Bearer {text}") }))
    }
}

impl Authorization {
    /// For the header, and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Authorization(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Authorization, TokenError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, bytes).unwrap();
        TokenFile::new(&path).read()
    }

    #[test]
    fn a_token_becomes_a_header() {
        assert_eq!(read(b"s3cret\n").unwrap().expose(), "Bearer s3cret");
        assert_eq!(read(b"Basic dXNlcjp4\n").unwrap().expose(), "Basic dXNlcjp4");
    }

    #[test]
    fn nothing_that_is_printed_holds_it() {
        assert!(!format!("{:?}", read(b"s3cret").unwrap()).contains("s3cret"));
        for bytes in [&b"s3cret\nand more"[..], b"", b"\xff\xfe", b"s3cret\x00", &[b'a'; 20 << 10]] {
            let error = read(bytes).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"));
            assert!(matches!(error, TokenError::NoToken { .. }));
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = TokenFile::new(Path::new("/no/such/token")).read().unwrap_err();
        assert!(error.to_string().contains("`/no/such/token`"));
    }
}
