//! Connections: few at once, one request each, and each with a deadline.
//!
//! One request a connection, because then one deadline bounds all that a slow client can do: its headers, its question, and how long it
//! takes to read the answer. It must not know what is asked.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service as _, service::service_fn};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::serve::access::Access;

/// Connections at once; others wait to be accepted.
const CONNECTIONS: usize = 64;
/// For the handshake and the headers.
const HEADERS: Duration = Duration::from_secs(10);
/// From the headers to the last byte of the answer.
const WHOLE: Duration = Duration::from_secs(30);
/// For answers that are on their way when we are told to end.
const GRACE: Duration = Duration::from_secs(5);
/// After a failure to accept: descriptors may have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// Of one request.
const MOST_HEADERS: usize = 64;
/// Of its first line and headers together, and of what waits to be sent.
const BUFFER_BYTES: usize = 32 << 10;

/// When a connection is closed, whatever it does.
#[derive(Debug, Clone)]
pub(super) struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    fn after(time: Duration) -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + time)))
    }

    fn set(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + time;
    }

    /// Puts it off: the request wants to watch for so long.
    pub(super) fn extend(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }

    fn get(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when it has passed, however often it was put off.
    async fn passed(&self) {
        while Instant::now() < self.get() {
            sleep_until(self.get()).await;
        }
    }
}

/// Answers until `shutdown` ends.
///
/// `access` must be the one that the router was made with.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    access: Access,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &places) => if let Some((stream, place)) = accepted {
                let acceptor = access.tls().map(crate::serve::tls::Tls::acceptor);
                connections.spawn(connection(stream, acceptor, router.clone(), place));
            },
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // Those that are late are dropped with the set.
    let _ = timeout(GRACE, all).await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!("a connection could not be accepted: {error}");
            sleep(PAUSE).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    _place: OwnedSemaphorePermit,
) {
    let deadline = Deadline::after(HEADERS);
    let work = async {
        match tls {
            None => speak(stream, router, &deadline).await,
            Some(acceptor) => match acceptor.accept(stream).await {
                Ok(stream) => speak(stream, router, &deadline).await,
                Err(error) => tracing::debug!("no handshake: {error}"),
            },
        }
    };
    tokio::select! {
        () = work => {}
        () = deadline.passed() => tracing::debug!("a connection took too long and was closed"),
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, deadline: &Deadline) {
    let service = service_fn(|request: Request<Incoming>| {
        deadline.set(WHOLE);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(deadline.clone());
        TowerToHyperService::new(router.clone()).call(request)
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false)
        .max_headers(MOST_HEADERS)
        .max_buf_size(BUFFER_BYTES)
        .header_read_timeout(None::<Duration>);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("a connection broke off: {error}");
    }
}
