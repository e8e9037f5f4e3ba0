"""Measures the whole program on a CUDA device: `calotype serve` with models of the real sizes and random weights.

    python bench/program.py --calotype ../target/release/calotype --json program.json

What it tells: that every family is drawn; how long a picture takes through the door, and one with a LoRA; what a job
took against what was leased for it, once it was measured; a switch of models that do not both fit, from files and from
memory; models that only fit in parts; a worker and a server that are killed. Needs 25 GB on the disk of --folder and
16 GB in /dev/shm.
"""

import base64
import io
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image, ImageDraw

from bench.command import Report, parse
from bench.models import SD, XL, write_models
from bench.server import PROMPT, Server, card_used_bytes, serving, share_of_card
from tests import folders

PARTS = ("families", "pictures", "loras", "switches", "offload", "killed")


def pictures(server: Server) -> dict[str, Any]:
    """Seconds a picture through the door, with a control unit too; cancel; what the jobs took against their leases."""
    found: dict[str, Any] = {"sd15_first_s": server.draw(**SD)["s"]}
    server.draw(**SD)
    found["sd15_s"] = min(server.draw(**SD)["s"] for _ in range(3))
    # The first two rounds capture the graphs of their group sizes.
    for _ in range(3):
        started = time.perf_counter()
        for job in [server.submit(**SD) for _ in range(8)]:
            server.ended(job)
        found["sd15_eight_images_per_s"] = 8 / (time.perf_counter() - started)
    disc = _disc()
    unit = {"model": "lines", "image": disc, "preprocessor": "canny"}
    for _ in range(2):
        server.draw(**SD, control=[unit])
    found["sd15_controlnet_s"] = server.draw(**SD, control=[unit])["s"]
    found["lease"] = {"sd15": lease(server, SD), "sdxl": lease(server, XL | {"model": "sdxl-a"})}
    job = server.submit(**(SD | {"steps": 150}))
    _denoises(server, job)
    started = time.perf_counter()
    server.ask(f"/api/jobs/{job}/cancel", {})
    for event in server.events(f"/api/jobs/{job}/events"):
        if event["event"] == "job" and event["state"] == "cancelled":
            break
    found["cancel_ms"] = (time.perf_counter() - started) * 1e3
    return found


def families(server: Server) -> dict[str, Any]:
    """Seconds of the second small picture of each family, with what goes with it: that it is drawn is what counts."""
    small = {"width": 64, "height": 64, "steps": 3}
    unit = {"model": "sd-lines", "image": _disc(), "preprocessor": "depth"}
    cases: dict[str, dict[str, Any]] = {name: {"model": name} for name in ("sd", "sdxl", "sd3", "flux")}
    cases["refiner"] = {"model": "sdxl", "refiner": {"model": "sdxl-refiner", "switch_at": 0.5}}
    cases["controlnet and depth"] = {"model": "sd", "control": [unit]}
    cases["other parts"] = {"model": "sd", "vae": "other-vae", "text_encoders": ["other-clip"]}
    cases["hires"] = {"model": "sd", "hires": {"width": 96, "height": 128}}
    found = {}
    for name, fields in cases.items():
        server.draw(**small, **fields)
        view = server.draw(**small, **fields)
        found[name] = {"s": view["s"], "worker": view["result"]["worker"], "plan": view["result"].get("plan", [])}
    return found


def lease(server: Server, fields: dict[str, Any]) -> dict[str, Any]:
    """What is leased for a job before and after one was measured, and what a job takes then, above its weights."""
    guess = server.ask("/api/inference/validate", {"prompt": PROMPT, **fields})
    server.draw(**fields)
    known = server.ask("/api/inference/validate", {"prompt": PROMPT, **fields})
    view = server.draw(**fields)
    weights = sum(one["bytes"] for one in server.ask("/api/memory")[1]["leases"] if one["kind"] == "weights")
    took = view["result"]["peak_bytes"] - weights
    return {
        "guessed_bytes": guess["working_set_bytes"],
        "was_measured": guess["measured"],
        "leased_bytes": known["working_set_bytes"],
        "took_bytes": took,
        "leased_against_took": known["working_set_bytes"] / took,
    }


def loras(server: Server) -> dict[str, Any]:
    """Seconds a picture with a LoRA: the first time, again, with another weight, and without it, as before."""
    found = {}
    for model, fields in (("sd15", SD), ("sdxl", XL | {"model": "sdxl-a"})):
        same = fields | {"seed": 1}
        for _ in range(2):
            before = server.draw(**same)

        def styled(weight: float, same: dict[str, Any] = same, model: str = model) -> Any:
            return server.draw(**same, loras=[{"name": f"{model}-style", "weight": weight}])

        views = {"first": styled(0.8), "second": styled(0.8), "third": styled(0.8), "other_weight": styled(0.5)}
        after = server.draw(**same)
        pictures = [view["result"]["images"][0]["artifact"] for view in (before, after, views["third"])]
        found[model] = {
            "without_s": before["s"],
            **{f"{name}_s": view["s"] for name, view in views.items()},
            "bind_ms": {name: view["result"]["timings_ms"].get("bind") for name, view in views.items()},
            "off_again_s": after["s"],
            "is_the_same_without_again": pictures[0] == pictures[1],
            "differs_with": pictures[0] != pictures[2],
        }
    return found


