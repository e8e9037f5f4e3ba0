"""The embedded model's parts, with and without LoRAs, against the native worker's reference values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from calotype_worker import noise
from calotype_worker.pipelines.adapted import PLAIN
from calotype_worker.pipelines.family import DenoiseInput, Family
from calotype_worker.pipelines.sd import StableDiffusion
from calotype_worker.prompt import chunked, weighed
from calotype_worker.wire import down
from calotype_worker.wire.work import Adapter, Span

from .conftest import FIXTURES, MODELS
from .desk import TINY, Desk, folder_spec, generate, spans

INDEX = json.loads((FIXTURES / "model.json").read_text())
ARRAYS = load_file(FIXTURES / "model.safetensors")
LCM, PIXEL = (str(MODELS / "loras" / f"calotype-tiny-{name}.safetensors") for name in ("lcm", "pixel"))


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk().tiny()


@pytest.fixture
def model(desk: Desk) -> StableDiffusion:
    model = desk.loop.models["calotype-tiny"]
    assert isinstance(model, StableDiffusion)
    return model


def close(ours: Any, theirs: np.ndarray[Any, Any], tolerance: float) -> bool:
    return bool(np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max())


@torch.no_grad()
def unet_output(model: Family) -> np.ndarray[Any, Any]:
    sample = torch.from_numpy(noise.normal(1, 0, (2, 4, 8, 8)))
    states = torch.from_numpy(noise.normal(3, 0, (2, 77, 240)))
    output: np.ndarray[Any, Any] = model.denoise(DenoiseInput(sample, torch.tensor([999.0, 259.0]), states)).numpy()
    return output


@torch.no_grad()
def test_text_states_are_the_reference_values(model: StableDiffusion) -> None:
    text = INDEX["text"]
    prompt = chunked(model.encoder.tokenizer, spans(text["prompt"]), 77, 8150, {})
    assert [chunk.ids for chunk in prompt.chunks] == [text["input_ids"]]
    empty = chunked(model.encoder.tokenizer, [], 77, 8150, {})
    assert [chunk.ids for chunk in empty.chunks] == [text["empty_input_ids"]]
    for left_out, name in ((0, "last_hidden_state"), (1, "penultimate_state")):
        states = model.encoder.encode(spans(text["prompt"]), left_out, {}).states
        assert close(states[text["rows"]], ARRAYS[f"text/{name}_rows"], 1e-5)
    pooled = model.encoder.encode(spans(text["prompt"]), 0, {}).pooled
    assert close(pooled, ARRAYS["text/pooler_output"], 1e-5)


def test_a_break_ends_a_chunk_and_leaves_no_empty_one(model: StableDiffusion) -> None:
    def ids(*texts: str) -> list[list[int]]:
        given = [Span(text=text, weight=1.0) for text in texts]
        return [chunk.ids for chunk in chunked(model.encoder.tokenizer, given, 77, 8150, {}).chunks]

    assert ids("a castle", "BREAK", "at night") == ids("a castle") + ids("at night")
    assert ids("BREAK", "a castle", "BREAK", "BREAK") == ids("a castle")
    assert ids("BREAK") == ids()


def test_the_unet_gives_the_reference_values(model: StableDiffusion) -> None:
    assert close(unet_output(model), ARRAYS["unet/base"], 1e-5)


@torch.no_grad()
def test_the_vae_gives_the_reference_values(model: StableDiffusion) -> None:
    latents = torch.from_numpy(noise.normal(4, 0, (4, 8, 8))) * 2 * model.scaling_factor
    decoded = model.decode(latents[None])[0]
    assert close(decoded, ARRAYS["vae/decoded"][0], 5e-5)
    encoded = model.encode_image(decoded[None].clamp(-1, 1)) / model.scaling_factor
    assert close(encoded, ARRAYS["vae/encoded_parameters"][:, :4], 5e-5)


def adapters_of(case: dict[str, Any]) -> list[Adapter]:
    def path(name: str) -> str:
        return str(next(folder / name for folder in (FIXTURES, MODELS / "loras") if (folder / name).is_file()))

    return [Adapter(id=lora["file"], path=path(lora["file"]), weight=lora["weight"]) for lora in case["loras"]]


@torch.no_grad()
@pytest.mark.parametrize("name", list(INDEX["loras"]))
def test_merged_loras_give_the_reference_values_and_off_is_bit_for_bit(model: StableDiffusion, name: str) -> None:
    before = unet_output(model)
    weights = {key: tensor.clone() for key, tensor in model.denoiser.state_dict().items()}
    bound = model.bind(adapters_of(INDEX["loras"][name]))
    model.adapted.activate(bound)
    assert close(unet_output(model), ARRAYS[f"unet/{name}"], 2e-5)
    if name == "tiny_0.7":
        states = model.encoder.encode(spans(INDEX["text"]["prompt"]), 0, {}).states
        assert close(states[INDEX["text"]["rows"]], ARRAYS["text/tiny_0.7_last_hidden_state_rows"], 1e-5)
    model.adapted.activate(PLAIN)
    assert (unet_output(model) == before).all()
    after = model.denoiser.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in weights.items())


def test_kohyas_and_diffusers_names_mean_the_same(model: StableDiffusion) -> None:
    sets = [
        model.bind([Adapter(id="tiny", path=str(FIXTURES / f"lora_tiny_{naming}.safetensors"), weight=0.7)])
        for naming in ("peft", "kohya")
    ]
    assert sets[0].merged.keys() == sets[1].merged.keys()
    assert len(sets[0].merged) == 8
    for key, tensor in sets[0].merged.items():
        assert torch.allclose(tensor, sets[1].merged[key], atol=1e-7)


def test_sets_switch_between_jobs_and_the_plain_picture_comes_back_bit_for_bit(desk: Desk) -> None:
    plain, blobs = generate([1])
    lcm, _ = generate([1], adapters=[Adapter(id="lcm", path=LCM, weight=1.0)])
    both, _ = generate([1], adapters=[Adapter(id=n, path=p, weight=0.5) for n, p in (("lcm", LCM), ("pixel", PIXEL))])
    none, _ = generate([1], adapters=[Adapter(id="pixel", path=PIXEL, weight=0.0)])
    # All at once: each tick serves one set, so that sets are exchanged between steps.
    jobs = [desk.run(work, *blobs) for work in (plain, lcm, both, none)]
    desk.finish()
    first, with_lcm, with_both, with_none = (desk.picture(job) for job in jobs)
    assert (first != with_lcm).any()
    assert (with_lcm != with_both).any()
    assert (first == with_none).all()
    again = desk.run(plain, *blobs)
    desk.finish()
    assert (desk.picture(again) == first).all()


def test_merged_loras_that_no_job_uses_stay_while_they_are_few_and_leave_before_a_load(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = desk.loop.family("calotype-tiny")
    desk.loop.forget_idle_sets(0)
    plain = {key: tensor.data_ptr() for key, tensor in model.denoiser.state_dict().items()}

    def kept() -> list[int]:
        return [made.merged_bytes for made in model.adapted._sets.values()]

    def drawn(*weights: float) -> None:
        for weight in weights:
            work, blobs = generate([1], steps=1, adapters=[Adapter(id="pixel", path=PIXEL, weight=weight)])
            desk.run(work, *blobs)
        desk.finish()

    drawn(1.0, 0.5, 0.25)
    assert len(kept()) == 3 and kept()[0] > 1 << 20
    assert model.adapted.idle_bytes(set()) == sum(kept())
    # On a device of which a sixteenth holds one of them, and not two.
    total_bytes = kept()[0] * 24
    with monkeypatch.context() as patch:
        patch.setattr(desk.loop.device, "total_and_free_bytes", lambda: (total_bytes, total_bytes))
        drawn(0.75)
        assert len(kept()) == 1
        # All that run at once are there, however many; one that runs is not forgotten when another ends.
        for steps, weight in ((1, 0.1), (3, 0.2), (3, 0.3)):
            work, blobs = generate([1], steps=steps, adapters=[Adapter(id="pixel", path=PIXEL, weight=weight)])
            desk.run(work, *blobs)
        desk.until(lambda: len(desk.loop.jobs) == 2)
        assert len(kept()) == 2 + 1
        desk.finish()
        assert len(kept()) == 1
    desk.load(folder_spec("another", TINY))
    assert kept() == []
    assert {key: tensor.data_ptr() for key, tensor in model.denoiser.state_dict().items()} == plain
    # The share is of the device, whatever models there are.
    other = desk.loop.family("another")
    with monkeypatch.context() as patch:
        patch.setattr(desk.loop.device, "total_and_free_bytes", lambda: (total_bytes, total_bytes))
        drawn(0.15)
        work, blobs = generate([1], steps=1, model="another", adapters=[Adapter(id="pixel", path=PIXEL, weight=0.35)])
        desk.run(work, *blobs)
        desk.finish()
    assert len(kept()) + len(other.adapted._sets) == 1
    desk.tell(down.Unload(unload="u", model="another"))


def test_a_lora_that_does_not_fit_is_named_with_its_key(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    down = np.zeros((2, 3), np.float32)
    cases = [
        ({"unet.nowhere.lora_A.weight": down}, "invalid_input", "unet.nowhere.lora_A.weight"),
        ({"unet.conv_in.lora_A.weight": down, "unet.conv_in.lora_B.weight": down}, "invalid_input", "conv_in.weight"),
        ({"unet.conv_in.lora_A.weight": down}, "invalid_input", "only one"),
        ({}, "model_load", "empty"),
    ]
    for tensors, outcome, words in cases:
        save_file(tensors, path)
        work, blobs = generate(adapters=[Adapter(id="wrong", path=str(path), weight=1.0)])
        job = desk.run(work, *blobs)
        desk.finish()
        failure = desk.failure(job)
        if tensors:
            assert failure.outcome == outcome
            assert words in failure.message
            assert str(path) in (failure.detail or "")
    for broken in (b"", b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"):
        path.write_bytes(broken)
        job = desk.run(work, *blobs)
        desk.finish()
        assert desk.failure(job).outcome == "model_load"
        assert str(path) in (desk.failure(job).detail or "")


@torch.no_grad()
def test_an_embedding_stands_for_its_vectors(model: StableDiffusion, tmp_path: Path) -> None:
    # The vectors of known words give the states of these words.
    table = model.encoder.inner.embeddings.token_embedding.weight
    ids = model.encoder.tokenizer.ids("red apple")
    path = tmp_path / "fruit.safetensors"
    save_file({"emb_params": table[ids].numpy()}, path)
    bound = model.bind([Adapter(id="<fruit>", path=str(path), weight=1.0)])
    named = model.encode(bound, spans("a <fruit> on the beach"), [], 1.0, 0).cond.states
    plain = model.encode(PLAIN, spans("a red apple on the beach"), [], 1.0, 0).cond.states
    assert torch.equal(named, plain)
    model.adapted.activate(PLAIN)
    assert table.shape == (8150, 240)


def test_weights_keep_the_mean_and_plain_weights_change_no_bit() -> None:
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    changed = weighed(states, [1.0, 1.5])
    assert float(changed.mean()) == pytest.approx(2.5)
    assert float(changed[1, 0] / changed[0, 0]) == pytest.approx(4.5)
    assert weighed(states, [1.0, 1.0]) is states


@torch.no_grad()
def test_a_long_prompt_is_cut_into_chunks_and_the_shorter_side_is_filled_up(model: StableDiffusion) -> None:
    conditioned = model.encode(PLAIN, spans("apple " * 100), spans("blurry"), 3.0, 0)
    assert conditioned.uncond is not None
    assert conditioned.cond.states.shape == conditioned.uncond.states.shape == (154, 240)
    empty = model.encoder.encode([], 0, {}).states
    assert torch.equal(conditioned.uncond.states[77:], empty)
    weighted = [Span(text="apple", weight=1.3), Span(text=" on grass", weight=1.0)]
    assert not torch.equal(
        model.encode(PLAIN, weighted, [], 1.0, 0).cond.states,
        model.encode(PLAIN, spans("apple on grass"), [], 1.0, 0).cond.states,
    )
