"""T5 as a text encoder: one sequence of a fixed length, weighted like CLIP's chunks."""

import gzip
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype_worker.errors import InvalidInput, ModelLoad
from calotype_worker.prompt import BREAK, weighed
from calotype_worker.wire.work import Span

BUNDLED = Path(__file__).resolve().parent / "configs" / "t5_tokenizer" / "tokenizer.json.gz"
"""The vocabulary of T5 v1.1, for encoders that come without one."""
BUNDLED_PIECES = 32_100
BUNDLED_ROWS = (BUNDLED_PIECES, 32_128)
"""Rows in the table of words of encoders with this vocabulary: as many, or filled up to a multiple of 128."""


class T5Tokenizer:
    """The pieces of T5's vocabulary, from a folder, from a `tokenizer.json` or from a compressed one."""

    def __init__(self, place: Path, rows: int | None = None) -> None:
        """`rows` are those of the encoder's table of words."""
        try:
            found = _from_file(place) if place.is_file() else _from_folder(place)
            self._ids, self.end, self.pad, self.pieces = found
            # A device would find out by an assertion that costs it its context.
            if rows is not None and self.pieces > rows:
                raise ValueError(f"it has {self.pieces} pieces, and the encoder a table of {rows} words")
        except Exception as error:  # Whatever a library finds wrong with a file is wrong with the file.
            raise ModelLoad("the tokenizer cannot be read", f"{place}: {error}") from None

    def ids(self, text: str) -> list[int]:
        """The ids of `text`, without the one that ends a sequence."""
        return self._ids(text)


Ids = Callable[[str], list[int]]


def _from_folder(folder: Path) -> tuple[Ids, int, int, int]:
    from transformers import AutoTokenizer

    inner: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def ids(text: str) -> list[int]:
        return [int(id) for id in inner(text, add_special_tokens=False, verbose=False).input_ids]

    return ids, int(inner.eos_token_id), int(inner.pad_token_id), _pieces(inner)


def _from_file(path: Path) -> tuple[Ids, int, int, int]:
    from tokenizers import Tokenizer

    text = path.read_bytes()
    inner = Tokenizer.from_buffer(gzip.decompress(text) if path.suffix == ".gz" else text)
    end, pad = inner.token_to_id("</s>"), inner.token_to_id("<pad>")
    if end is None or pad is None:
        raise ValueError("it has no `</s>` or no `<pad>`, so it is not T5's")
    # The sequence is framed and filled up here.
    inner.no_truncation()
    inner.no_padding()
    return lambda text: list(inner.encode(text, add_special_tokens=False).ids), end, pad, _pieces(inner)


def _pieces(tokenizer: Any) -> int:
    return int(max(tokenizer.get_vocab().values())) + 1


class T5Encoder:
    """A T5 encoder with its tokenizer; `tokens` is the length of its sequences."""

    def __init__(self, module: nn.Module, tokenizer: T5Tokenizer, tokens: int) -> None:
        self.module: Any = module
        self.tokenizer = tokenizer
        self.tokens = tokens

    def encode(self, spans: Sequence[Span]) -> torch.Tensor:
        """The states of a prompt: `[tokens, width]`."""
        if any(not math.isfinite(span.weight) for span in spans):
            raise InvalidInput("a weight in the prompt is not a number")
        # Its sequence has no chunks that a BREAK could end.
        texts = [span for span in spans if span.text != BREAK]
        pieces = [(id, span.weight) for span in texts for id in self.tokenizer.ids(span.text)]
        if len(pieces) >= self.tokens:
            raise InvalidInput(f"the prompt has {len(pieces)} tokens, at most {self.tokens - 1} are taken")
        padding = self.tokens - len(pieces) - 1
        ids = [*(id for id, _ in pieces), self.tokenizer.end, *[self.tokenizer.pad] * padding]
        weights = [*(weight for _, weight in pieces), *[1.0] * (padding + 1)]
        device = next(self.module.parameters()).device
        states = self.module(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0]
        return weighed(states, weights)


def tied(module: nn.Module) -> nn.Module:
    """T5 has its table of words under two names; after a load both are one again."""
    inner: Any = module
    inner.encoder.embed_tokens.weight = inner.shared.weight
    return module


def t5_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that T5 computes in: its states overflow in f16."""
    return torch.bfloat16 if dtype == torch.float16 else dtype
