//! The EXIF block: a small TIFF file that JPEG and WebP carry. Writes ours, reads anyone's.
//!
//! Ours has `Software`, the text for other programs as `UserComment`, and our own record as `MakerNote`.

const SOFTWARE: u16 = 0x0131;
const EXIF_DIRECTORY: u16 = 0x8769;
const EXIF_VERSION: u16 = 0x9000;
const MAKER_NOTE: u16 = 0x927c;
const USER_COMMENT: u16 = 0x9286;

const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

const UNICODE_CODE: &[u8] = b"UNICODE\0";
const ASCII_CODE: &[u8] = b"ASCII\0\0\0";
const UNKNOWN_CODE: &[u8] = &[0; 8];

/// A block in big-endian order. `comment` is left out when `None`.
pub(crate) fn write(software: &str, comment: Option<&str>, maker_note: &[u8]) -> Vec<u8> {
    let software: Vec<u8> = software
        .bytes()
        .filter(|byte| byte.is_ascii_graphic() || *byte == b' ')
        .chain([0])
        .collect();
    // Two entries: the second points behind this directory and its values.
    let exif_at = 8 + directory_length(&[(SOFTWARE, ASCII, &software), (EXIF_DIRECTORY, LONG, &[0; 4])]);
    let pointer = (exif_at as u32).to_be_bytes();

    let comment = comment.map(|comment| {
        let units = comment.encode_utf16().flat_map(u16::to_be_bytes);
        UNICODE_CODE.iter().copied().chain(units).collect::<Vec<u8>>()
    });
    // Entries of a directory are sorted by tag.
    let mut entries: Vec<Entry<'_>> = vec![
        (EXIF_VERSION, UNDEFINED, b"0232"),
        (MAKER_NOTE, UNDEFINED, maker_note),
    ];
    if let Some(comment) = &comment {
        entries.push((USER_COMMENT, UNDEFINED, comment));
    }

    let mut block = b"MM\0\x2a\0\0\0\x08".to_vec();
    write_directory(
        &mut block,
        &[(SOFTWARE, ASCII, &software), (EXIF_DIRECTORY, LONG, &pointer)],
    );
    write_directory(&mut block, &entries);
    block
}

/// Tag, type and value. All types that are written here count bytes, but for `LONG`, which counts one.
type Entry<'a> = (u16, u16, &'a [u8]);

