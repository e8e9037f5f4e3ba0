//! The framing against hostile streams, and both readers against each other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::BufReader;

use calotype_protocol::schema::Line;
use calotype_protocol::{Down, Frame, FrameError, FrameLimits, FrameReader, Up, write_frame};
use proptest::prelude::*;

const SMALL: FrameLimits = FrameLimits {
    line_bytes: 512,
    blob_bytes: 1024,
    blobs: 4,
    total_bytes: 2048,
};

/// The golden conversations as they are checked in, by name.
fn golden() -> Vec<(String, Vec<Line>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schema/golden");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let conversations = files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (path.display().to_string(), lines.collect())
    };
    conversations.map(read).collect()
}

fn written(frame: &Frame<Up>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, frame).unwrap();
    bytes
}

fn read_all(bytes: &[u8]) -> (Vec<Frame<Up>>, FrameError) {
    let mut reader = FrameReader::with_limits(BufReader::new(bytes), SMALL);
    let mut frames = Vec::new();
    loop {
        match reader.read() {
            Ok(frame) => frames.push(frame),
            Err(error) => return (frames, error),
        }
    }
}

#[test]
fn every_golden_line_reads_back_as_it_was_written() {
    for (name, lines) in golden() {
        for line in lines {
            let mut bytes = Vec::new();
            match line {
                Line::Down(message) => {
                    let frame = Frame {
                        message,
                        blobs: vec![vec![1, 2, 3], vec![]],
                    };
                    write_frame(&mut bytes, &frame).unwrap();
                    assert_eq!(
                        FrameReader::new(&bytes[..]).read::<Down>().unwrap(),
                        frame,
                        "{name}"
                    );
                }
                Line::Up(message) => {
                    let frame = Frame {
                        message,
                        blobs: vec![vec![9; 1000]],
                    };
                    write_frame(&mut bytes, &frame).unwrap();
                    assert_eq!(
                        FrameReader::new(&bytes[..]).read::<Up>().unwrap(),
                        frame,
                        "{name}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_golden_files_hold_every_message_type() {
    let mut seen = std::collections::BTreeSet::new();
    for line in golden().into_iter().flat_map(|(_, lines)| lines) {
        let value = match &line {
            Line::Down(message) => serde_json::to_value(message).unwrap(),
            Line::Up(message) => serde_json::to_value(message).unwrap(),
        };
        seen.insert(value["type"].as_str().unwrap().to_owned());
    }
    let mut expected = std::collections::BTreeSet::new();
    for schema in [calotype_protocol::schema::down(), calotype_protocol::schema::up()] {
        for variant in schema.as_value()["oneOf"].as_array().unwrap() {
            expected.insert(
                variant["properties"]["type"]["const"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    assert_eq!(seen, expected);
}

#[test]
fn unknown_fields_are_ignored_and_an_unknown_type_is_refused_with_its_blobs_read() {
    let bytes = b"{\"type\":\"pong\",\"seq\":3,\"colour\":\"red\"}\n{\"type\":\"sing\",\"blobs\":[2]}\nxx{\"type\":\"bye\"}\n";
    let mut reader = FrameReader::new(&bytes[..]);
    assert_eq!(reader.read::<Up>().unwrap().message, Up::Pong { seq: 3 });
    assert!(matches!(reader.read::<Up>(), Err(FrameError::NotAMessage { .. })));
    assert_eq!(reader.read::<Up>().unwrap().message, Up::Bye {});
}

#[test]
fn a_line_above_the_limit_is_refused_with_its_head() {
    let (_, error) = read_all(&[b'a'; 5000]);
    assert!(matches!(error, FrameError::LineTooLong { limit_bytes: 512, ref head } if head.len() == 256));
}

#[test]
fn a_peer_that_leaves_between_frames_is_told_apart_from_one_that_leaves_inside() {
    let whole = written(&Frame {
        message: Up::Pong { seq: 1 },
        blobs: vec![vec![7; 10]],
    });
    assert!(matches!(read_all(&whole), (frames, FrameError::Closed) if frames.len() == 1));
    for cut in 1..whole.len() {
        let (frames, error) = read_all(&whole[..cut]);
        assert!(
            frames.is_empty() && matches!(error, FrameError::Truncated { .. }),
            "cut at {cut}: {error}"
        );
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_end_in_an_error_and_nothing_above_the_limits(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        let (frames, _) = read_all(&bytes);
        prop_assert!(frames.iter().all(|frame| frame.blobs.iter().all(|blob| blob.len() <= SMALL.blob_bytes)));
    }

    #[test]
    fn a_damaged_stream_never_panics(seq in any::<u64>(), blob in proptest::collection::vec(any::<u8>(), 0..900), at in any::<proptest::sample::Index>(), flip in 1u8..) {
        let mut bytes = written(&Frame { message: Up::Pong { seq }, blobs: vec![blob] });
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        read_all(&bytes);
    }

    #[test]
    fn a_hostile_length_costs_nothing(size in any::<u64>()) {
        let line = format!("{{\"type\":\"bye\",\"blobs\":[{size}]}}\n");
        let (_, error) = read_all(line.as_bytes());
        if size > 1024 {
            let refused = matches!(error, FrameError::BlobsRefused { .. });
            prop_assert!(refused);
        }
    }

    #[test]
    fn both_readers_read_the_same(bytes in proptest::collection::vec(prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        Just(b"{\"type\":\"bye\"}\n".to_vec()),
        Just(b"{\"type\":\"pong\",\"seq\":1,\"blobs\":[3]}\nabc".to_vec()),
    ], 0..12)) {
        let bytes: Vec<u8> = bytes.concat();
        let (frames, error) = read_all(&bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (async_frames, async_error) = runtime.block_on(async {
            let mut reader = calotype_protocol::AsyncFrameReader::with_limits(&bytes[..], SMALL);
            let mut frames: Vec<Frame<Up>> = Vec::new();
            loop {
                match reader.read().await {
                    Ok(frame) => frames.push(frame),
                    Err(error) => return (frames, error),
                }
            }
        });
        prop_assert_eq!(frames, async_frames);
        prop_assert_eq!(error.to_string(), async_error.to_string());
    }
}
