//! Text to token ids: the model's `tokenizer.json`, or CLIP's byte-pair encoding built from `vocab.json` and
//! `merges.txt`. The only file that meets the `tokenizers` crate.

use std::path::Path;

use calotype_protocol::{Failure, Outcome};
use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use crate::failure::{bad_model, detailed};

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// A tokenizer with the ids that frame a chunk.
pub(crate) struct Tokenizer {
    inner: Inner,
    pub(crate) begin: i64,
    pub(crate) end: i64,
    pub(crate) pad: i64,
}

impl Tokenizer {
    pub(crate) fn open(folder: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| {
            bad_model(
                "the tokenizer cannot be read",
                format!("{}: {why}", folder.display()),
            )
        };
        let whole = folder.join("tokenizer.json");
        let mut inner = if whole.is_file() {
            Inner::from_file(&whole).map_err(|error| wrong(error.to_string()))?
        } else {
            let parts = from_parts(folder).map_err(wrong)?;
            Inner::from_bytes(parts.to_string()).map_err(|error| wrong(error.to_string()))?
        };
        // Chunks are cut and padded here, never by the file's own settings.
        inner
            .with_truncation(None)
            .map_err(|error| wrong(error.to_string()))?;
        inner.with_padding(None);
        let id = |token: &str| inner.token_to_id(token).map(i64::from);
        let begin = id(BEGIN).ok_or_else(|| wrong(format!("no token {BEGIN}")))?;
        let end = id(END).ok_or_else(|| wrong(format!("no token {END}")))?;
        let pad = pad_token(folder).and_then(|token| id(&token)).unwrap_or(end);
        Ok(Self {
            inner,
            begin,
            end,
            pad,
        })
    }

    /// The ids of `text`, without the ones that frame it.
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<i64>, Failure> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| {
            detailed(
                Outcome::Failed,
                "the text could not be split into tokens",
                error.to_string(),
            )
        })?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }
}

fn pad_token(folder: &Path) -> Option<String> {
    ["special_tokens_map.json", "tokenizer_config.json"]
        .iter()
        .find_map(|name| {
            let value: Value = serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok()?;
            let pad = value.get("pad_token")?;
            pad.as_str()
                .or_else(|| pad.get("content")?.as_str())
                .map(str::to_owned)
        })
}

/// A `tokenizer.json` as transformers would write it for CLIP.
fn from_parts(folder: &Path) -> Result<Value, String> {
    let read =
        |name: &str| std::fs::read_to_string(folder.join(name)).map_err(|error| format!("{name}: {error}"));
    let vocab: Value =
        serde_json::from_str(&read("vocab.json")?).map_err(|error| format!("vocab.json: {error}"))?;
    let merges = read("merges.txt")?;
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
        .collect();
    let added: Vec<Value> = [BEGIN, END]
        .iter()
        .map(|token| {
            json!({"id": vocab.get(*token), "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
             "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/calotype-tiny/tokenizer")
    }

    #[test]
    fn a_tokenizer_from_vocab_and_merges_gives_the_ids_of_tokenizer_json() {
        let whole = Tokenizer::open(&folder()).unwrap();
        let parts = tempfile::tempdir().unwrap();
        for name in ["vocab.json", "merges.txt", "special_tokens_map.json"] {
            std::fs::copy(folder().join(name), parts.path().join(name)).unwrap();
        }
        let parts = Tokenizer::open(parts.path()).unwrap();
        assert_eq!(
            (whole.begin, whole.end, whole.pad),
            (parts.begin, parts.end, parts.pad)
        );
        for text in ["a red apple on the beach, 3d", "", "  It's A   Día — 日本 42! "] {
            assert_eq!(whole.ids(text).unwrap(), parts.ids(text).unwrap(), "{text}");
        }
        assert_eq!(
            whole.ids("a red apple on the beach, 3d").unwrap(),
            [320, 701, 1689, 513, 527, 706, 267, 274, 323]
        );
    }
}
