//! Prompt syntax: `(x)` weighs 1.1 times, `[x]` 1/1.1 times, `(x:1.3)` 1.3 times; brackets nest and multiply;
//! `\(` is a bracket itself. A bracket that is never closed is text. Pure.

use calotype_protocol::Span;

/// What one round bracket multiplies by, as in the tool that made the syntax common.
const STEP: f32 = 1.1;
/// A weight beyond this only makes noise.
const MOST: f32 = 10.0;

/// Splits a prompt into spans of equal weight; an empty prompt has none.
pub fn spans(prompt: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    // For each open bracket: which, and the span before which it opened.
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut text = String::new();
    let mut letters = prompt.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if matches!(letters.peek(), Some('(' | ')' | '[' | ']' | '\\')) => text.extend(letters.next()),
            '(' | '[' => {
                close_text(&mut spans, &mut text);
                open.push((letter, spans.len()));
            }
            ')' if matches!(open.last(), Some(('(', _))) => {
                let (_, from) = open.pop().unwrap_or_default();
                let factor = explicit_weight(&mut text).unwrap_or(STEP);
                close_text(&mut spans, &mut text);
                multiply(&mut spans, from, factor);
            }
            ']' if matches!(open.last(), Some(('[', _))) => {
                let (_, from) = open.pop().unwrap_or_default();
                close_text(&mut spans, &mut text);
                multiply(&mut spans, from, 1.0 / STEP);
            }
            other => text.push(other),
        }
    }
    close_text(&mut spans, &mut text);
    // Outermost last: an insertion moves what stands behind it.
    for (bracket, at) in open.into_iter().rev() {
        spans.insert(at.min(spans.len()), Span { text: bracket.to_string(), weight: 1.0 });
    }
    merge(spans)
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

fn close_text(spans: &mut Vec<Span>, text: &mut String) {
    if !text.is_empty() {
        spans.push(Span { text: std::mem::take(text), weight: 1.0 });
    }
}

fn multiply(spans: &mut [Span], from: usize, factor: f32) {
    for span in spans.iter_mut().skip(from) {
        span.weight = (span.weight * factor).clamp(-MOST, MOST);
    }
}

fn merge(spans: Vec<Span>) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if last.weight == span.weight => last.text.push_str(&span.text),
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(prompt: &str) -> Vec<(String, f32)> {
        spans(prompt).into_iter().map(|span| (span.text, (span.weight * 1000.0).round() / 1000.0)).collect()
    }

    fn owned(spans: &[(&str, f32)]) -> Vec<(String, f32)> {
        spans.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect()
    }

    #[test]
    fn brackets_weigh_and_nest() {
        assert_eq!(shown("a (red) apple"), owned(&[("a ", 1.0), ("red", 1.1), (" apple", 1.0)]));
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
