//! Over sockets: slow clients, large headers, many connections, and certificates, with curl as the client that we did not write.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use alloctrace::serve::{
    access::{Access, AccessFiles},
    http::{self, Source},
};
use tempfile::TempDir;

use crate::{
    fixture,
    support::{Served, service, told},
};

pub const TESTS: &[(&str, fn())] = &[
    ("a_question_gets_one_answer_and_the_end", one_answer),
    ("slow_headers_end_after_ten_seconds", slow_headers),
    ("slow_readers_end_after_thirty_seconds", slow_reader),
    ("headers_that_are_too_large_are_refused", large_headers),
    ("bytes_that_are_no_http_harm_nobody", no_http),
    ("connections_are_bounded_and_come_back", many),
    ("the_server_ends_when_it_is_told", ends),
];

pub const ENCRYPTED: &[(&str, fn())] = &[
    ("certificates_open_and_nothing_else_does", mutual),
    ("a_token_works_over_tls", token_over_tls),
    ("files_that_are_no_certificates_are_refused", no_certificates),
];

const QUESTION: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(20);

fn one_answer() {
    let served = Served::of(&service());
    let answer = served.raw(QUESTION, PATIENCE);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    let two = served.raw(&QUESTION.repeat(2), PATIENCE);
    assert_eq!(two.matches("HTTP/1.1").count(), 1, "{two}");
}

fn slow_headers() {
    let served = Served::of(&service());
    let begun = Instant::now();
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    // A byte now and then does not put it off.
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                if stream.write_all(b"a").is_err() {
                    break;
                }
            }
            _ => break,
        }
        assert!(begun.elapsed() < PATIENCE, "it is still open");
    }
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
}

/// Who asks for a large answer and does not read it loses it, and with it the room that it takes.
fn slow_reader() {
    let mut build = fixture::Builder::new();
    let process = build.process(7, "python many.py");
    for number in 0..30_000 {
        let frame = build.python(&format!("function_{number}_{}", "x".repeat(400)), "many.py", 1);
        build.sample(process, 7, &[frame], 1000, 2);
    }
    let served = Served::of(&told(build.build()));
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.write_all(b"GET /folded HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_secs(33));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let head = String::from_utf8_lossy(&answer[..answer.len().min(1000)]).to_lowercase();
    let length =
        head.split_once("content-length: ").unwrap().1.split_once('\r').unwrap().0.parse::<usize>().unwrap();
    assert!(length > 10 << 20 && answer.len() < length, "{} of {length} came: {head:.100}", answer.len());
}

fn large_headers() {
    let served = Served::of(&service());
    let header = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(served.raw(header.as_bytes(), PATIENCE).starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert!(served.raw(many.as_bytes(), PATIENCE).starts_with("HTTP/1.1 431"));
    assert!(served.raw(QUESTION, PATIENCE).starts_with("HTTP/1.1 200"));
}

fn no_http() {
    let served = Served::of(&service());
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ] {
        let answer = served.raw(bytes, Duration::from_secs(1));
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(served.raw(QUESTION, PATIENCE).starts_with("HTTP/1.1 200"));
}

fn many() {
    let served = Served::of(&service());
    let held: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(served.address).unwrap()).collect();
    // All places are taken: the next one waits, and is answered as soon as there is one.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(served.raw(QUESTION, Duration::from_millis(700)), "");
    drop(held);
    assert!(served.raw(QUESTION, PATIENCE).starts_with("HTTP/1.1 200"));
}

fn ends() {
    let served = Served::of(&service());
    let address = served.address;
    let _idle = TcpStream::connect(address).unwrap();
    let begun = Instant::now();
    drop(served);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(TcpStream::connect(address).is_err());
}

/// A folder with an authority, a server and two clients, one of them of another authority; by OpenSSL.
fn certificates() -> TempDir {
    let folder = TempDir::new().unwrap();
    let script = r#"
        set -e
        key() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -subj "/CN=$2" "${@:3}" 2>/dev/null; }
        for authority in known other; do key $authority $authority -x509 -days 2 -out $authority.pem; done
        sign() { openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -days 2 -out "$1.pem" -extfile "$1.ext" 2>/dev/null; }
        echo 'subjectAltName=IP:127.0.0.1' > server.ext
        for client in client stranger; do echo 'extendedKeyUsage=clientAuth' > $client.ext; done
        for name in server client stranger; do key $name $name -out $name.csr; done
        sign server known; sign client known; sign stranger other
    "#;
    let status = Command::new("bash").args(["-c", script]).current_dir(&folder).status().unwrap();
    assert!(status.success());
    folder
}