def switches(server: Server) -> dict[str, Any]:
    """Two SDXL in turn, of which one fits: loads from files first, then from memory."""
    quick = XL | {"steps": 2}
    for model in ("sdxl-a", "sdxl-b"):
        server.draw(model=model, **quick)
    server.wait_for_segments(8)
    started = {}
    for _ in range(2):
        for model in ("sdxl-a", "sdxl-b"):
            started[model] = server.draw(model=model, **quick)["s"]
    return {"loads": server.loads(), "switch_and_two_steps_s": started, "cache": server.ask("/api/memory")[0]["cache"]}


def offloaded(server: Server) -> dict[str, Any]:
    """An SDXL picture on a card whose budget does not hold all of it at once."""
    before = card_used_bytes()
    server.draw(model="sdxl-a", **XL)
    view = server.draw(model="sdxl-a", **XL)
    memory = server.ask("/api/memory")[1]
    return {
        "s": view["s"],
        "plan": view["result"].get("plan", []),
        "peak_bytes": view["result"]["peak_bytes"],
        "budget_bytes": memory["budget_bytes"],
        "leases": memory["leases"],
        "card_used_before_bytes": before,
    }


def killed(program: Path, place: Path) -> dict[str, Any]:
    """What comes back, and when, after SIGKILL of the worker in a job, and then of the server."""
    server = Server(program, place / "killed", place / "models", [])
    server.wait_ready()
    free = card_used_bytes()
    server.draw(**SD)
    job = server.submit(**(SD | {"steps": 150}))
    _denoises(server, job)
    worker = server.gpu_worker()
    started = time.perf_counter()
    os.kill(worker["pid"], signal.SIGKILL)
    found: dict[str, Any] = {"memory_back_after_worker_s": _back_s(free)}
    view = server.ended(job)
    found |= {"job_done_s": time.perf_counter() - started, "attempts": view["attempts"], "by": view["result"]["worker"]}
    server.wait_ready()
    job = server.submit(**(SD | {"steps": 150}))
    _denoises(server, job)
    server.process.kill()
    server.process.wait()
    found["memory_back_after_server_s"] = _back_s(free)
    server = Server(program, place / "killed", place / "models", [])
    found["job_after_restart"] = server.ended(job)["state"]
    server.stop()
    return found


def _denoises(server: Server, job: str) -> None:
    for event in server.events(f"/api/jobs/{job}/events"):
        if event["event"] == "progress" and event["progress"]["phase"] == "denoise":
            return


def _back_s(free_bytes: int) -> float:
    """Seconds until the card holds hardly more than it did with an idle worker."""
    started = time.perf_counter()
    while card_used_bytes() > free_bytes + (256 << 20):
        if time.perf_counter() - started > 60:
            raise RuntimeError("the memory does not come back")
    return time.perf_counter() - started


def _disc() -> str:
    picture = Image.new("RGB", (512, 512), (10, 40, 90))
    ImageDraw.Draw(picture).ellipse((100, 100, 400, 400), fill=(250, 180, 20))
    file = io.BytesIO()
    picture.save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Measures what was asked for."""
    asked = parse(__doc__, PARTS, Path("/tmp/calotype-program"))
    shutil.rmtree(asked.folder, ignore_errors=True)
    asked.folder.mkdir(parents=True)
    started = time.perf_counter()
    write_models(asked.folder / "models")
    report = Report(
        asked.json,
        device=torch.cuda.get_device_name(0),
        torch=torch.__version__,
        models_written_s=time.perf_counter() - started,
    )
    if "families" in asked.parts:
        folders.write(asked.folder / "small")
        with serving(asked.calotype, asked.folder, "small", "--models", str(asked.folder / "small")) as server:
            report.add("families", families(server))
    if "pictures" in asked.parts:
        with serving(asked.calotype, asked.folder, "pictures") as server:
            report.add("pictures", pictures(server))
    if "loras" in asked.parts:
        with serving(asked.calotype, asked.folder, "loras") as server:
            report.add("loras", loras(server))
    if "switches" in asked.parts:
        with serving(asked.calotype, asked.folder, "switches", "--memory-share", share_of_card(11.2)) as server:
            report.add("switches", switches(server))
    if "offload" in asked.parts:
        for name, gb in (("vae_tiling", 9.0), ("offload_model", 7.5), ("offload_sequential", 5.0)):
            with serving(asked.calotype, asked.folder, name, "--memory-share", share_of_card(gb)) as server:
                report.add(name, offloaded(server))
    if "killed" in asked.parts:
        report.add("killed", killed(asked.calotype, asked.folder))


if __name__ == "__main__":
    main()
