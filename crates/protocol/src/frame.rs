//! One frame: a JSON object on one line, then its blobs. Pure: bytes in, bytes out.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the protocol; a worker of another major version is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// Changes when an old peer would misunderstand.
    pub major: u32,
    /// Grows with each addition that an old peer may ignore.
    pub minor: u32,
}

/// The version that this crate speaks.
pub const PROTOCOL: Version = Version { major: 1, minor: 0 };

/// What a reader takes. Anything larger is refused before memory is allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest line, newline excluded.
    pub line_bytes: usize,
    /// Largest single blob.
    pub blob_bytes: usize,
    /// Most blobs in one frame.
    pub blobs: usize,
    /// All blobs of one frame together.
    pub total_bytes: usize,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            line_bytes: 1 << 20,
            blob_bytes: 256 << 20,
            blobs: 64,
            total_bytes: 512 << 20,
        }
    }
}

/// Raw bytes that follow a line.
pub type Blob = Vec<u8>;

/// A message with its blobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame<M> {
    /// The typed object of the line.
    pub message: M,
    /// The byte strings behind it, in order.
    pub blobs: Vec<Blob>,
}

impl<M> From<M> for Frame<M> {
    fn from(message: M) -> Self {
        Self {
            message,
            blobs: Vec::new(),
        }
    }
}

/// Why a stream of frames cannot be read any further. After any of these the reader is closed: the position in the
/// stream is lost, and the peer that sent it is recycled.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer left between two frames; the only clean end.
    #[error("the stream ended")]
    Closed,
    /// The peer left inside a frame.
    #[error("the stream ended inside a frame{}", head_text(head))]
    Truncated {
        /// First bytes of what had come.
        head: Vec<u8>,
    },
    /// No newline within the limit.
    #[error("a line is longer than {limit_bytes} bytes{}", head_text(head))]
    LineTooLong {
        /// The limit.
        limit_bytes: usize,
        /// First bytes of the line.
        head: Vec<u8>,
    },
    /// The line is not a JSON object, or not a message that we know.
    #[error("a line is not a message: {reason}{}", head_text(head))]
    NotAMessage {
        /// What the parser said.
        reason: String,
        /// First bytes of the line.
        head: Vec<u8>,
    },
    /// Announced blobs break a limit; none of them was read.
    #[error("blobs refused: {reason}")]
    BlobsRefused {
        /// Which limit, and the number announced.
        reason: String,
    },
    /// The pipe itself failed.
    #[error("the pipe failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Bytes of a bad line that an error keeps.
pub(crate) const HEAD_BYTES: usize = 256;

pub(crate) fn head_of(line: &[u8]) -> Vec<u8> {
    line[..line.len().min(HEAD_BYTES)].to_vec()
}

fn head_text(head: &[u8]) -> String {
    if head.is_empty() {
        String::new()
    } else {
        format!(", it begins {:?}", String::from_utf8_lossy(head))
    }
}

/// The one field that the framing itself reads.
#[derive(Deserialize)]
struct Announcement {
    #[serde(default)]
    blobs: Vec<u64>,
}

/// Reads which blobs follow `line`, and refuses what breaks `limits`.
pub(crate) fn announced_blobs(line: &[u8], limits: &FrameLimits) -> Result<Vec<usize>, FrameError> {
    // Only an object may announce: serde would also take an array for a struct.
    if line.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(FrameError::NotAMessage {
            reason: "not a JSON object".into(),
            head: head_of(line),
        });
    }
    let announcement: Announcement = parse(line)?;
    if announcement.blobs.len() > limits.blobs {
        return Err(FrameError::BlobsRefused {
            reason: format!(
                "{} blobs announced, at most {} are taken",
                announcement.blobs.len(),
                limits.blobs
            ),
        });
    }
    let mut total_bytes = 0usize;
    let mut sizes = Vec::with_capacity(announcement.blobs.len());
    for announced in announcement.blobs {
        let size = usize::try_from(announced)
            .ok()
            .filter(|size| *size <= limits.blob_bytes)
            .ok_or_else(|| FrameError::BlobsRefused {
                reason: format!(
                    "a blob of {announced} bytes announced, at most {} are taken",
                    limits.blob_bytes
                ),
            })?;
        total_bytes = total_bytes.saturating_add(size);
        sizes.push(size);
    }
    if total_bytes > limits.total_bytes {
        return Err(FrameError::BlobsRefused {
            reason: format!(
                "{total_bytes} bytes in blobs announced, at most {} are taken",
                limits.total_bytes
            ),
        });
    }
    Ok(sizes)
}

pub(crate) fn parse<M: DeserializeOwned>(line: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(line).map_err(|error| FrameError::NotAMessage {
        reason: error.to_string(),
        head: head_of(line),
    })
}

/// The line of a frame, newline included, ready to be followed by `blobs`.
///
/// Fails only where `message` cannot be written as a JSON object, which no type of this crate can cause.
pub(crate) fn line_of<M: Serialize>(message: &M, blobs: &[Blob]) -> Result<Vec<u8>, FrameError> {
    let mut line = serde_json::to_vec(message).map_err(|error| FrameError::NotAMessage {
        reason: error.to_string(),
        head: Vec::new(),
    })?;
    if !blobs.is_empty() {
        if line.last() != Some(&b'}') {
            return Err(FrameError::NotAMessage {
                reason: "not a JSON object".into(),
                head: head_of(&line),
            });
        }
        line.pop();
        let sizes: Vec<String> = blobs.iter().map(|blob| blob.len().to_string()).collect();
        let separator = if line.last() == Some(&b'{') { "" } else { "," };
        line.extend_from_slice(format!("{separator}\"blobs\":[{}]}}", sizes.join(",")).as_bytes());
    }
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(line: &str) -> Result<Vec<usize>, FrameError> {
        announced_blobs(line.as_bytes(), &FrameLimits::default())
    }

    #[test]
    fn a_line_without_blobs_announces_none() {
        assert_eq!(sizes(r#"{"type":"ping","seq":1}"#).unwrap(), Vec::<usize>::new());
    }

    #[test]
    fn a_blob_above_the_limit_is_refused_before_it_is_read() {
        assert!(matches!(
            sizes(r#"{"blobs":[268435457]}"#),
            Err(FrameError::BlobsRefused { .. })
        ));
        assert!(matches!(
            sizes(r#"{"blobs":[18446744073709551615]}"#),
            Err(FrameError::BlobsRefused { .. })
        ));
        assert_eq!(sizes(r#"{"blobs":[268435456]}"#).unwrap(), vec![256 << 20]);
    }

    #[test]
    fn many_blobs_within_their_own_limit_are_refused_by_the_sum() {
        assert!(matches!(
            sizes(r#"{"blobs":[268435456,268435456,1]}"#),
            Err(FrameError::BlobsRefused { .. })
        ));
    }

    #[test]
    fn lengths_that_are_no_lengths_are_not_a_message() {
        for line in [
            r#"{"blobs":[-1]}"#,
            r#"{"blobs":[1.5]}"#,
            r#"{"blobs":"x"}"#,
            "[[1]]",
            "7",
            "",
            "null",
        ] {
            assert!(
                matches!(sizes(line), Err(FrameError::NotAMessage { .. })),
                "{line}"
            );
        }
    }

    #[test]
    fn an_error_keeps_no_more_than_the_first_256_bytes() {
        let line = vec![b'x'; 10_000];
        match announced_blobs(&line, &FrameLimits::default()) {
            Err(FrameError::NotAMessage { head, .. }) => assert_eq!(head.len(), HEAD_BYTES),
            other => panic!("{other:?}"),
        }
    }
}
