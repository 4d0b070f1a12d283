//! Answers: bodies that are handed out in pieces, and refusals as JSON that say what to do.
//!
//! A body keeps its place in the workshop until its last piece is handed over, so that slow readers of large answers cannot fill the
//! memory with more of them. It must not know endpoints.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::output::json;

/// Bytes of a body that are handed over at once.
const PIECE_BYTES: usize = 64 << 10;

/// Why a request gets no answer, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    error: String,
    retry_after_seconds: Option<u64>,
}

/// An answer that was made.
#[derive(Debug, Default)]
pub struct Made {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Headers beside those that every answer has.
    pub headers: HeaderMap,
}

#[derive(serde::Serialize)]
struct Explained<'a> {
    error: &'a str,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), retry_after_seconds: None }
    }

    /// The question is wrong.
    #[must_use]
    pub fn wrong(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// The question is right, and nothing is known.
    #[must_use]
    pub fn unknown(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// Not now.
    #[must_use]
    pub fn later(error: impl Into<String>, seconds: u64) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, error);
        Self { retry_after_seconds: Some(seconds), ..refusal }
    }

    /// Our own fault. The reason is for the log: it may name files of this machine.
    #[must_use]
    pub fn fault(error: &dyn std::error::Error) -> Self {
        tracing::error!("an answer could not be made: {error}: {:?}", error.source());
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer could not be made; the sidecar's log says why",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, json(&Explained { error: &self.error })).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl Made {
    /// Of one type.
    #[must_use]
    pub fn new(content_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { bytes, headers: HeaderMap::new() }
            .with(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// JSON, with every character escaped that could steer a terminal.
    #[must_use]
    pub fn json(document: &impl serde::Serialize) -> Self {
        let mut bytes = Vec::new();
        match json::write_document(document, &mut bytes) {
            Ok(()) => Self::new("application/json", bytes),
            // Nothing that is written to memory fails but a document that is none.
            Err(error) => {
                Self::new("application/json", format!("{{\"error\":{:?}}}", error.to_string()).into_bytes())
            }
        }
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// As a response that keeps its place until it is handed out.
    #[must_use]
    pub fn respond(self, place: Option<OwnedSemaphorePermit>) -> Response {
        let body = Body::new(Pieces { rest: Bytes::from(self.bytes), _place: place });
        let mut response = Response::new(body);
        *response.headers_mut() = self.headers;
        response
    }
}

/// A small document.
pub fn json(document: &impl serde::Serialize) -> Response {
    Made::json(document).respond(None)
}

/// A body, piece by piece.
struct Pieces {
    rest: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
