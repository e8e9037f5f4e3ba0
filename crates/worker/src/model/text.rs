//! A weighted prompt to the states that the UNet attends to: chunks of 75 tokens, each framed, padded and encoded,
//! then laid end to end; the span `BREAK` ends a chunk early. Weights multiply each token's state; the mean of the
//! chunk is restored after it.

use std::rc::Rc;

use calotype_protocol::{Failure, Span};

use super::tokenizer::Tokenizer;
use crate::failure::{detailed, invalid, unsupported};
use crate::runtime::{Graph, Value};

/// The most chunks of one prompt.
const MOST_CHUNKS: usize = 16;
/// The span that ends the chunk which is being filled; an empty one is not ended.
const BREAK: &str = "BREAK";

/// An encoded prompt: `[chunks * tokens, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Chunks of the prompt.
    pub chunks: usize,
    /// Tokens of a chunk, framing included.
    pub tokens: usize,
    /// Numbers of a token's state.
    pub width: usize,
    /// The states, row-major.
    pub states: Vec<f32>,
}

impl Embedding {
    /// The same, followed by copies of `empty` until it has `chunks`.
    pub(crate) fn padded(&self, chunks: usize, empty: &Embedding) -> Rc<Embedding> {
        let mut padded = self.clone();
        while padded.chunks < chunks {
            padded.states.extend_from_slice(&empty.states);
            padded.chunks += 1;
        }
        Rc::new(padded)
    }
}

/// Ids and weights of one chunk.
type Chunk = (Vec<i64>, Vec<f32>);

fn chunks_of(tokenizer: &Tokenizer, spans: &[Span], tokens: usize) -> Result<Vec<Chunk>, Failure> {
    let mut sections: Vec<Vec<(i64, f32)>> = vec![Vec::new()];
    for span in spans {
        if !span.weight.is_finite() {
            return Err(invalid("a weight in the prompt is not a number"));
        }
        if span.text == BREAK {
            sections.push(Vec::new());
        } else if let Some(section) = sections.last_mut() {
            section.extend(tokenizer.ids(&span.text)?.into_iter().map(|id| (id, span.weight)));
        }
    }
    let room = tokens.saturating_sub(2).max(1);
    let mut groups: Vec<&[(i64, f32)]> = sections.iter().flat_map(|section| section.chunks(room)).collect();
    if groups.len() > MOST_CHUNKS {
        return Err(invalid(format!(
            "the prompt has {} chunks of {room} tokens, at most {MOST_CHUNKS} are taken",
            groups.len()
        )));
    }
    if groups.is_empty() {
        groups.push(&[]);
    }
    Ok(groups
        .into_iter()
        .map(|group| {
            let mut ids = vec![tokenizer.begin];
            ids.extend(group.iter().map(|(id, _)| *id));
            ids.push(tokenizer.end);
            ids.resize(tokens, tokenizer.pad);
            let mut weights = vec![1.0];
            weights.extend(group.iter().map(|(_, weight)| *weight));
            weights.resize(tokens, 1.0);
            (ids, weights)
        })
        .collect())
}

