//! Three hundred streams of events of jobs that wait, half of which nobody reads.

use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use super::{GROUP, Queue};
use crate::http::Stream;
use crate::row::{Figure, told};

const STREAMS: usize = 300;
/// After this time no more are opened.
const WITHIN: Duration = Duration::from_secs(10);

/// Opens them, tells what the server's memory has grown by when `during` is over, and closes them.
pub fn open<T>(queue: &Queue<'_>, during: impl FnOnce() -> T) -> T {
    let server = &queue.server;
    let before_bytes = server.resident_bytes();
    let began = Instant::now();
    let mut streams = Vec::new();
    for job in queue.sample.iter().cycle().take(STREAMS) {
        let path = format!("/api/jobs/{job}/events");
        let left = WITHIN.saturating_sub(began.elapsed());
        match Stream::open(server.address, &path, left) {
            Some(stream) => streams.push(stream),
            None => break,
        }
    }
    told(
        GROUP,
        "event streams of waiting jobs that can be opened within 10 s, of 300",
        Figure::Count(streams.len()),
    );
    let unread = streams.split_off(streams.len() / 2);
    let connections: Vec<_> = streams.iter().map(Stream::connection).collect();
    let value = thread::scope(|scope| {
        for stream in &mut streams {
            scope.spawn(|| stream.drain());
        }
        let value = during();
        for connection in connections {
            // Its reader ends.
            let _ = connection.shutdown(Shutdown::Both);
        }
        value
    });
    let grown_bytes = (server.resident_bytes() - before_bytes).max(0.0);
    told(
        GROUP,
        "memory (RSS) that these streams take meanwhile, half of them unread",
        Figure::Bytes(grown_bytes),
    );
    drop(unread);
    value
}
