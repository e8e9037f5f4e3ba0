//! `Range: bytes=a-b`, one range (RFC 9110, section 14). Pure.

use std::ops::Range;

/// What a client asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Everything; also what several ranges or other units get, which a server may ignore.
    Whole,
    /// These bytes.
    Part(Range<usize>),
    /// Bytes that are not there.
    Outside,
}

pub(crate) fn asked(header: Option<&str>, length: usize) -> Asked {
    let Some(spec) = header.and_then(|header| header.strip_prefix("bytes=")) else {
        return Asked::Whole;
    };
    let Some((from, to)) = spec.split_once('-') else {
        return Asked::Whole;
    };
    let number = |text: &str| text.trim().parse::<usize>().ok();
    match (number(from), number(to)) {
        (None, Some(last)) if from.trim().is_empty() => match last {
            0 => Asked::Outside,
            last => Asked::Part(length.saturating_sub(last)..length),
        },
        (Some(from), None) if to.trim().is_empty() => {
            if from < length {
                Asked::Part(from..length)
            } else {
                Asked::Outside
            }
        }
        (Some(from), Some(to)) if from <= to => {
            if from < length {
                Asked::Part(from..to.saturating_add(1).min(length))
            } else {
                Asked::Outside
            }
        }
        _ => Asked::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_what_is_there() {
        for (header, expected) in [
            ("bytes=0-3", Asked::Part(0..4)),
            ("bytes=2-", Asked::Part(2..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-99", Asked::Part(0..10)),
            ("bytes=5-18446744073709551615", Asked::Part(5..10)),
            ("bytes=10-", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=3-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("bytes=x", Asked::Whole),
        ] {
            assert_eq!(asked(Some(header), 10), expected, "{header}");
        }
        assert_eq!(asked(None, 10), Asked::Whole);
    }
}
