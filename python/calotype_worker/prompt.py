"""Weighted prompts to token chunks, and chunks to the states that a model attends to.

A prompt is cut into chunks of at most 75 tokens; each is framed, padded and encoded by itself, and the states are laid
end to end. Weights multiply each token's state; the mean of the chunk is restored after it. A word that names an
embedding (textual inversion) stands for that embedding's vectors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype_worker.errors import InvalidInput, ModelLoad, NotSupported
from calotype_worker.wire.work import Span

BREAK = "BREAK"
"""The span that ends a chunk."""
MOST_CHUNKS = 16
"""The most chunks of one prompt."""

Embeddings = Mapping[str, torch.Tensor]
"""The vectors of a textual inversion by the word that stands for it: `[vectors, width]`."""


class Tokenizer:
    """CLIP's byte-pair encoding with the ids that frame a chunk."""

    def __init__(self, folder: Path, pad: int | None = None) -> None:
        """`pad` is the id that fills a chunk up, where the folder's own is not the one."""
        try:
            found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
            stamps = tuple((name, facts.st_size, facts.st_mtime_ns) for name, facts in found)
            self._inner: Any = _read(folder, stamps)
            self.begin = int(self._inner.bos_token_id)
            self.end = int(self._inner.eos_token_id)
            own = self._inner.pad_token_id
            self.pad = pad if pad is not None else self.end if own is None else int(own)
        except Exception as error:  # Whatever a library finds wrong with a file is wrong with the file.
            raise ModelLoad("the tokenizer cannot be read", f"{folder}: {error}") from None

    def ids(self, text: str) -> list[int]:
        """The ids of `text`, without the ones that frame it."""
        return [int(id) for id in self._inner(text, add_special_tokens=False, verbose=False).input_ids]