/// Encodes `spans` with `graph`, whose chunks hold `tokens` ids.
pub(crate) fn encode(
    graph: &dyn Graph,
    tokenizer: &Tokenizer,
    spans: &[Span],
    tokens: usize,
    clip_skip: u32,
) -> Result<Embedding, Failure> {
    let output = match clip_skip {
        0 => "last_hidden_state",
        1 => "penultimate_state",
        more => {
            return Err(unsupported(format!(
                "clip skip {more}: this worker leaves out at most 1 layer; a PyTorch worker more"
            )));
        }
    };
    if !graph.outputs().iter().any(|name| name == output) {
        return Err(unsupported(format!(
            "this model's text encoder has no output `{output}`; a diffusers folder of it has"
        )));
    }
    let chunks = chunks_of(tokenizer, spans, tokens)?;
    let ids = chunks.iter().flat_map(|(ids, _)| ids.iter().copied()).collect();
    let input = Value::i64(&[chunks.len(), tokens], ids);
    let results = graph
        .run(&[("input_ids", input)], &[output])
        .map_err(|error| detailed(error.outcome(), "the text encoder failed", error.to_string()))?;
    let tensor = results
        .into_iter()
        .next()
        .filter(|tensor| tensor.shape.len() == 3);
    let mut tensor = tensor.ok_or_else(|| {
        detailed(
            calotype_protocol::Outcome::Failed,
            "the text encoder failed",
            "wrong output",
        )
    })?;
    let width = tensor.shape[2];
    for ((_, weights), states) in chunks.iter().zip(tensor.data.chunks_mut(tokens * width)) {
        weigh(states, weights, width);
    }
    Ok(Embedding {
        chunks: chunks.len(),
        tokens,
        width,
        states: tensor.data,
    })
}

fn weigh(states: &mut [f32], weights: &[f32], width: usize) {
    if weights.iter().all(|weight| *weight == 1.0) {
        return;
    }
    let mean =
        |states: &[f32]| states.iter().map(|x| f64::from(*x)).sum::<f64>() / states.len().max(1) as f64;
    let before = mean(states);
    for (row, weight) in states.chunks_mut(width).zip(weights) {
        row.iter_mut().for_each(|value| *value *= weight);
    }
    let after = mean(states);
    let factor = (before / after) as f32;
    if factor.is_finite() {
        states.iter_mut().for_each(|value| *value *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens of each chunk, without frame and padding.
    fn cut(prompt: &[&str]) -> Result<Vec<usize>, Failure> {
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/calotype-tiny/tokenizer"
        );
        let tokenizer = Tokenizer::open(std::path::Path::new(folder)).unwrap();
        let span = |text: &&str| Span {
            text: (*text).to_owned(),
            weight: 1.5,
        };
        let spans: Vec<Span> = prompt.iter().map(span).collect();
        let chunks = chunks_of(&tokenizer, &spans, 77)?;
        assert!(
            chunks
                .iter()
                .all(|(ids, weights)| ids.len() == 77 && weights.len() == 77)
        );
        let own = |weights: &Vec<f32>| weights.iter().filter(|weight| **weight == 1.5).count();
        Ok(chunks.iter().map(|(_, weights)| own(weights)).collect())
    }

    #[test]
    fn a_break_ends_a_chunk_that_is_begun_and_makes_no_empty_one() {
        let long = "a ".repeat(80);
        assert_eq!(cut(&["a a", "BREAK", "a"]).unwrap(), [2, 1]);
        assert_eq!(cut(&[&long, "BREAK", "a"]).unwrap(), [75, 5, 1]);
        assert_eq!(
            cut(&["BREAK", "a", "BREAK", " ", "BREAK", "a", "BREAK"]).unwrap(),
            [1, 1]
        );
        assert_eq!(cut(&["BREAK"]).unwrap(), [0]);
        assert_eq!(cut(&["a BREAK a"]).unwrap().len(), 1);
        assert_eq!(cut(&["a", "BREAK"].repeat(16)).unwrap().len(), 16);
        assert!(cut(&["a", "BREAK"].repeat(17)).is_err());
    }

    #[test]
    fn weights_keep_the_mean_of_the_chunk() {
        let mut states = vec![1.0, 2.0, 3.0, 4.0];
        weigh(&mut states, &[1.0, 1.5], 2);
        assert!((states.iter().sum::<f32>() / 4.0 - 2.5).abs() < 1e-6);
        assert!((states[2] / states[0] - 4.5).abs() < 1e-5);
    }

    #[test]
    fn plain_weights_change_no_bit() {
        let mut states = vec![0.1, -7.3];
        weigh(&mut states, &[1.0], 2);
        assert_eq!(states, [0.1, -7.3]);
    }
}
