//! Three hundred streams of events of jobs that wait, half of which nobody reads.

use std::net::Shutdown;
use std::thread::{self, sleep};
use std::time::Duration;

use super::{GROUP, Queue};
use crate::http::Stream;
use crate::row::{Figure, told};
use crate::server::{Server, Spent};

const STREAMS: usize = 300;
const LASTS: Duration = Duration::from_secs(8);

pub fn measure(queue: &Queue<'_>) {
    let (spent, grown_bytes) = open(queue, |_| sleep(LASTS));
    told(
        GROUP,
        "300 event streams of waiting jobs, half of them unread: share of a core",
        Figure::Share(spent.1.share()),
    );
    told(
        GROUP,
        "memory (RSS) that 300 streams and 8 s of them take",
        Figure::Bytes(grown_bytes),
    );
}

/// What the server spends while something goes on with the streams open, and by how much its memory has grown since
/// before them.
pub fn open<T>(queue: &Queue<'_>, during: impl FnOnce(&Server) -> T) -> ((T, Spent), f64) {
    let server = &queue.server;
    let before_bytes = server.resident_bytes();
    let streams = queue.sample.iter().cycle().take(STREAMS);
    let mut streams: Vec<Stream> = streams
        .map(|job| Stream::open(server.address, &format!("/api/jobs/{job}/events")))
        .collect();
    let unread = streams.split_off(STREAMS / 2);
    let connections: Vec<_> = streams.iter().map(Stream::connection).collect();
    let outcome = thread::scope(|scope| {
        for stream in &mut streams {
            scope.spawn(|| stream.drain());
        }
        let spent = server.spent(|| during(server));
        let grown_bytes = (server.resident_bytes() - before_bytes).max(0.0);
        for connection in connections {
            // Its reader ends.
            let _ = connection.shutdown(Shutdown::Both);
        }
        (spent, grown_bytes)
    });
    drop(unread);
    outcome
}
