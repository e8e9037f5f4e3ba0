//! Frames over tokio pipes: what the orchestrator uses. The same rules as the blocking reader, from the same functions.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::frame::{Frame, FrameError, FrameLimits, announced_blobs, head_of, line_of, parse};
use crate::read::{PIECE_BYTES, end_of_line};

/// Reads frames from a buffered async pipe.
///
/// `read` is not cancel-safe: a dropped future loses its place in the stream. Give the reader a task of its own.
#[derive(Debug)]
pub struct AsyncFrameReader<R> {
    pipe: R,
    limits: FrameLimits,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> AsyncFrameReader<R> {
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
    pub async fn read<M: DeserializeOwned>(&mut self) -> Result<Frame<M>, FrameError> {
        self.line.clear();
        let most_bytes = self.limits.line_bytes as u64 + 1;
        (&mut self.pipe)
            .take(most_bytes)
            .read_until(b'\n', &mut self.line)
            .await?;
        end_of_line(&mut self.line, self.limits.line_bytes)?;
        let sizes = announced_blobs(&self.line, &self.limits)?;
        let mut blobs = Vec::with_capacity(sizes.len());
        for size in sizes {
            let mut blob = Vec::with_capacity(size.min(PIECE_BYTES));
            (&mut self.pipe).take(size as u64).read_to_end(&mut blob).await?;
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

/// Writes one frame and flushes it.
pub async fn write_frame_async<M: Serialize>(
    pipe: &mut (impl AsyncWrite + Unpin),
    frame: &Frame<M>,
) -> Result<(), FrameError> {
    pipe.write_all(&line_of(&frame.message, &frame.blobs)?).await?;
    for blob in &frame.blobs {
        pipe.write_all(blob).await?;
    }
    pipe.flush().await?;
    Ok(())
}