@lru_cache(maxsize=8)
def _read(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> Any:
    """As `stamps` say that its files are. Kept, since models are switched more often than their vocabularies."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@dataclass(frozen=True)
class Chunk:
    """One framed and padded piece of a prompt; both lists have a chunk's length."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Chunked:
    """A prompt in chunks. `vectors` are embeddings whose ids follow the vocabulary's: `[vectors, width]`."""

    chunks: list[Chunk]
    vectors: torch.Tensor | None


@dataclass(frozen=True)
class Encoded:
    """What a text encoder makes of a prompt, all in f32 or the encoder's type.

    `states` is `[chunks * tokens, width]`; `pooled` is `[width]`, of the first chunk.
    """

    states: torch.Tensor
    pooled: torch.Tensor
    chunks: int


def chunked(
    tokenizer: Tokenizer, spans: Sequence[Span], tokens: int, vocabulary: int, embeddings: Embeddings
) -> Chunked:
    """Cut `spans` into chunks of `tokens` ids. A span `BREAK` ends a chunk early; it never leaves an empty one."""
    sections: list[list[tuple[int, float]]] = [[]]
    vectors: list[torch.Tensor] = []
    for span in spans:
        if not math.isfinite(span.weight):
            raise InvalidInput("a weight in the prompt is not a number")
        if span.text == BREAK:
            sections.append([])
            continue
        pieces = sections[-1]
        for text, vector in _split(span.text, embeddings):
            if vector is not None:
                first = vocabulary + sum(len(known) for known in vectors)
                vectors.append(vector)
                pieces += [(first + index, span.weight) for index in range(len(vector))]
            else:
                pieces += [(id, span.weight) for id in tokenizer.ids(text)]
    room = max(tokens - 2, 1)
    groups = [pieces[at : at + room] for pieces in sections for at in range(0, len(pieces), room)]
    if len(groups) > MOST_CHUNKS:
        raise InvalidInput(f"the prompt has {len(groups)} chunks of {room} tokens, at most {MOST_CHUNKS} are taken")
    groups = groups or [[]]
    chunks = []
    for group in groups:
        padding = tokens - len(group) - 2
        ids = [tokenizer.begin, *(id for id, _ in group), tokenizer.end, *[tokenizer.pad] * padding]
        chunks.append(Chunk(ids, [1.0, *(weight for _, weight in group), *[1.0] * (padding + 1)]))
    return Chunked(chunks, torch.cat(vectors) if vectors else None)


def _split(text: str, embeddings: Embeddings) -> list[tuple[str, torch.Tensor | None]]:
    """`text` cut at the words that stand for embeddings, longest first."""
    for word in sorted(embeddings, key=len, reverse=True):
        before, found, after = text.partition(word)
        if found:
            rest = _split(after, embeddings)
            return [*_split(before, embeddings), (word, embeddings[word]), *rest]
    return [(text, None)] if text else []


class TextEncoder:
    """A CLIP text encoder with its tokenizer."""

    def __init__(self, module: nn.Module, tokenizer: Tokenizer, tokens: int, normalises_skipped: bool) -> None:
        """`normalises_skipped`: whether the final norm is applied to the state of an earlier layer too (SD 1 and 2)."""
        self.module: Any = module
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.normalises_skipped = normalises_skipped
        # Newer releases of transformers have no `text_model` between the model and its layers.
        self.inner: Any = getattr(module, "text_model", module)

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len(self.inner.encoder.layers)

    def encode(self, spans: Sequence[Span], left_out: int, embeddings: Embeddings) -> Encoded:
        """Encode a prompt with the last `left_out` layers left out; without any layer the embeddings are the states."""
        if left_out > self.layers:
            raise InvalidInput(f"clip skip leaves out {left_out} of {self.layers} layers")
        table = self.inner.embeddings.token_embedding
        vocabulary = int(table.weight.shape[0])
        prompt = chunked(self.tokenizer, spans, self.tokens, vocabulary, embeddings)
        device, dtype = table.weight.device, table.weight.dtype
        ids = torch.tensor([chunk.ids for chunk in prompt.chunks], device=device)
        own = table.weight
        if prompt.vectors is not None:
            table.weight = nn.Parameter(torch.cat([own, prompt.vectors.to(device, dtype)]), requires_grad=False)
        try:
            output = self.module(input_ids=ids, output_hidden_states=True)
        finally:
            table.weight = own
        last = output.last_hidden_state
        states = last if left_out == 0 else output.hidden_states[-1 - left_out]
        if self.normalises_skipped and left_out > 0:
            states = self.inner.final_layer_norm(states)
        end = int((ids[0] == self.tokenizer.end).to(torch.int32).argmax())
        pooled = last[0, end]
        projection = getattr(self.module, "text_projection", None)
        if projection is not None:
            pooled = projection(pooled)
        states = torch.stack([weighed(row, chunk.weights) for row, chunk in zip(states, prompt.chunks)])
        return Encoded(states.flatten(0, 1), pooled, len(prompt.chunks))


def weighed(states: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """`[tokens, width]` times each token's weight, with the mean restored; plain weights change no bit."""
    if all(weight == 1.0 for weight in weights):
        return states
    factors = torch.tensor(weights, dtype=torch.float32, device=states.device)[:, None]
    numbers = states.float()
    changed = numbers * factors
    # On the host: not every device has f64.
    factor = float(numbers.cpu().double().mean() / changed.cpu().double().mean())
    if math.isfinite(factor):
        changed = changed * factor
    return changed.to(states.dtype)


def padded(encoded: Encoded, chunks: int, empty: Encoded) -> Encoded:
    """The same, followed by copies of `empty` until it has `chunks`."""
    missing = chunks - encoded.chunks
    if missing <= 0:
        return encoded
    return Encoded(torch.cat([encoded.states, *[empty.states] * missing]), encoded.pooled, chunks)


def embedding_vectors(path: Path, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The vectors of a textual inversion file, one `[vectors, width]` for each text encoder that it is for."""
    by_encoder = [tensors[key] for key in ("clip_l", "clip_g") if key in tensors]
    if not by_encoder:
        by_encoder = [tensors["emb_params"]] if "emb_params" in tensors else list(tensors.values())
    vectors = [tensor if tensor.dim() == 2 else tensor[None] for tensor in by_encoder]
    if not vectors or any(vector.dim() != 2 for vector in vectors):
        raise NotSupported("the file is not a textual inversion that this worker knows", f"{path}: {sorted(tensors)}")
    return vectors
