//! Arbitrary bytes at both readers: no panic, no allocation above the limits, and both say the same.
//! The first byte cuts the rest short, so that truncated streams come up as often as whole ones.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use calotype_protocol::{AsyncFrameReader, Down, FrameError, FrameLimits, FrameReader, Up};
use libfuzzer_sys::fuzz_target;

const LIMITS: FrameLimits = FrameLimits {
    line_bytes: 4096,
    blob_bytes: 16 << 10,
    blobs: 4,
    total_bytes: 32 << 10,
};
/// What a reader may ask for at once: a line, a blob or a parsed message, and what growing vectors take beyond.
const MOST_AT_ONCE_BYTES: usize = 256 << 10;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

struct Watching;

// SAFETY: every call is passed on to the system's allocator unchanged; `Cell` neither allocates nor unwinds.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST_AT_ONCE_BYTES && WATCHED.try_with(Cell::get).unwrap_or(false) {
            // No panic: that would allocate, too.
            std::process::abort();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let bytes = &bytes[..bytes.len() * (256 - usize::from(*cut)) / 256];
    WATCHED.set(true);
    let (up, down) = (read_up(bytes), read_down(bytes));
    WATCHED.set(false);
    // As messages they are different sets; where a stream breaks is the same for both.
    assert_eq!(up.1.is_empty(), down.1.is_empty());
});

/// Frames until the first error, and that error; by both readers.
fn read_up(bytes: &[u8]) -> (usize, String) {
    let mut reader = FrameReader::with_limits(bytes, LIMITS);
    let mut frames = Vec::new();
    let error = loop {
        match reader.read::<Up>() {
            Ok(frame) => frames.push(frame),
            Err(error) => break error.to_string(),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let Ok(runtime) = runtime else { return (0, error) };
    runtime.block_on(async {
        let mut reader = AsyncFrameReader::with_limits(bytes, LIMITS);
        for frame in &frames {
            assert_eq!(reader.read::<Up>().await.ok().as_ref(), Some(frame));
        }
        let last: FrameError = match reader.read::<Up>().await {
            Ok(frame) => panic!("the async reader went on: {frame:?}"),
            Err(last) => last,
        };
        assert_eq!(last.to_string(), error);
    });
    (frames.len(), error)
}

fn read_down(bytes: &[u8]) -> (usize, String) {
    let mut reader = FrameReader::with_limits(bytes, LIMITS);
    let mut count = 0;
    loop {
        match reader.read::<Down>() {
            Ok(_) => count += 1,
            Err(error) => return (count, error.to_string()),
        }
    }
}
