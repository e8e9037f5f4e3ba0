//! HTTP as the load speaks it: one connection that is kept, one request at a time, no pool and no task. What it costs is
//! taken from the server, which runs on the same cores.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The deadline of every wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// The server closes a connection that is idle for 30 s: one that was idle for so long is not used again.
const FRESH: Duration = Duration::from_secs(20);
/// A time of zero would be no bound.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// A kept connection.
pub struct Connection {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
    used: Instant,
}

/// An answer that was read whole.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// Its JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Self {
        Self {
            address,
            stream: connect(address),
            used: Instant::now(),
        }
    }

    /// The answer to a GET.
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }

    /// The answer to a POST of JSON.
    pub fn post(&mut self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, body)
    }

    /// The answer, and the time that it took.
    pub fn timed(&mut self, method: &str, path: &str, body: &str) -> (Answer, Duration) {
        let began = Instant::now();
        let answer = self.ask(method, path, body);
        (answer, began.elapsed())
    }

    /// How long an answer took; `None` where none came in time.
    pub fn answers(mut self, path: &str, within: Duration) -> Option<Duration> {
        let began = Instant::now();
        self.stream.get_ref().set_read_timeout(Some(within)).unwrap();
        send(&mut self.stream, self.address, "GET", path, "");
        let head = self.stream.fill_buf().ok()?;
        (!head.is_empty()).then(|| began.elapsed())
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        if self.used.elapsed() > FRESH {
            self.stream = connect(self.address);
        }
        send(&mut self.stream, self.address, method, path, body);
        if let Err(error) = self.stream.fill_buf() {
            panic!("no answer to {method} {path} within {ANSWER_WITHIN:?}: {error}");
        }
        let head = Head::read(&mut self.stream);
        let body = match head.length {
            Some(length) => {
                let mut body = vec![0; length];
                self.stream.read_exact(&mut body).unwrap();
                body
            }
            None => {
                let mut body = Vec::new();
                while let Some(chunk) = chunk(&mut self.stream) {
                    body.extend(chunk);
                }
                body
            }
        };
        self.used = Instant::now();
        Answer {
            status: head.status,
            body,
        }
    }
}

/// A stream of events, whose head was read.
pub struct Stream(BufReader<TcpStream>);

impl Stream {
    /// Opens one; `None` where the server does not answer in time.
    pub fn open(address: SocketAddr, path: &str, within: Duration) -> Option<Self> {
        let mut stream = connect(address);
        stream
            .get_ref()
            .set_read_timeout(Some(within.max(LEAST_WAIT)))
            .unwrap();
        send(&mut stream, address, "GET", path, "");
        // Looked at before it is read, so that a late answer is not an answer that cannot be read.
        stream.fill_buf().ok().filter(|head| !head.is_empty())?;
        stream.get_ref().set_read_timeout(None).unwrap();
        let head = Head::read(&mut stream);
        assert_eq!(head.status, 200, "{path}");
        Some(Self(stream))
    }

    /// Reads and drops what comes until the stream ends, or its connection is closed; the bytes that came.
    pub fn drain(&mut self) -> usize {
        let mut bytes = 0;
        while let Some(chunk) = chunk(&mut self.0) {
            bytes += chunk.len();
        }
        bytes
    }

    /// The number of the first event that comes in time.
    pub fn first_id(&mut self, within: Duration) -> Option<u64> {
        self.0.get_ref().set_read_timeout(Some(within)).unwrap();
        loop {
            let text = chunk(&mut self.0)?;
            let text = String::from_utf8_lossy(&text);
            if let Some(id) = text.lines().find_map(|line| line.strip_prefix("id: ")) {
                return id.parse().ok();
            }
        }
    }

    /// The connection, to close it from elsewhere.
    pub fn connection(&self) -> TcpStream {
        self.0.get_ref().try_clone().unwrap()
    }
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    BufReader::new(stream)
}

fn send(stream: &mut BufReader<TcpStream>, address: SocketAddr, method: &str, path: &str, body: &str) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // In one write: one packet, one wake-up.
    stream.get_mut().write_all(request.as_bytes()).unwrap();
}

struct Head {
    status: u16,
    /// `None` where the body comes in chunks.
    length: Option<usize>,
}

impl Head {
    fn read(stream: &mut impl BufRead) -> Self {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no answer but {line:?}"));
        let (mut length, mut chunked) = (0, false);
        loop {
            line.clear();
            stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap();
            }
            chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        }
        Self {
            status,
            length: (!chunked).then_some(length),
        }
    }
}

/// The next chunk of a body; `None` behind the last one, and where the connection was closed.
fn chunk(stream: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let length = usize::from_str_radix(line.trim_end(), 16).ok()?;
    // With the line break behind it.
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk).ok()?;
    chunk.truncate(length);
    (length > 0).then_some(chunk)
}
