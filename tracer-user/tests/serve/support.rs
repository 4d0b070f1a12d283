//! A source that answers with profiles of the tests, and ways to ask: in this process, or over a socket.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use alloctrace::{
    profile::{Figures, Known, Look, MallocBytes, PoolBytes, Process, Profile, ResidentBytes, Series},
    serve::{
        access::Access,
        history::{HistoryError, Span},
        http::{self, Incident, Kept, Source},
        redact::Redactor,
        state::{Kind, Now, Snapshot},
    },
};
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use tower::ServiceExt as _;

use crate::fixture;

/// The name of the incident in [`service`].
pub const INCIDENT: &str = "2026-11-30T15-55-10Z killed at its limit: gunicorn 4690";

/// What is known, and can be changed while it is asked.
#[derive(Default)]
pub struct Told {
    pub now: Mutex<Now>,
    /// What the history says of any stretch.
    pub past: Mutex<Option<Profile>>,
    pub incidents: Vec<Incident>,
    /// Queries that came.
    pub queries: Mutex<Vec<(Kind, Span, Vec<u32>)>>,
}

impl Source for Told {
    fn now(&self) -> Now {
        self.now.lock().unwrap().clone()
    }

    fn query(&self, kind: Kind, span: Span, pids: &[u32]) -> Result<Option<(Span, Profile)>, HistoryError> {
        self.queries.lock().unwrap().push((kind, span, pids.to_vec()));
        Ok(self.past.lock().unwrap().clone().map(|profile| (span, profile)))
    }

    fn spans(&self, _kind: Kind) -> Vec<Span> {
        let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        vec![Span { from, to: from + Duration::from_secs(3600) }]
    }

    fn kept(&self) -> Option<Kept> {
        Some(Kept { files: 12, bytes: 3_456_789, broken: 1 })
    }

    fn incidents(&self) -> Vec<Incident> {
        self.incidents.clone()
    }

    fn incident(&self, name: &str) -> Result<Option<Profile>, HistoryError> {
        assert!(self.incidents.iter().any(|incident| incident.name == name), "`{name}` is asked for unseen");
        Ok(Some(fixture::example()))
    }
}

/// Nothing is known but that the engine lives.
pub fn nothing() -> Arc<Told> {
    let told = Told::default();
    told.now.lock().unwrap().alive = Some(SystemTime::now());
    Arc::new(told)
}

/// A profile in the snapshot.
pub fn told(profile: Profile) -> Arc<Told> {
    let told = nothing();
    told.now.lock().unwrap().allocations = Some(snapshot(profile));
    told
}

pub fn snapshot(profile: Profile) -> Snapshot {
    Snapshot { taken: SystemTime::now(), profile: Arc::new(profile) }
}

/// A service under load for two hours: leaks, fragmentation, both recordings, a past, and an incident.
pub fn service() -> Arc<Told> {
    let mut allocations = fixture::budget();
    let two_hours = 7_200_000_000_000;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    allocations.recording.start_nanoseconds = now - two_hours - 12_000_000_000;
    allocations.recording.duration_nanoseconds = two_hours;
    let mut waves = 1_u64;
    for (number, process) in allocations.processes.iter_mut().enumerate() {
        process.allocator = "pymalloc".to_owned();
        process.command = format!("gunicorn: worker [shop.wsgi:application] --bind 0.0.0.0:8000 #{number}");
        process.memory = series(number as u64, &mut waves);
    }
    let sizes = [(90, 30), (64, 55), (41, 12), (38, 8), (22, 20)];
    for (number, (used, free)) in sizes.into_iter().enumerate() {
        let mut process = Process {
            pid: 4800 + number as u32,
            command: format!("celery -A shop worker --queue q{number} --loglevel info"),
            interpreter: "3.12.1".to_owned(),
            allocator: "pymalloc".to_owned(),
            ended: number == 4,
            ..Process::default()
        };
        let flat = (0..40).map(|minute| look(minute * 180, [used, free, used + free + 14]));
        flat.for_each(|look| process.memory.push(look, Series::MOST));
        allocations.processes.push(process);
    }
    let mut resident = fixture::example();
    (resident.recording.mode, resident.recording.default_metric) = ("growth".to_owned(), "live".to_owned());
    for (process, same) in resident.processes.iter_mut().zip(&allocations.processes) {
        process.command.clone_from(&same.command);
    }
    let incident = Incident { at: SystemTime::now() - Duration::from_secs(3000), name: INCIDENT.to_owned() };
    let told = Told { incidents: vec![incident], ..Told::default() };
    let mut late = fixture::budget();
    late.processes.clone_from(&allocations.processes);
    late.processes.iter_mut().for_each(|process| process.memory = Series::default());
    *told.past.lock().unwrap() = Some(late);
    let taken = SystemTime::now() - Duration::from_secs(12);
    let snapshot = |profile| Some(Snapshot { taken, profile: Arc::new(profile) });
    *told.now.lock().unwrap() = Now {
        allocations: snapshot(allocations),
        resident: snapshot(resident),
        alive: Some(SystemTime::now()),
        ..Now::default()
    };
    Arc::new(told)
}

