//! Prompt syntax: `(x)` weighs 1.1 times, `[x]` 1/1.1 times, `(x:1.3)` 1.3 times; brackets nest and multiply;
//! `\(` is a bracket itself. A bracket that is never closed is text. `<lora:name:0.8>` lays a LoRA on and is no text.
//! The word `BREAK` ends a chunk of what the text encoder sees at once. Pure.

use calotype_protocol::Span;

/// What one round bracket multiplies by, as in the tool that made the syntax common.
const STEP: f32 = 1.1;
/// A weight beyond this only makes noise.
const MOST: f32 = 10.0;
/// The word that ends a chunk; a span of exactly this text tells workers so.
const BREAK: &str = "BREAK";
const LORA: &str = "<lora:";

/// What a prompt says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Parsed {
    /// Text of equal weight, span after span; an empty prompt has none.
    pub(crate) spans: Vec<Span>,
    /// The LoRAs that it names, in its order.
    pub(crate) loras: Vec<LoraTag>,
}

/// `<lora:name:weight>`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoraTag {
    pub(crate) name: String,
    /// 1 where none is given; finite.
    pub(crate) weight: f32,
}

impl Parsed {
    /// All that is drawn, without its syntax.
    pub(crate) fn text(&self) -> String {
        self.spans.iter().map(|span| span.text.as_str()).collect()
    }
}

enum Piece {
    Text(String),
    /// A bracket, and what it multiplies by once it is known to be closed.
    Open(char, Option<f32>),
    Close,
}

/// Reads a prompt. Linear in its length: anyone may send one.
pub(crate) fn parse(prompt: &str) -> Parsed {
    let (pieces, loras) = pieces(prompt);
    let mut spans: Vec<Span> = Vec::new();
    let (mut outer, mut weight) = (Vec::new(), 1.0f32);
    for piece in pieces {
        match piece {
            Piece::Text(text) => put(&mut spans, &text, weight),
            Piece::Open(bracket, None) => put(&mut spans, bracket.encode_utf8(&mut [0; 4]), weight),
            Piece::Open(_, Some(factor)) => {
                outer.push(weight);
                weight = (weight * factor).clamp(-MOST, MOST);
            }
            Piece::Close => weight = outer.pop().unwrap_or(1.0),
        }
    }
    Parsed { spans, loras }
}

/// Adds text to the last span if that has its weight; a break stands alone.
fn put(spans: &mut Vec<Span>, text: &str, weight: f32) {
    for part in parts(text).into_iter().filter(|part| !part.is_empty()) {
        let ends = part == BREAK;
        match spans.last_mut() {
            Some(last) if last.weight == weight && last.text != BREAK && !ends => last.text.push_str(part),
            _ => spans.push(Span {
                text: part.to_owned(),
                weight: if ends { 1.0 } else { weight },
            }),
        }
    }
}

/// Text cut before and after each break.
fn parts(text: &str) -> Vec<&str> {
    let in_a_word =
        |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    let (mut parts, mut from) = (Vec::new(), 0);
    for (at, word) in text.match_indices(BREAK) {
        let end = at + word.len();
        if !in_a_word(text[..at].chars().next_back()) && !in_a_word(text[end..].chars().next()) {
            parts.extend([&text[from..at], word]);
            from = end;
        }
    }
    parts.push(&text[from..]);
    parts
}

