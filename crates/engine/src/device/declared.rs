//! Devices that somebody says are there, because their drivers tell this program nothing.

use std::str::FromStr;

use super::Device;

/// Kinds that a worker may know, beside the processor.
const KINDS: [&str; 5] = ["cuda", "rocm", "xpu", "mps", "directml"];
const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
];

/// A device by its kind and number, and the memory that it has to give: `xpu0=16GiB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    kind: String,
    index: u32,
    total_bytes: u64,
}

impl FromStr for Declared {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let wrong = |what: String| format!("{what}; write it like xpu0=16GiB");
        let (id, size) = words
            .split_once('=')
            .ok_or_else(|| wrong("the memory is missing".into()))?;
        let kind = id.trim_end_matches(|letter: char| letter.is_ascii_digit());
        if !KINDS.contains(&kind) {
            return Err(wrong(format!("`{kind}` is none of {}", KINDS.join(", "))));
        }
        let index = id.trim_start_matches(kind);
        let index = if index.is_empty() { Ok(0) } else { index.parse() };
        let index = index.map_err(|_| wrong(format!("`{id}` has no small number")))?;
        let parsed = UNITS.iter().find_map(|(unit, bytes)| {
            let number: u64 = size.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*bytes)
        });
        match parsed {
            Some(total_bytes) if total_bytes > 0 => Ok(Self {
                kind: kind.into(),
                index,
                total_bytes,
            }),
            _ => Err(wrong(format!(
                "`{size}` is no whole number of GiB, MiB, GB or MB"
            ))),
        }
    }
}

impl From<&Declared> for Device {
    fn from(said: &Declared) -> Self {
        Device {
            id: format!("{}{}", said.kind, said.index),
            kind: said.kind.clone(),
            name: format!("{} device, as declared", said.kind),
            total_bytes: said.total_bytes,
            // No driver is asked, so nothing is said of what is free.
            ..Device::unread()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_device_is_its_kind_its_number_and_its_memory() {
        for (words, id, total_bytes) in [
            ("xpu0=16GiB", "xpu0", 16 << 30),
            ("mps=12GB", "mps0", 12_000_000_000),
            ("rocm11=512 MiB", "rocm11", 512 << 20),
        ] {
            let device = Device::from(&words.parse::<Declared>().unwrap());
            assert_eq!((device.id.as_str(), device.total_bytes), (id, total_bytes));
        }
    }

    #[test]
    fn what_is_said_wrongly_is_told_how_to_be_said() {
        for words in [
            "xpu0",
            "cpu0=1GiB",
            "xpu0=16",
            "xpu0=0GB",
            "xpu0=-1GB",
            "xpu99999999999=1GB",
            "=1GB",
            "gpu=1GB",
        ] {
            let why = words.parse::<Declared>().unwrap_err();
            assert!(why.contains("xpu0=16GiB"), "{words}: {why}");
        }
        assert!("xpu0=18446744073709551615GiB".parse::<Declared>().is_err());
    }

    proptest! {
        #[test]
        fn any_words_are_a_device_or_an_error(words in ".*") {
            let _ = words.parse::<Declared>();
        }
    }
}
