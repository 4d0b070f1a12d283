//! A receiver on loopback that does as it is told, also what no receiver should, and remembers what it heard.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What to do with a request.
pub enum Act {
    /// Answer it: status, more headers (each a line), and a body.
    Answer(u16, &'static str, Vec<u8>),
    /// Never answer.
    Hang,
    /// Close without a word.
    Close,
    /// Close within the head of the answer.
    CloseInHead,
    /// Close within the body of the answer.
    CloseInBody,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Heard {
    pub at: Instant,
    /// `POST /path?query HTTP/1.1`.
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

type Script = Arc<Mutex<dyn FnMut(usize) -> Act + Send>>;

/// See the head of this file.
pub struct Server {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    is_over: Arc<AtomicBool>,
}

/// Answers 200 to everything.
pub fn accept(_: usize) -> Act {
    Act::Answer(200, "", Vec::new())
}

impl Server {
    /// `script` says what to do with the request of that number, from 0 on.
    pub fn start(script: impl FnMut(usize) -> Act + Send + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), script)
    }

    pub fn at(address: SocketAddr, script: impl FnMut(usize) -> Act + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let server = Self { address, heard: Arc::clone(&heard), is_over: Arc::clone(&is_over) };
        let script: Script = Arc::new(Mutex::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (heard, script, is_over) =
                    (Arc::clone(&heard), Arc::clone(&script), Arc::clone(&is_over));
                thread::spawn(move || serve(stream.unwrap(), &heard, &script, &is_over));
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: TcpStream, heard: &Mutex<Vec<Heard>>, script: &Script, is_over: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read(&mut reader) {
        let number = {
            let mut heard = heard.lock().unwrap();
            heard.push(request);
            heard.len() - 1
        };
        let act = (script.lock().unwrap())(number);
        match act {
            Act::Answer(status, headers, body) => {
                let head = format!("HTTP/1.1 {status} So\r\n{headers}content-length: {}\r\n\r\n", body.len());
                if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                    return;
                }
            }
            Act::Hang => {
                while !is_over.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(10));
                }
                return;
            }
            Act::Close => return,
            Act::CloseInHead => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le");
                return;
            }
            Act::CloseInBody => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc");
                return;
            }
        }
    }
}

/// One request; `None`: there is none, or not all of one.
pub fn read(reader: &mut impl BufRead) -> Option<Heard> {
    let mut next = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let line = next()?;
    let mut headers = Vec::new();
    while let Some((name, value)) = next()?.split_once(':') {
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut heard = Heard { at: Instant::now(), line, headers, body: Vec::new() };
    let length: u64 = heard.header("content-length").expect("a length").parse().unwrap();
    reader.take(length).read_to_end(&mut heard.body).ok()?;
    Some(heard)
}
