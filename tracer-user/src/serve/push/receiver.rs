//! One place that profiles go to: by which protocol, to which address, in how many requests.
//!
//! It must not know when requests are sent, nor what comes of them but for what an answer says of its request.

use super::{
    address::{Address, AddressError},
    client::Request,
    labels::Labels,
    minute::Minute,
    otlp,
    pyroscope::{self, Group},
};
use crate::profile::pprof::EncodeError;

/// The languages of receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OpenTelemetry's, to a collector.
    Otlp,
    /// Pyroscope's.
    Pyroscope,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Receiver {
    /// Its protocol.
    pub protocol: Protocol,
    address: Address,
}

/// What is sent of a minute, request by request.
#[derive(Debug)]
pub enum Parts {
    /// All of it in one.
    Whole,
    /// One for each group of processes.
    Groups(Vec<Group>),
}

impl Protocol {
    /// Its name in metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Otlp => "otlp",
            Self::Pyroscope => "pyroscope",
        }
    }
}

impl Receiver {
    /// At an address.
    ///
    /// # Errors
    /// If it is none.
    pub fn new(protocol: Protocol, url: &str, has_token: bool) -> Result<Self, AddressError> {
        let path = match protocol {
            Protocol::Otlp => otlp::PATH,
            Protocol::Pyroscope => pyroscope::PATH,
        };
        Ok(Self { protocol, address: Address::parse(url, path, has_token)? })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        self.address.url()
    }

    /// The parts that a minute goes in; `labels` are those of its processes.
    pub fn parts(&self, labels: &[Labels]) -> Parts {
        match self.protocol {
            Protocol::Otlp => Parts::Whole,
            Protocol::Pyroscope => Parts::Groups(pyroscope::groups(labels)),
        }
    }

    /// The request for one part; `None`: there is nothing in it to be told.
    ///
    /// # Errors
    /// If the profile cannot be encoded.
    pub fn request(
        &self,
        minute: &Minute,
        labels: &[Labels],
        parts: &Parts,
        part: usize,
    ) -> Result<Option<Request>, EncodeError> {
        let url = self.address.url();
        match parts {
            Parts::Whole => Ok(otlp::request(minute, labels).map(|body| Request {
                url: url.to_owned(),
                content_type: otlp::CONTENT_TYPE.to_owned(),
                body,
                compress: true,
            })),
            Parts::Groups(groups) => {
                let Some(group) = groups.get(part) else { return Ok(None) };
                // What is in the form is compressed already.
                Ok(pyroscope::form(minute, group)?.map(|form| Request {
                    url: format!("{url}{}", form.query),
                    content_type: form.content_type,
                    body: form.body,
                    compress: false,
                }))
            }
        }
    }

    /// What an answer says was not taken, although its status says that it was.
    pub fn refusal(&self, answer: &[u8]) -> Option<String> {
        let rejected = match self.protocol {
            Protocol::Otlp => otlp::rejected(answer)?,
            Protocol::Pyroscope => return None,
        };
        Some(format!(
            "{} profiles were not taken: {}",
            rejected.profiles,
            super::client::reason(&rejected.why)
        ))
    }
}

impl Parts {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Groups(groups) => groups.len(),
        }
    }
}
