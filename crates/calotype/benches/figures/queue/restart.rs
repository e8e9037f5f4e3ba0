//! A start with ten thousand jobs of an earlier run, which was killed as by a power failure.

use std::time::Duration;

use super::{GROUP, Queue, SLOW_MS, serve};
use crate::row::{Figure, held_to, told};

const SOUND_WITHIN: Duration = Duration::from_secs(60);

pub fn measure(queue: &mut Queue<'_>) {
    queue.fleet.set_step_ms(SLOW_MS);
    queue.server.kill();
    queue.server = serve(queue.programs, &queue.fleet, &queue.data);
    let server = &queue.server;
    held_to(
        GROUP,
        "kill -9, then from the start to the line `listening`",
        server.listening,
        Duration::from_secs(2),
    );
    let mut connection = server.connection();
    connection.get("/health");
    told(
        GROUP,
        "to the first answer of `/health`",
        server.started.elapsed(),
    );
    let sound = server.until(SOUND_WITHIN, || connection.get("/health").status == 200);
    assert!(sound, "/health did not become sound");
    told(
        GROUP,
        "to the first sound answer of `/health`",
        server.started.elapsed(),
    );
    queue.fleet.busy(server);
    told(
        GROUP,
        "to the moment when all 64 workers have a job",
        server.started.elapsed(),
    );
    told(
        GROUP,
        "memory of the server (RSS) after it",
        Figure::Bytes(server.resident_bytes()),
    );
    let live = queue.live();
    assert!(
        live + 1000 > queue.waiting as u64,
        "{live} jobs are there after the restart, {} waited before it",
        queue.waiting
    );
}
