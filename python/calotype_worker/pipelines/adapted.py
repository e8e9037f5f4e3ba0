"""LoRA sets and embeddings over modules: one set is active at a time, and the base always stays.

Switching exchanges the storage of the parameters that either set changes, so it costs no copy, and the base comes back
bit for bit because it was never written to.
"""

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from calotype_worker.errors import InvalidInput
from calotype_worker.lora import SUFFIXES, Changes, Parts, Spellings
from calotype_worker.prompt import Embeddings, embedding_vectors
from calotype_worker.weights import WeightFile
from calotype_worker.wire.work import Adapter


@dataclass(frozen=True)
class AdapterSet:
    """Merged weights by part and parameter, and the embeddings of each text encoder. The plain set has neither."""

    key: str = ""
    merged: Mapping[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    embeddings: tuple[Embeddings, ...] = ()

    @cached_property
    def merged_bytes(self) -> int:
        """What it takes beside the plain weights."""
        return sum(tensor.nbytes for tensor in self.merged.values())


PLAIN = AdapterSet()


def adapter_key(adapters: Sequence[Adapter]) -> str:
    """The name of a set of adapters with their weights; a file that was replaced gives another name."""
    words = []
    for adapter in adapters:
        try:
            status = Path(adapter.path).stat()
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # A file that cannot be looked at cannot be read either: that error is the better one.
            stamp = ""
        words.append(f"{adapter.id}\0{adapter.path}\0{adapter.weight!r}\0{stamp}\0")
    return "".join(words)


class Adapted:
    """Modules with the sets of adapters that were made for them."""

    def __init__(self, parts: Parts, spellings: Spellings, encoders: int) -> None:
        """`encoders` is how many text encoders take embeddings."""
        self.parts = parts
        self._spellings = spellings
        self._encoders = encoders
        self._base: dict[tuple[str, str], torch.Tensor] = {}
        self._sets: OrderedDict[str, AdapterSet] = OrderedDict()
        self.active = PLAIN

    def bind(self, adapters: Sequence[Adapter]) -> AdapterSet:
        """The set of these adapters, merged before or now."""
        if not adapters:
            return PLAIN
        key = adapter_key(adapters)
        if key in self._sets:
            self._sets.move_to_end(key)
            return self._sets[key]
        files = {adapter.id: WeightFile(Path(adapter.path)) for adapter in adapters}
        loras = [adapter for adapter in adapters if _is_lora(files[adapter.id])]
        changes = Changes.read(loras, self.parts, self._spellings) if loras else Changes()
        merged = {
            (part, name): changes.merged(part, name, self._base_of(part, name)) for part, name in changes.by_tensor
        }
        words = [self._embedding(adapter, files[adapter.id]) for adapter in adapters if adapter not in loras]
        embeddings = tuple(
            {id: vectors[encoder] for id, vectors in words if encoder < len(vectors)}
            for encoder in range(self._encoders)
        )
        made = AdapterSet(key, merged, embeddings if words else ())
        self._sets[key] = made
        return made

    def activate(self, wanted: AdapterSet) -> None:
        """Make the modules compute with `wanted`."""
        if wanted is self.active:
            return
        for part, name in self.active.merged.keys() - wanted.merged.keys():
            self._parameter(part, name).data = self._base.pop((part, name))
        for (part, name), tensor in wanted.merged.items():
            parameter = self._parameter(part, name)
            self._base.setdefault((part, name), parameter.data)
            parameter.data = tensor
        self.active = wanted

    def embeddings(self, encoder: int) -> Embeddings:
        """The embeddings that are active for a text encoder."""
        return self.active.embeddings[encoder] if self.active.embeddings else {}

    def idle_bytes(self, used: Container[str]) -> int:
        """What sets take whose keys are not among those that are `used`."""
        return sum(made.merged_bytes for key, made in self._sets.items() if key not in used)

    def forget_idle(self, used: Container[str], most_bytes: int) -> list[AdapterSet]:
        """Forget the sets that were bound longest ago and are not `used`, until the others take no more than so many.

        Gives those that are forgotten; the active one may be among them.
        """
        gone = []
        for key in [key for key in self._sets if key not in used]:
            if self.idle_bytes(used) <= most_bytes:
                break
            gone.append(self._sets.pop(key))
        return gone

    def _parameter(self, part: str, name: str) -> nn.Parameter:
        return self.parts[part].get_parameter(name)

    def _base_of(self, part: str, name: str) -> torch.Tensor:
        base = self._base.get((part, name))
        return self._parameter(part, name).data if base is None else base

    def _embedding(self, adapter: Adapter, file: WeightFile) -> tuple[str, list[torch.Tensor]]:
        vectors = embedding_vectors(file.path, {name: file.read_float(name) for name in file.names})
        encoders = [part for name, part in self.parts.items() if name.startswith("text_encoder")]
        for vector, encoder in zip(vectors, encoders):
            width = int(next(p for n, p in encoder.named_parameters() if n.endswith("token_embedding.weight")).shape[1])
            if vector.shape[1] != width:
                raise InvalidInput(
                    f"the embedding `{adapter.id}` does not fit this model: vectors of {vector.shape[1]}, not {width}",
                    adapter.path,
                )
        # The weight of an embedding is the length of its vectors.
        return adapter.id, [vector * adapter.weight for vector in vectors]


def _is_lora(file: WeightFile) -> bool:
    return any(name.endswith(suffix) for name in file.names for suffix, _ in SUFFIXES)
