//! Pixels in memory: eight bits a channel, row after row, nothing between.

use crate::ImageError;

/// A colour picture: height × width × (red, green, blue).
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Three bytes a pixel.
    pub pixels: Vec<u8>,
}

/// A picture of one channel, such as a mask: 0 is black, 255 white.
#[derive(Clone, PartialEq, Eq)]
pub struct Gray {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// One byte a pixel.
    pub pixels: Vec<u8>,
}

impl Rgb {
    /// Takes the pixels, if there are exactly `width` × `height` × 3 bytes of them and at least one pixel.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ImageError> {
        check_length(width, height, 3, pixels.len())?;
        Ok(Self {
            width,
            height,
            pixels,
        })
    }

    /// The fields are public, so a picture is checked again where its length matters.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        check_length(self.width, self.height, 3, self.pixels.len())
    }
}

impl Gray {
    /// Takes the pixels, if there are exactly `width` × `height` bytes of them and at least one pixel.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ImageError> {
        check_length(width, height, 1, pixels.len())?;
        Ok(Self {
            width,
            height,
            pixels,
        })
    }

    /// As for `Rgb`.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        check_length(self.width, self.height, 1, self.pixels.len())
    }
}

fn check_length(width: u32, height: u32, channels: u64, have: usize) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::Empty);
    }
    let want = (u64::from(width) * u64::from(height)).saturating_mul(channels);
    let have = have as u64;
    if have == want {
        Ok(())
    } else {
        Err(ImageError::WrongLength { have, want })
    }
}

// A picture in a log line is its size, not its pixels.
impl std::fmt::Debug for Rgb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb({}x{})", self.width, self.height)
    }
}

impl std::fmt::Debug for Gray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gray({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_as_many_bytes_as_its_size_asks_for() {
        assert!(Rgb::new(2, 3, vec![0; 18]).is_ok());
        assert_eq!(
            Rgb::new(2, 3, vec![0; 17]),
            Err(ImageError::WrongLength { have: 17, want: 18 })
        );
        assert_eq!(Rgb::new(0, 3, vec![]), Err(ImageError::Empty));
        assert!(Rgb::new(u32::MAX, u32::MAX, vec![0; 3]).is_err());
        assert!(Gray::new(2, 3, vec![0; 6]).is_ok());
        assert!(Gray::new(2, 3, vec![0; 18]).is_err());
    }
}
