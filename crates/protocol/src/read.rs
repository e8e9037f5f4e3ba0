//! Frames over blocking pipes: what a worker uses.

use std::io::{BufRead, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{Frame, FrameError, FrameLimits, announced_blobs, head_of, line_of, parse};

/// A blob grows as its bytes arrive, in pieces of this size: a peer that announces much and sends little costs little.
pub(crate) const PIECE_BYTES: usize = 4 << 20;

/// Reads frames from a buffered pipe.
#[derive(Debug)]
pub struct FrameReader<R> {
    pipe: R,
    limits: FrameLimits,
    line: Vec<u8>,
}

impl<R: BufRead> FrameReader<R> {
    /// A reader with the protocol's limits.
    pub fn new(pipe: R) -> Self {
        Self::with_limits(pipe, FrameLimits::default())
    }

    /// A reader with limits of one's own.
    pub fn with_limits(pipe: R, limits: FrameLimits) -> Self {
        Self {
            pipe,
            limits,
            line: Vec::new(),
        }
    }

    /// Waits for the next frame. After an error the stream's position is lost: the caller stops reading.
    pub fn read<M: DeserializeOwned>(&mut self) -> Result<Frame<M>, FrameError> {
        self.line.clear();
        let most_bytes = self.limits.line_bytes as u64 + 1;
        (&mut self.pipe)
            .take(most_bytes)
            .read_until(b'\n', &mut self.line)?;
        end_of_line(&mut self.line, self.limits.line_bytes)?;
        let sizes = announced_blobs(&self.line, &self.limits)?;
        // Blobs come before the message is parsed: an unknown type must not leave its blobs in the stream.
        let mut blobs = Vec::with_capacity(sizes.len());
        for size in sizes {
            let mut blob = Vec::with_capacity(size.min(PIECE_BYTES));
            (&mut self.pipe).take(size as u64).read_to_end(&mut blob)?;
            if blob.len() != size {
                return Err(FrameError::Truncated {
                    head: head_of(&self.line),
                });
            }
            blobs.push(blob);
        }
        Ok(Frame {
            message: parse(&self.line)?,
            blobs,
        })
    }
}

/// Takes the newline off a line that was read with a cap of `limit_bytes` + 1, or says what is wrong with it.
pub(crate) fn end_of_line(line: &mut Vec<u8>, limit_bytes: usize) -> Result<(), FrameError> {
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(());
    }
    if line.is_empty() {
        return Err(FrameError::Closed);
    }
    if line.len() > limit_bytes {
        return Err(FrameError::LineTooLong {
            limit_bytes,
            head: head_of(line),
        });
    }
    Err(FrameError::Truncated { head: head_of(line) })
}

/// Writes one frame and flushes it.
pub fn write_frame<M: Serialize>(pipe: &mut impl Write, frame: &Frame<M>) -> Result<(), FrameError> {
    pipe.write_all(&line_of(&frame.message, &frame.blobs)?)?;
    for blob in &frame.blobs {
        pipe.write_all(blob)?;
    }
    pipe.flush()?;
    Ok(())
}
