"""Nothing of a model is alive once it was unloaded."""

import weakref
from pathlib import Path
from typing import Any

from calotype_worker.wire import down, up
from calotype_worker.wire.work import Adapter

from . import tiny
from .conftest import FIXTURES
from .desk import Desk, folder_spec, generate


def watched(desk: Desk, id: str) -> list[weakref.ref[Any]]:
    """References to a model, its modules and their weights, that keep none of it."""
    model = desk.loop.family(id)
    parts = [part for module in model.modules() for part in (module, *module.modules(), *module.parameters())]
    return [weakref.ref(one) for one in (model, model.adapted, *parts)]


def survivors(references: list[weakref.ref[Any]]) -> list[str]:
    return sorted({type(one()).__name__ for one in references if one() is not None})


def used(desk: Desk, **changes: Any) -> None:
    jobs = []
    for seeds in ([1], [2, 3]):
        work, blobs = generate(seeds, preview_every=1, **changes)
        jobs.append(desk.run(work, *blobs))
    desk.finish()
    assert not desk.all(up.Failed), desk.all(up.Failed)


def test_nothing_of_a_model_lives_after_its_unload() -> None:
    desk = Desk().tiny()
    used(desk)
    lora = Adapter(id="tiny", path=str(FIXTURES / "lora_tiny_peft.safetensors"), weight=1.0)
    used(desk, adapters=[lora])
    references = watched(desk, "calotype-tiny")
    # One that is under way is dropped with its model.
    work, blobs = generate([4])
    desk.run(work, *blobs)
    desk.loop.tick()
    desk.loop.tick()
    desk.said.clear()
    desk.tell(down.Unload(unload="u"))
    assert survivors(references) == []


def test_a_model_that_takes_anothers_place_leaves_nothing_of_it(tmp_path: Path) -> None:
    desk = Desk()
    spec = folder_spec("sdxl", tiny.saved(tiny.sdxl(), tmp_path), family="sdxl")
    desk.load(spec)
    used(desk, model="sdxl", edge=32, scale=2)
    references = watched(desk, "sdxl")
    desk.load(spec)
    desk.tell(down.AskMemory(seq=1, op="trim"))
    assert survivors(references) == []
