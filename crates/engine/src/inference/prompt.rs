//! Prompt syntax: `(x)` weighs 1.1 times, `[x]` 1/1.1 times, `(x:1.3)` 1.3 times; brackets nest and multiply;
//! `\(` is a bracket itself. A bracket that is never closed is text. Pure.

use calotype_protocol::Span;

/// What one round bracket multiplies by, as in the tool that made the syntax common.
const STEP: f32 = 1.1;
/// A weight beyond this only makes noise.
const MOST: f32 = 10.0;

enum Piece {
    Text(String),
    /// A bracket, and what it multiplies by once it is known to be closed.
    Open(char, Option<f32>),
    Close,
}

/// Splits a prompt into spans of equal weight; an empty prompt has none. Linear in its length: anyone may send one.
pub fn spans(prompt: &str) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::new();
    let mut put = |text: &str, weight: f32| match merged.last_mut() {
        Some(last) if last.weight == weight => last.text.push_str(text),
        _ => merged.push(Span {
            text: text.to_owned(),
            weight,
        }),
    };
    let (mut outer, mut weight) = (Vec::new(), 1.0f32);
    for piece in pieces(prompt) {
        match piece {
            Piece::Text(text) => put(&text, weight),
            Piece::Open(bracket, None) => put(bracket.encode_utf8(&mut [0; 4]), weight),
            Piece::Open(_, Some(factor)) => {
                outer.push(weight);
                weight = (weight * factor).clamp(-MOST, MOST);
            }
            Piece::Close => weight = outer.pop().unwrap_or(1.0),
        }
    }
    merged
}

/// Text and brackets, each opening one told what it multiplies by.
fn pieces(prompt: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    // The open brackets: which, and where.
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut text = String::new();
    let mut letters = prompt.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, open.last().copied()) {
            ('\\', _) if matches!(letters.peek(), Some('(' | ')' | '[' | ']' | '\\')) => {
                text.extend(letters.next())
            }
            ('(' | '[', _) => {
                close_text(&mut pieces, &mut text);
                open.push((letter, pieces.len()));
                pieces.push(Piece::Open(letter, None));
            }
            (')', Some(('(', at))) => {
                let factor = explicit_weight(&mut text).unwrap_or(STEP);
                close(&mut pieces, &mut open, &mut text, at, factor);
            }
            (']', Some(('[', at))) => close(&mut pieces, &mut open, &mut text, at, 1.0 / STEP),
            (other, _) => text.push(other),
        }
    }
    close_text(&mut pieces, &mut text);
    pieces
}

fn close(pieces: &mut Vec<Piece>, open: &mut Vec<(char, usize)>, text: &mut String, at: usize, factor: f32) {
    close_text(pieces, text);
    open.pop();
    if let Some(Piece::Open(_, known)) = pieces.get_mut(at) {
        *known = Some(factor);
    }
    pieces.push(Piece::Close);
}

/// Takes `:1.3` off the end of a text.
fn explicit_weight(text: &mut String) -> Option<f32> {
    let colon = text.rfind(':')?;
    let weight: f32 = text.get(colon + 1..)?.trim().parse().ok()?;
    if !weight.is_finite() {
        return None;
    }
    text.truncate(colon);
    Some(weight.clamp(-MOST, MOST))
}

fn close_text(pieces: &mut Vec<Piece>, text: &mut String) {
    if !text.is_empty() {
        pieces.push(Piece::Text(std::mem::take(text)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(prompt: &str) -> Vec<(String, f32)> {
        spans(prompt)
            .into_iter()
            .map(|span| (span.text, (span.weight * 1000.0).round() / 1000.0))
            .collect()
    }

    fn owned(spans: &[(&str, f32)]) -> Vec<(String, f32)> {
        spans
            .iter()
            .map(|(text, weight)| ((*text).to_owned(), *weight))
            .collect()
    }

    #[test]
    fn brackets_weigh_and_nest() {
        assert_eq!(
            shown("a (red) apple"),
            owned(&[("a ", 1.0), ("red", 1.1), (" apple", 1.0)])
        );
        assert_eq!(shown("((x))[y]"), owned(&[("x", 1.21), ("y", 0.909)]));
        assert_eq!(shown("(a (b:2):1.5)"), owned(&[("a ", 1.5), ("b", 3.0)]));
    }

    #[test]
    fn escaped_and_lonely_brackets_are_text() {
        assert_eq!(shown(r"a \(b\)"), owned(&[("a (b)", 1.0)]));
        assert_eq!(shown("a (b"), owned(&[("a (b", 1.0)]));
        assert_eq!(shown("a) b] :)"), owned(&[("a) b] :)", 1.0)]));
        assert_eq!(shown("(ratio 16:9 wide)"), owned(&[("ratio 16:9 wide", 1.1)]));
        assert!(shown("").is_empty());
    }

    #[test]
    fn the_longest_hostile_prompts_are_split_in_no_time() {
        let least = std::time::Duration::from_millis(500);
        for piece in ["(", "[", "(a", "[a", "(a:2)", "a)", "\\(", "([a"] {
            let prompt = piece.repeat(32_000 / piece.len());
            let begun = std::time::Instant::now();
            spans(&prompt);
            assert!(begun.elapsed() < least, "{piece}: {:?}", begun.elapsed());
        }
        let nest = format!("{}x{}", "(a".repeat(8_000), ")".repeat(8_000));
        let begun = std::time::Instant::now();
        spans(&nest);
        assert!(begun.elapsed() < least, "nest: {:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn any_text_gives_finite_weights_and_no_empty_span(prompt in ".{0,200}") {
            for span in spans(&prompt) {
                prop_assert!(span.weight.is_finite() && span.weight.abs() <= MOST && !span.text.is_empty());
            }
        }

        #[test]
        fn brackets_alone_never_panic(prompt in r"[()\[\]\\:0-9a.]{0,60}") {
            spans(&prompt);
        }
    }
}
