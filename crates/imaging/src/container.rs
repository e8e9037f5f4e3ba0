//! Where in the bytes of a JPEG or a WebP the EXIF block lies. Reads lengths, allocates nothing.

/// The identifier before the EXIF block in an APP1 segment of a JPEG.
const EXIF_HEADER: &[u8] = b"Exif\0\0";

/// What a walk over the segments of a JPEG found.
pub(crate) struct JpegParts<'a> {
    /// The EXIF block, without its header.
    pub exif: Option<&'a [u8]>,
    /// All that follows the header of the first scan.
    pub scans: &'a [u8],
}

/// Walks the segments up to the first scan. `None` if there is no scan.
pub(crate) fn jpeg_parts(bytes: &[u8]) -> Option<JpegParts<'_>> {
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    let mut exif = None;
    loop {
        // Any number of 0xff may stand before a marker.
        let after_fill = rest.iter().position(|byte| *byte != 0xff)?;
        if after_fill == 0 {
            // Bytes between segments are an error that every decoder forgives.
            let next = rest.iter().position(|byte| *byte == 0xff)?;
            rest = &rest[next..];
            continue;
        }
        let marker = rest[after_fill];
        rest = &rest[after_fill + 1..];
        match marker {
            // Markers without a length: a stuffed zero, TEM, restarts, start of image.
            0x00 | 0x01 | 0xd0..=0xd8 => continue,
            0xd9 => return None,
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
        let segment = rest.get(2..length.max(2))?;
        rest = &rest[length.max(2)..];
        match marker {
            0xda => return Some(JpegParts { exif, scans: rest }),
            0xe1 if exif.is_none() => exif = segment.strip_prefix(EXIF_HEADER),
            _ => {}
        }
    }
}

/// The EXIF chunk of a WebP.
pub(crate) fn webp_exif(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(..4)? != b"RIFF" || bytes.get(8..12)? != b"WEBP" {
        return None;
    }
    let mut rest = bytes.get(12..)?;
    loop {
        let size = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
        if rest.get(..4)? == b"EXIF" {
            let block = rest.get(8..)?.get(..size)?;
            // Some writers keep the header of the JPEG segment.
            return Some(block.strip_prefix(EXIF_HEADER).unwrap_or(block));
        }
        // Chunks lie at even places.
        rest = rest.get(8..)?.get(size.checked_add(size & 1)?..)?;
    }
}
