//! The worker as a process: handshake, ping, pulse, a clean leave, and the end of stdin.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::BufReader;
use std::process::{Child, Command, ExitCode, Stdio};

use calotype_protocol::{
    Down, Frame, FrameReader, Heartbeat, Limits, PROTOCOL, Up, Welcome, WorkerDevice, write_frame,
};
use calotype_worker::{Runtime, WorkerOptions, run};

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "the-worker") {
        return run(WorkerOptions {
            runtime: Runtime::Rten,
            onnxruntime_library: None,
        });
    }
    a_worker_greets_beats_answers_and_leaves();
    a_worker_leaves_when_its_stdin_ends();
    println!("pipe: 2 passed");
    ExitCode::SUCCESS
}

fn start() -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program)
        .arg("the-worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn a_worker_greets_beats_answers_and_leaves() {
    let mut child = start();
    let mut down = child.stdin.take().unwrap();
    let mut up = FrameReader::new(BufReader::new(child.stdout.take().unwrap()));
    let mut next = || -> Up { up.read().unwrap().message };
    let mut say = |message: Down| write_frame(&mut down, &Frame::from(message)).unwrap();
    assert!(matches!(next(), Up::Hello(hello) if hello.runtime == "native"));
    say(Down::Welcome(Welcome {
        protocol: PROTOCOL,
        device: WorkerDevice {
            kind: "cpu".into(),
            index: 0,
            uuid: None,
        },
        limits: Limits {
            frame_bytes: 1 << 20,
            blob_bytes: 1 << 28,
        },
        heartbeat: Heartbeat { every_ms: 50 },
        scratch: String::new(),
        threads: 1,
        deterministic: false,
    }));
    assert!(
        matches!(next(), Up::Ready(ready) if ready.capabilities.max_batch == 4 && ready.device.total_bytes > 0)
    );
    say(Down::Ping { seq: 7 });
    let (mut pong, mut beats) = (false, 0);
    while !pong || beats < 2 {
        match next() {
            Up::Pong { seq } => pong = seq == 7,
            Up::Beat(beat) => beats = beat.seq,
            other => panic!("{other:?}"),
        }
    }
    say(Down::Drain {});
    while !matches!(next(), Up::Bye {}) {}
    assert!(child.wait().unwrap().success());
}

fn a_worker_leaves_when_its_stdin_ends() {
    let mut child = start();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
