//! Finds out which cards the workers can use. NVML lists every card of the machine; `CUDA_VISIBLE_DEVICES` hides some of
//! them from CUDA and torch, but not from NVML. The variable is read as torch reads it (`torch/cuda/__init__.py`,
//! `_parse_visible_devices` and `_transform_uuid_to_ordinals`). A number in it counts in the order of the PCI bus, which
//! is the order in which NVML lists. Pure.

/// A card as NVML lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// `GPU-…`.
    pub(super) uuid: String,
    /// Its slices where MIG is on, each `MIG-…`.
    pub(super) slices: Vec<String>,
}

/// A card or a slice that CUDA shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    /// A card by its place in NVML's list.
    Card(usize),
    /// A slice by its card's place and its own.
    Slice(usize, usize),
}

/// What CUDA shows, in its order: the position in the answer is the index that a worker uses. `setting` is the value of
/// `CUDA_VISIBLE_DEVICES`, `None` where it is not set.
pub(super) fn seen(setting: Option<&str>, cards: &[Listed]) -> Vec<Seen> {
    let Some(setting) = setting else {
        return (0..cards.len()).map(Seen::Card).collect();
    };
    let setting = setting.trim();
    let found = |part: &str| match setting.get(..4) {
        Some("GPU-") => only(
            places(cards).filter(|(seen, _)| matches!(seen, Seen::Card(_))),
            part,
        ),
        Some("MIG-") => only(
            places(cards).filter(|(seen, _)| matches!(seen, Seen::Slice(..))),
            part,
        ),
        _ => number(part).filter(|index| *index < cards.len()).map(Seen::Card),
    };
    let mut chosen = Vec::new();
    for part in setting.split(',').map(str::trim) {
        // The first part that names no card ends the list.
        let Some(card) = found(part) else { break };
        // A card named twice makes CUDA show none at all.
        if chosen.contains(&card) {
            return Vec::new();
        }
        chosen.push(card);
    }
    // CUDA computes on one slice in a process.
    if matches!(chosen.first(), Some(Seen::Slice(..))) {
        chosen.truncate(1);
    }
    chosen
}

fn places(cards: &[Listed]) -> impl Iterator<Item = (Seen, &str)> {
    cards.iter().enumerate().flat_map(|(card, listed)| {
        let slices = listed.slices.iter().enumerate();
        let slices = slices.map(move |(slice, uuid)| (Seen::Slice(card, slice), uuid.as_str()));
        [(Seen::Card(card), listed.uuid.as_str())]
            .into_iter()
            .chain(slices)
    })
}

/// The one whose UUID begins so; none where several do.
fn only<'a>(mut places: impl Iterator<Item = (Seen, &'a str)>, prefix: &str) -> Option<Seen> {
    // `GPU-` alone names nothing.
    if prefix.len() <= 4 {
        return None;
    }
    let (seen, _) = places.find(|(_, uuid)| uuid.starts_with(prefix))?;
    places.all(|(_, uuid)| !uuid.starts_with(prefix)).then_some(seen)
}

/// The number that a part begins with, as C's `strtoul` reads it: `1gpu` is 1. Negative ones are none.
fn number(part: &str) -> Option<usize> {
    let digits = part.strip_prefix('+').unwrap_or(part);
    let end = digits
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Seen::{Card, Slice};
    use super::*;

    fn cards() -> Vec<Listed> {
        let card = |uuid: &str, slices: &[&str]| Listed {
            uuid: uuid.into(),
            slices: slices.iter().map(|slice| (*slice).to_owned()).collect(),
        };
        vec![
            card("GPU-8932f937-d72c", &[]),
            card("GPU-89aa0000-1111", &[]),
            card("GPU-c0ffee00-2222", &["MIG-aaaa-1", "MIG-aaab-2"]),
        ]
    }

    #[test]
    fn without_a_setting_every_card_is_seen() {
        assert_eq!(seen(None, &cards()), [Card(0), Card(1), Card(2)]);
    }

    #[test]
    fn a_setting_chooses_and_orders_as_torch_does() {
        let expected: &[(&str, &[Seen])] = &[
            ("0", &[Card(0)]),
            ("1", &[Card(1)]),
            ("2,0", &[Card(2), Card(0)]),
            (" 1 , 0 ", &[Card(1), Card(0)]),
            ("1gpu2,2ampere", &[Card(1), Card(2)]),
            // Nothing, and what begins with nothing.
            ("", &[]),
            ("-1", &[]),
            ("none", &[]),
            ("NoDevFiles", &[]),
            // What comes behind a part that names no card does not count.
            ("0,-1,1", &[Card(0)]),
            ("1,7,0", &[Card(1)]),
            ("0,,1", &[Card(0)]),
            // A card named twice leaves none.
            ("0,1,0", &[]),
            // UUIDs, whole or their beginning where one card alone has it.
            ("GPU-8932f937-d72c", &[Card(0)]),
            ("GPU-c0,GPU-8932", &[Card(2), Card(0)]),
            ("GPU-89", &[]),
            ("GPU-", &[]),
            ("GPU-dead", &[]),
            ("GPU-c0,0", &[Card(2)]),
            // A slice: one in a process.
            ("MIG-aaab-2", &[Slice(2, 1)]),
            ("MIG-aaa", &[]),
            ("MIG-aaaa,MIG-aaab", &[Slice(2, 0)]),
            ("MIG-none", &[]),
        ];
        for (setting, expected) in expected {
            assert_eq!(seen(Some(setting), &cards()), *expected, "`{setting}`");
        }
    }

    proptest! {
        #[test]
        fn no_setting_shows_a_card_twice_or_one_that_is_not_there(setting in "[-+0-9A-Za-z, ]{0,40}") {
            let chosen = seen(Some(&setting), &cards());
            let mut once = chosen.clone();
            once.sort();
            once.dedup();
            prop_assert_eq!(once.len(), chosen.len());
            prop_assert!(chosen.iter().all(|seen| matches!(seen, Card(0..3) | Slice(2, 0..2))));
        }
    }
}
