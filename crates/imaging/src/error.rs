//! What can be wrong with a picture.

/// Why a picture was not read or not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The bytes begin like no picture at all.
    #[error("not an image")]
    NotAnImage,
    /// A picture, of a kind that is not read here.
    #[error("unsupported image format: {format}")]
    UnsupportedFormat {
        /// What it is.
        format: String,
    },
    /// Over a limit; said before anything of that size is allocated.
    #[error("image too large: {what} is {have}, the limit is {limit}")]
    TooLarge {
        /// What is over its limit, with its unit.
        what: &'static str,
        /// How much there is.
        have: u64,
        /// How much there may be.
        limit: u64,
    },
    /// It begins like a picture and does not go on like one.
    #[error("corrupt image: {reason}")]
    Corrupt {
        /// What the decoder said.
        reason: String,
    },
    /// The number of bytes does not fit width and height.
    #[error("{have} bytes of pixels where width and height ask for {want}")]
    WrongLength {
        /// How many bytes there are.
        have: u64,
        /// How many width, height and channels ask for.
        want: u64,
    },
    /// Width or height is zero.
    #[error("image has no pixels")]
    Empty,
    /// These pixels cannot be written in this format.
    #[error("cannot encode: {reason}")]
    Unencodable {
        /// What the encoder said.
        reason: String,
    },
    /// The metadata cannot be written or read.
    #[error("bad metadata: {reason}")]
    BadMetadata {
        /// What is wrong with it.
        reason: String,
    },
}
