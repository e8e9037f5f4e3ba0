"""Make the reference values that the Rust worker is tested against.

python make_fixtures.py MODELS OUT [--only noise samplers model pictures]
    MODELS holds calotype-tiny/ and loras/; OUT is crates/worker/tests/fixtures, whose README.md tells the formats.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

import torch

from fixture_model import make_model_fixtures
from fixture_pictures import make_picture_fixtures
from fixture_samplers import make_sampler_fixtures
from noise import gaussian, philox

NOISE_SEEDS = (0, 1, 42, 2**32 + 5, 2**63)
NOISE_OFFSETS = (0, 1, 7)
NOISE_COUNT = 16


def make_noise_fixtures(models: Path, out: Path) -> None:
    """Write the first values of a few streams, as bits."""
    cases = []
    for seed in NOISE_SEEDS:
        for offset in NOISE_OFFSETS:
            words = philox(seed, offset, NOISE_COUNT)
            bits = gaussian(seed, offset, (NOISE_COUNT,)).view("uint32")
            case = {"seed": str(seed), "offset": offset, "g0": words[0].tolist(), "g1": words[1].tolist()}
            cases.append(json.dumps({**case, "normal_bits": bits.tolist()}))
    body = ",\n".join(cases)
    (Path(__file__).parent.parent / "schema/golden/noise.json").write_text(f'{{"format": 1,\n"cases": [\n{body}\n]}}\n')
    print(f"noise: {len(cases)} cases")


PARTS = {
    "noise": make_noise_fixtures,
    "samplers": lambda models, out: make_sampler_fixtures(models / "calotype-tiny", out),
    "model": make_model_fixtures,
    "pictures": make_picture_fixtures,
}


def main() -> None:
    """Parse the command line and make the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for part in arguments.only:
            PARTS[part](arguments.models, arguments.out)


if __name__ == "__main__":
    main()