/// The first process leaks, the second keeps what it no longer needs.
fn series(number: u64, waves: &mut u64) -> Series {
    let mut series = Series::default();
    for minute in 0..120_u64 {
        *waves = waves.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wave = (*waves >> 40) % 9;
        let figures = match number {
            0 => [60 + minute * 3 / 4 + wave, 14 + wave / 3, 92 + minute * 3 / 4 + wave],
            _ if minute < 50 => [120 + wave, 20, 158 + wave],
            _ => [34 + wave, 96 - wave, 149],
        };
        series.push(look(minute * 60, figures), Series::MOST);
    }
    series
}

/// Requested, held and resident in MiB.
pub fn look(second: u64, [requested, held, resident]: [u64; 3]) -> Look {
    let mebibytes = |number: u64| number << 20;
    let pools = PoolBytes {
        in_use_bytes: mebibytes(requested) / 2,
        free_in_pools_bytes: mebibytes(held) / 2,
        free_pools_bytes: mebibytes(held) / 4,
        ..PoolBytes::default()
    };
    let malloc = MallocBytes {
        in_use_bytes: mebibytes(requested) - mebibytes(requested) / 2,
        free_bytes: mebibytes(held) - mebibytes(held) / 2 - mebibytes(held) / 4,
        ..MallocBytes::default()
    };
    let resident = ResidentBytes {
        anonymous_bytes: mebibytes(resident),
        file_bytes: mebibytes(9),
        ..ResidentBytes::default()
    };
    let (pools, malloc, resident) = (Known::Known(pools), Known::Known(malloc), Known::Known(resident));
    Look::after(Duration::from_secs(second), Figures { pools, malloc, resident })
}

/// An answer, whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.bytes.clone()).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What a refusal says.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

/// Runs a future to its end.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub fn router(told: &Arc<Told>) -> Router {
    http::router(Arc::clone(told) as Arc<dyn Source>, Access::Loopback, None)
}

pub fn redacted(told: &Arc<Told>) -> Router {
    http::router(Arc::clone(told) as Arc<dyn Source>, Access::Loopback, Some(Redactor::new(b"test")))
}

/// Asks in this process.
pub fn send(router: &Router, request: Request<Body>) -> Answer {
    run(async {
        let response = router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec();
        Answer { status, headers, bytes }
    })
}

/// A question on loopback.
pub fn get(router: &Router, address: &str) -> Answer {
    let request = Request::get(address).header(header::HOST, "127.0.0.1:7070").body(Body::empty());
    send(router, request.unwrap_or_else(|error| panic!("{address}: {error}")))
}

/// What a question on loopback about a source is answered.
pub fn ask(told: &Arc<Told>, address: &str) -> Answer {
    get(&router(told), address)
}

/// A server on loopback that ends with this.
pub struct Served {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn start(router: Router, access: Access) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            run(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                http::serve(listener, router, access, async { _ = stopped.await }).await;
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Of a source, on loopback.
    pub fn of(told: &Arc<Told>) -> Self {
        Self::start(router(told), Access::Loopback)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends bytes and reads until the server closes; what came so far after `patience`.
    pub fn raw(&self, bytes: &[u8], patience: Duration) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(patience)).unwrap();
        // The server may close before it has read all.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