fn directory_length(entries: &[Entry<'_>]) -> usize {
    let values: usize = entries.iter().map(|(_, _, value)| outside_length(value)).sum();
    2 + 12 * entries.len() + 4 + values
}

/// A value of up to four bytes lies in its entry; a longer one behind the directory, at an even place.
fn outside_length(value: &[u8]) -> usize {
    if value.len() <= 4 {
        0
    } else {
        value.len() + value.len() % 2
    }
}

fn write_directory(block: &mut Vec<u8>, entries: &[Entry<'_>]) {
    let mut values_at = block.len() + 2 + 12 * entries.len() + 4;
    let mut values = Vec::new();
    block.extend((entries.len() as u16).to_be_bytes());
    for (tag, kind, value) in entries {
        let count = if *kind == LONG { 1 } else { value.len() as u32 };
        block.extend(tag.to_be_bytes());
        block.extend(kind.to_be_bytes());
        block.extend(count.to_be_bytes());
        if value.len() <= 4 {
            let mut inside = [0; 4];
            inside[..value.len()].copy_from_slice(value);
            block.extend(inside);
        } else {
            block.extend((values_at as u32).to_be_bytes());
            values.extend_from_slice(value);
            values.resize(values.len() + value.len() % 2, 0);
            values_at += outside_length(value);
        }
    }
    // No further directory follows.
    block.extend([0; 4]);
    block.extend(values);
}

/// The `MakerNote`, whoever made it.
pub(crate) fn maker_note(block: &[u8]) -> Option<&[u8]> {
    let block = Block::open(block)?;
    block.exif_value(MAKER_NOTE)
}

/// The `UserComment` as text.
pub(crate) fn user_comment(block: &[u8]) -> Option<String> {
    let block = Block::open(block)?;
    let value = block.exif_value(USER_COMMENT)?;
    let (code, text) = value.split_at_checked(8)?;
    if code == UNICODE_CODE {
        return utf16(text, block.big_endian);
    }
    if code == ASCII_CODE || code == UNKNOWN_CODE {
        let text = std::str::from_utf8(text).ok()?;
        return Some(text.trim_end_matches('\0').to_owned());
    }
    None
}

/// Writers disagree whether the text follows the block's byte order. Mostly Latin text settles it: its high bytes
/// are zero. A tie follows the block.
fn utf16(text: &[u8], big_endian: bool) -> Option<String> {
    let pairs = || text.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    let zeros_first = pairs().filter(|pair| pair[0] == 0 && pair[1] != 0).count();
    let zeros_second = pairs().filter(|pair| pair[1] == 0 && pair[0] != 0).count();
    // Big-endian blocks are what we and most others write, in their own order; only the rest is guessed.
    let big_endian = big_endian || zeros_first > zeros_second;
    let units: Vec<u16> = pairs()
        .map(|pair| {
            if big_endian {
                u16::from_be_bytes(pair)
            } else {
                u16::from_le_bytes(pair)
            }
        })
        .collect();
    String::from_utf16(&units).ok()
}

/// A block that is being read. Every place in it is checked, since it came from anyone.
struct Block<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl<'a> Block<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        match bytes.get(..4)? {
            b"MM\0\x2a" => Some(Self {
                bytes,
                big_endian: true,
            }),
            b"II\x2a\0" => Some(Self {
                bytes,
                big_endian: false,
            }),
            _ => None,
        }
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    /// Where the entry of `tag` begins in the directory at `directory`.
    fn entry(&self, directory: usize, tag: u16) -> Option<usize> {
        let count = usize::from(self.u16(directory)?);
        (0..count)
            .map(|index| directory + 2 + 12 * index)
            .find(|entry| self.u16(*entry) == Some(tag))
    }

    /// The bytes of an entry of the EXIF directory whose type counts single bytes.
    fn exif_value(&self, tag: u16) -> Option<&'a [u8]> {
        let first = self.u32(4)? as usize;
        let exif = self.u32(self.entry(first, EXIF_DIRECTORY)? + 8)? as usize;
        let entry = self.entry(exif, tag)?;
        // BYTE, ASCII and UNDEFINED.
        if !matches!(self.u16(entry + 2)?, 1 | ASCII | UNDEFINED) {
            return None;
        }
        let length = self.u32(entry + 4)? as usize;
        let at = if length <= 4 {
            entry + 8
        } else {
            self.u32(entry + 8)? as usize
        };
        self.bytes.get(at..at.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_comment_in_little_endian_is_read_in_either_order() {
        let mut block = b"II\x2a\0\x08\0\0\0".to_vec();
        block.extend([1, 0, 0x69, 0x87, 4, 0, 1, 0, 0, 0, 26, 0, 0, 0, 0, 0, 0, 0]);
        let little: Vec<u8> = "a cat".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = "a cat".encode_utf16().flat_map(u16::to_be_bytes).collect();
        block.extend([1, 0, 0x86, 0x92, 7, 0, 18, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0]);
        for text in [little, big] {
            let block = [block.as_slice(), b"UNICODE\0", &text].concat();
            assert_eq!(user_comment(&block).as_deref(), Some("a cat"));
        }
    }

    proptest! {
        #[test]
        fn exif_reads_back_what_it_wrote(software in ".*", comment in any::<String>(), note: Vec<u8>) {
            let block = write(&software, Some(&comment), &note);
            prop_assert_eq!(user_comment(&block), Some(comment));
            prop_assert_eq!(maker_note(&block), Some(note.as_slice()));
            prop_assert_eq!(user_comment(&write(&software, None, &note)), None);
        }

        #[test]
        fn exif_never_panics(bytes: Vec<u8>, start in prop::sample::select(vec![&b"MM\0\x2a"[..], b"II\x2a\0"])) {
            let bytes = [start, &bytes].concat();
            let _ = user_comment(&bytes);
            let _ = maker_note(&bytes);
        }
    }
}