fn encrypted(folder: &Path, authority: bool, token: bool) -> Served {
    let file = |name: &str| Some(folder.join(name));
    std::fs::write(folder.join("token"), "0123456789abcdef").unwrap();
    let files = AccessFiles {
        certificate: file("server.pem"),
        key: file("server.key"),
        client_authority: file("known.pem").filter(|_| authority),
        token: file("token").filter(|_| token),
    };
    let access = Access::choose("0.0.0.0:7070".parse().unwrap(), &files).unwrap();
    let router = http::router(service() as Arc<dyn Source>, access.clone(), None);
    Served::start(router, access)
}

/// The status that curl gets, or 0.
fn curl(folder: &Path, served: &Served, arguments: &[&str]) -> u32 {
    let url = format!("https://{}/healthz", served.address);
    let mut command = Command::new("curl");
    command.current_dir(folder).args([
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--cacert",
        "known.pem",
    ]);
    let output = command.args(arguments).arg(url).output().unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

fn mutual() {
    let folder = certificates();
    let served = encrypted(folder.path(), true, false);
    let ask = |arguments: &[&str]| curl(folder.path(), &served, arguments);
    assert_eq!(ask(&["--cert", "client.pem", "--key", "client.key"]), 200);
    assert_eq!(ask(&["--cert", "stranger.pem", "--key", "stranger.key"]), 0, "another authority's");
    assert_eq!(ask(&[]), 0, "none");
    assert_eq!(
        ask(&["--cert", "client.pem", "--key", "client.key", "--tls-max", "1.2"]),
        0,
        "an old version"
    );
    assert!(!served.raw(QUESTION, PATIENCE).contains("200"), "not encrypted");
}

fn token_over_tls() {
    let folder = certificates();
    let served = encrypted(folder.path(), false, true);
    let ask = |arguments: &[&str]| curl(folder.path(), &served, arguments);
    assert_eq!(ask(&[]), 401);
    assert_eq!(ask(&["-H", "Authorization: Bearer 0123456789abcdef"]), 200);
    assert_eq!(ask(&["-u", "any:0123456789abcdef"]), 200);
    let both = encrypted(folder.path(), true, true);
    let client = ["--cert", "client.pem", "--key", "client.key"];
    assert_eq!(curl(folder.path(), &both, &client), 401, "both are needed where both were given");
    let token = ["-u", "any:0123456789abcdef"];
    assert_eq!(curl(folder.path(), &both, &[client.as_slice(), &token].concat()), 200);
}

fn no_certificates() {
    let folder = certificates();
    let file = |name: &str| Some(folder.path().join(name));
    let right = AccessFiles {
        certificate: file("server.pem"),
        key: file("server.key"),
        client_authority: file("known.pem"),
        token: None,
    };
    let error =
        |files: &AccessFiles| Access::choose("0.0.0.0:1".parse().unwrap(), files).unwrap_err().to_string();
    for (files, expected) in [
        (
            AccessFiles { certificate: file("server.key"), ..right.clone() },
            "holds no certificate in PEM form",
        ),
        (AccessFiles { key: file("server.pem"), ..right.clone() }, "holds no private key in PEM form"),
        (AccessFiles { key: file("client.key"), ..right.clone() }, "cannot be used with its key"),
        (AccessFiles { client_authority: file("server.csr"), ..right.clone() }, "holds no certificate"),
        (AccessFiles { certificate: file("missing"), ..right.clone() }, "failed to read"),
        (AccessFiles { client_authority: None, ..right.clone() }, "say who we are, and not who may ask"),
    ] {
        assert!(error(&files).contains(expected), "{}", error(&files));
    }
}