/// Text and brackets, each opening one told what it multiplies by; and the LoRAs between them.
fn pieces(prompt: &str) -> (Vec<Piece>, Vec<LoraTag>) {
    let (mut pieces, mut loras) = (Vec::new(), Vec::new());
    // The open brackets: which, and where.
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut text = String::new();
    let mut letters = prompt.chars();
    loop {
        if let Some((tag, rest)) = lora_tag(letters.as_str()) {
            loras.push(tag);
            letters = rest.chars();
            continue;
        }
        let Some(letter) = letters.next() else { break };
        match (letter, open.last().copied()) {
            ('\\', _) if letters.as_str().starts_with(['(', ')', '[', ']', '\\']) => {
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
    (pieces, loras)
}

/// The tag that a text begins with, and what follows it.
fn lora_tag(text: &str) -> Option<(LoraTag, &str)> {
    let inside = text.strip_prefix(LORA)?;
    // No further than the next tag begins: so each letter is looked at once, however many never end.
    let (inside, rest) = inside.split_at(inside.find(['<', '>'])?);
    let rest = rest.strip_prefix('>')?;
    let (name, weight) = inside.split_once(':').unwrap_or((inside, "1"));
    let (name, weight) = (name.trim(), weight.trim().parse::<f32>().ok()?);
    (!name.is_empty() && weight.is_finite()).then(|| {
        let name = name.to_owned();
        (LoraTag { name, weight }, rest)
    })
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
        parse(prompt)
            .spans
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

    fn tags(prompt: &str) -> (String, Vec<(String, f32)>) {
        let parsed = parse(prompt);
        let loras = parsed.loras.iter().map(|tag| (tag.name.clone(), tag.weight));
        (parsed.text(), loras.collect())
    }

    #[test]
    fn lora_tags_are_taken_out_of_the_text() {
        let (text, loras) = tags("a fox<lora:ink> in <lora:style (v2): -0.5 >oil");
        assert_eq!(text, "a fox in oil");
        assert_eq!(loras, owned(&[("ink", 1.0), ("style (v2)", -0.5)]));
        assert_eq!(shown("(a<lora:ink:2>:1.5)"), owned(&[("a", 1.5)]));
    }

    #[test]
    fn what_only_looks_like_a_lora_tag_is_text() {
        for prompt in [
            "<lora:>",
            "<lora: :1>",
            "<lora:ink",
            "<lora:ink:x>",
            "<lora:ink:nan>",
            "<lora:ink:1:2>",
            "<LORA:ink>",
            "< lora:ink>",
            "a < b > c",
        ] {
            assert_eq!(tags(prompt), (prompt.to_owned(), Vec::new()));
        }
        assert_eq!(
            tags("<lora:a<lora:b>"),
            ("<lora:a".to_owned(), owned(&[("b", 1.0)]))
        );
    }

    #[test]
    fn break_is_a_span_of_its_own_only_as_a_word() {
        assert_eq!(
            shown("a BREAK b"),
            owned(&[("a ", 1.0), ("BREAK", 1.0), (" b", 1.0)])
        );
        assert_eq!(
            shown("(a BREAK,b:1.3)BREAK"),
            owned(&[("a ", 1.3), ("BREAK", 1.0), (",b", 1.3), ("BREAK", 1.0)])
        );
        assert_eq!(
            shown("BREAK BREAK"),
            owned(&[("BREAK", 1.0), (" ", 1.0), ("BREAK", 1.0)])
        );
        for text in ["break", "BREAKER", "OUTBREAK", "BREAK_1", "ÄBREAK", "BREAKBREAK"] {
            assert_eq!(shown(text), owned(&[(text, 1.0)]));
        }
    }

    #[test]
    fn the_longest_hostile_prompts_are_split_in_no_time() {
        let least = std::time::Duration::from_millis(500);
        for piece in [
            "(",
            "[",
            "(a",
            "[a",
            "(a:2)",
            "a)",
            "\\(",
            "([a",
            "<",
            "<lora:",
            "<lora:a",
            "<lora:a:1>",
            "BREAK ",
            "BREAK",
        ] {
            let prompt = piece.repeat(32_000 / piece.len());
            let begun = std::time::Instant::now();
            parse(&prompt);
            assert!(begun.elapsed() < least, "{piece}: {:?}", begun.elapsed());
        }
        let nest = format!("{}x{}", "(a".repeat(8_000), ")".repeat(8_000));
        let begun = std::time::Instant::now();
        parse(&nest);
        assert!(begun.elapsed() < least, "nest: {:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn any_text_gives_finite_weights_and_no_empty_span(prompt in ".{0,200}") {
            for span in parse(&prompt).spans {
                prop_assert!(span.weight.is_finite() && span.weight.abs() <= MOST && !span.text.is_empty());
            }
        }

        #[test]
        fn syntax_alone_never_panics(prompt in r"([()\[\]\\:0-9a.<>]|<lora:|BREAK){0,60}") {
            parse(&prompt);
        }

        #[test]
        fn text_without_syntax_comes_back_unchanged(prompt in r"[^()\[\]\\<]{1,200}") {
            prop_assume!(!prompt.contains(BREAK));
            let parsed = parse(&prompt);
            prop_assert_eq!(parsed.spans, [Span { text: prompt, weight: 1.0 }]);
            prop_assert!(parsed.loras.is_empty());
        }

        #[test]
        fn a_lora_tag_anywhere_leaves_the_rest_as_it_was(
            before in r"[a-z ,:()\[\]0-9.]{0,40}",
            after in r"[a-z ,:()\[\]0-9.]{0,40}",
            name in "[A-Za-z0-9_ ().-]{0,20}x",
            weight in -4.0f32..4.0,
        ) {
            let parsed = parse(&format!("{before}<lora:{name}:{weight}>{after}"));
            prop_assert_eq!(parsed.spans, parse(&format!("{before}{after}")).spans);
            prop_assert_eq!(parsed.loras, [LoraTag { name: name.trim().to_owned(), weight }]);
        }
    }
}
