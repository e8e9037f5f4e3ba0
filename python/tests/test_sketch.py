"""Previews without the whole VAE: by known colours, by a small VAE, or else by the VAE after all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from calotype_worker.pipelines.checkpoint import CONFIGS
from calotype_worker.pipelines.parts import config_of
from calotype_worker.sketch import BLOCKS, colours_of
from calotype_worker.wire import up

from . import tiny
from .desk import Desk, folder_spec, generate


class Described:
    def __init__(self, **fields: Any) -> None:
        vars(self).update({"latent_channels": 4, "block_out_channels": BLOCKS, "scaling_factor": 0.18215} | fields)


def test_the_widespread_vaes_have_colours_and_others_have_none() -> None:
    for architecture, known in (("sd15", True), ("sd21", True), ("sdxl", True)):
        config = config_of(CONFIGS, f"{architecture}.json")["vae"]
        found = colours_of(Described(**{"scaling_factor": 0.18215} | config))
        assert (found is not None) == known
    assert colours_of(Described(latent_channels=16)) is None
    assert colours_of(Described(block_out_channels=[16, 32])) is None


def test_colours_are_painted_at_the_size_of_the_picture() -> None:
    colours = colours_of(Described(scaling_factor=0.13025))
    assert colours is not None
    painted = colours.paint(torch.zeros(1, 4, 2, 3), 8)
    assert painted.shape == (1, 3, 16, 24)
    levels = ((painted[0, :, 0, 0] + 1) * 127.5).round().tolist()
    assert levels == [150, 140, 130]


def previews(desk: Desk) -> list[np.ndarray[Any, Any]]:
    work, blobs = generate([1], edge=32, scale=2, model="sd", steps=2, preview_every=1)
    desk.run(work, *blobs)
    desk.finish()
    assert not desk.all(up.Failed), desk.all(up.Failed)
    return [
        np.frombuffer(said.blobs[0], np.uint8).reshape(said.message.image.shape)
        for said in desk.said
        if isinstance(said.message, up.Preview)
    ]


def taesd(latent_channels: int = 4) -> Any:
    torch.manual_seed(5)
    channels, blocks = (8, 8), (1, 1)
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        upsampling_scaling_factor=2,
    ).eval()


def test_a_small_vae_decodes_previews_and_leaves_pictures_as_they_are(tmp_path: Path) -> None:
    root = tiny.saved(tiny.sd(), tmp_path / "sd")
    plain, quick = Desk(), Desk()
    plain.load(folder_spec("sd", root))
    small = taesd()
    small.save_pretrained(tmp_path / "taesd")
    quick.load(folder_spec("sd", root, taesd=tmp_path / "taesd"))
    ours, theirs = previews(quick), previews(plain)
    assert ours[0].shape == theirs[0].shape == (16, 16, 3)
    assert (ours[0] != theirs[0]).any()
    assert (quick.picture("job_1") == plain.picture("job_1")).all()


@pytest.mark.parametrize("where", ["missing", "other"])
def test_a_small_vae_that_does_not_fit_fails_the_load(tmp_path: Path, where: str) -> None:
    root = tiny.saved(tiny.sd(), tmp_path / "sd")
    taesd(latent_channels=8).save_pretrained(tmp_path / "other")
    answer = Desk().load(folder_spec("sd", root, taesd=tmp_path / where))
    assert isinstance(answer, up.LoadFailed)
    assert answer.failure.outcome == "model_load"
