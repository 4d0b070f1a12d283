//! Where to push to: an address that was checked once, and that holds no secret.
//!
//! It must not know what is sent.

use std::net::IpAddr;

use ureq::http::Uri;

/// The address of a receiver, with the path that its protocol posts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    url: String,
}

/// Why an address cannot be pushed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is none.
    #[error("`{url}` is no address: give one such as `http://127.0.0.1:4318`")]
    NoAddress {
        /// What was given.
        url: String,
    },
    /// It has a name and a password in it, which would be seen in lists of processes and in logs.
    #[error(
        "the address `…@{rest}` has a name or password in it: write `Basic …` or a token into a file and give `--push-token-file`"
    )]
    Secret {
        /// What comes behind them.
        rest: String,
    },
    /// It has a query or a fragment, where the path goes.
    #[error("`{url}` has something behind its path: leave out what begins with `?` or `#`")]
    Query {
        /// What was given.
        url: String,
    },
    /// A token would be readable on its way.
    #[error("a token is not sent to `{url}` in the clear: use https, or leave out `--push-token-file`")]
    TokenInTheClear {
        /// What was given.
        url: String,
    },
}

impl Address {
    /// Checks an address and adds `path` to it, unless it ends with that.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn parse(url: &str, path: &str, has_token: bool) -> Result<Self, AddressError> {
        let url = url.trim();
        if let Some((_, rest)) = url.rsplit_once('@') {
            return Err(AddressError::Secret { rest: rest.to_owned() });
        }
        if url.contains(['?', '#']) {
            return Err(AddressError::Query { url: url.to_owned() });
        }
        let none = || AddressError::NoAddress { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| none())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(none)?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if has_token && !is_loopback(host) => {
                return Err(AddressError::TokenInTheClear { url: url.to_owned() });
            }
            Some("http") => {}
            _ => return Err(none()),
        }
        let base = url.trim_end_matches('/');
        let url = if base.ends_with(path) { base.to_owned() } else { format!("{base}{path}") };
        Ok(Self { url })
    }

    /// All of it.
    pub fn url(&self) -> &str {
        &self.url
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/v1development/profiles";

    fn url(text: &str) -> String {
        Address::parse(text, PATH, false).unwrap().url().to_owned()
    }

    #[test]
    fn the_path_is_added_once() {
        assert_eq!(url("http://collector:4318"), "http://collector:4318/v1development/profiles");
        assert_eq!(url("https://c.example/otlp/"), "https://c.example/otlp/v1development/profiles");
        let whole = "http://[::1]:4318/v1development/profiles";
        assert_eq!((url(whole).as_str(), url(&format!("{whole}/")).as_str()), (whole, whole));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "collector:4318", "ftp://c/", "http://", "http:///x", "not an address", "//c"] {
            let error = Address::parse(text, PATH, false).unwrap_err();
            assert_eq!(error, AddressError::NoAddress { url: text.to_owned() });
        }
        let query = Address::parse("http://c/?token=x", PATH, false).unwrap_err();
        assert!(matches!(query, AddressError::Query { .. }));
    }

    #[test]
    fn a_password_is_not_repeated() {
        let error = Address::parse("https://name:hunter2@c.example", PATH, false).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }

    #[test]
    fn a_token_goes_over_tls_or_nowhere() {
        for (text, is_fine) in [
            ("https://c.example", true),
            ("http://127.0.0.1:4318", true),
            ("http://[::1]:4318", true),
            ("http://localhost:4318", true),
            ("http://c.example", false),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(Address::parse(text, PATH, true).is_ok(), is_fine, "{text}");
        }
    }
}
