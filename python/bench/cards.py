"""Checks on a machine with CUDA cards what no other test sees.

That a card is named and taken by its UUID whatever hides the others, that its sensors live, that a paused picture
leaves the card, and that two cards share the work.

    python bench/cards.py --calotype ../target/release/calotype --json cards.json

Needs what `bench/program.py` needs. With one card the last part is left out. Exits with 1 if a check is not met.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.command import Report, parse
from bench.models import SD, XL, write_models
from bench.server import Server, card_used_bytes, serving, share_of_card

PARTS = ("pauses", "sensors", "hidden", "shared")
SENSORS = {
    "utilisation_percent": "utilization.gpu",
    "temperature_c": "temperature.gpu",
    "power_mw": "power.draw",
    "clock_mhz": "clocks.sm",
    "free_bytes": "memory.free",
}
"""Our names and those of `nvidia-smi`."""
GAIN_LEAST = 1.9
"""How many times faster two cards are than one."""


def nvidia_smi(*query: str) -> list[list[str]]:
    """Rows of the driver's own tool."""
    command = ["nvidia-smi", *query, "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [[field.strip() for field in line.split(",")] for line in lines if line.strip()]


def cards(server: Server) -> list[Any]:
    """The cards as the server names them, with their workers."""
    return [device for device in server.ask("/api/devices") if device["device"]["kind"] == "cuda"]


def until(server: Server, job: str, state: str) -> float:
    """Seconds until the job is in a state."""
    started = time.perf_counter()
    if server.ask(f"/api/jobs/{job}")["state"] != state:
        for event in server.events(f"/api/jobs/{job}/events"):
            if event["event"] == "job" and event["state"] == state:
                break
        else:
            raise RuntimeError(f"{job} ended and never was {state}")
    return time.perf_counter() - started


def steps_done(server: Server, job: str, least: int) -> None:
    """Until so many steps of it are done."""
    for event in server.events(f"/api/jobs/{job}/events"):
        progress = event.get("progress") or {}
        if progress.get("phase") == "denoise" and progress["done"] >= least:
            return
    raise RuntimeError(f"{job} ended before its step {least}")


def pauses(server: Server) -> dict[str, Any]:
    """A large picture is paused in the middle, others are drawn meanwhile, and it ends as one that never was paused."""
    large = XL | {"model": "sdxl-a", "steps": 60, "seed": 7, "width": 1536, "height": 1536}
    whole = server.draw(**large)
    job = server.submit(**large)
    steps_done(server, job, 20)
    running = server.ask("/api/memory")[1]["leases"]
    used_running = card_used_bytes()
    server.ask(f"/api/jobs/{job}/pause", {})
    paused_s = until(server, job, "paused")
    leases = server.ask("/api/memory")[1]["leases"]
    worker = server.gpu_worker()
    started = time.perf_counter()
    for other in [server.submit(**SD) for _ in range(8)]:
        server.ended(other)
    others_s = time.perf_counter() - started
    server.ask(f"/api/jobs/{job}/resume", {})
    view = server.ended(job)

    def working(leases: list[Any]) -> int:
        return sum(lease["bytes"] for lease in leases if lease["kind"] != "weights")

    artifacts = [one["result"]["images"][0]["artifact"] for one in (whole, view)]
    return {
        "paused_s": paused_s,
        "leased_beside_weights_running_bytes": working(running),
        "leased_beside_weights_paused_bytes": working(leases),
        "card_used_running_bytes": used_running,
        "card_used_after_others_bytes": card_used_bytes(),
        "state_of_worker_while_paused": worker["state"],
        "eight_others_meanwhile_s": others_s,
        "attempts": view["attempts"],
        "same_pixels": artifacts[0] == artifacts[1],
    }


def sensors(server: Server) -> dict[str, Any]:
    """The card's figures at rest and in the middle of a picture, beside the driver's own."""
    server.draw(**SD)
    fields = SENSORS.values()

    def figures() -> dict[str, Any]:
        device = cards(server)[0]["device"]
        return {
            "server": {name: device.get(name) for name in SENSORS},
            "nvidia-smi": dict(zip(fields, nvidia_smi(f"--query-gpu={','.join(fields)}", "-i", "0")[0])),
        }

    time.sleep(3)  # for the card to come to rest
    found = {"idle": figures()}
    jobs = [server.submit(**(SD | {"steps": 150})) for _ in range(4)]
    steps_done(server, jobs[0], 75)
    found["busy"] = figures()
    for job in jobs:
        server.ended(job)
    return found


@contextmanager
def visible(cards: str) -> Iterator[None]:
    """`CUDA_VISIBLE_DEVICES` for the servers that are started within."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = cards
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def hidden(program: Path, place: Path) -> dict[str, Any]:
    """Each card alone, by index and by UUID: what the server calls it, and the card that its worker really holds."""
    uuids = [uuid for (uuid,) in nvidia_smi("--query-gpu=uuid")]
    found = {}
    for index, uuid in enumerate(uuids):
        for name in (str(index), uuid):
            with visible(name), serving(program, place, f"visible-{name}") as server:
                server.draw(**(SD | {"steps": 2}))
                named = cards(server)
                pid = str(named[0]["workers"][0]["pid"])
                held = [row[0] for row in nvidia_smi("--query-compute-apps=gpu_uuid,pid") if row[1] == pid]
                told = [one["device"].get("uuid") for one in named]
                found[name] = {"told": told, "held": held, "incarnation": named[0]["workers"][0]["incarnation"]}
                # Where the driver does not tell processes apart, as in some virtual machines, `held` is empty.
                found[name]["right"] = told == [uuid] and held in ([uuid], [])
    with visible("none-such"):
        server = Server(program, place / "visible-none", place / "models", [])
        try:
            told = [one["device"].get("uuid") for one in cards(server)]
        finally:
            server.stop()
        found["a card that there is not"] = {"told": told, "right": told == []}
    return found


def shared(program: Path, place: Path) -> dict[str, Any]:
    """What two cards gain over one, and how often two models are loaded that each take a card."""

    def crowd(server: Server) -> float:
        for _ in range(2):
            started = time.perf_counter()
            for job in [server.submit(**SD) for _ in range(16)]:
                server.ended(job)
        return time.perf_counter() - started

    with visible("0"), serving(program, place, "one-card") as server:
        found: dict[str, Any] = {"sixteen_on_one_s": crowd(server)}
    with serving(program, place, "two-cards") as server:
        found["sixteen_on_two_s"] = crowd(server)
    found["gain"] = found["sixteen_on_one_s"] / found["sixteen_on_two_s"]
    with serving(program, place, "in-turn", "--memory-share", share_of_card(11.2)) as server:
        for _ in range(6):
            for model in ("sdxl-a", "sdxl-b"):
                server.draw(model=model, **(XL | {"steps": 4}))
        found["loads_in_turn"] = [(row["model"], row["worker"]) for row in server.loads()]
    return found


def unmet(part: str, found: dict[str, Any]) -> list[str]:
    """The checks of a part that its results do not meet."""
    checks: dict[str, bool] = {}
    if part == "pauses":
        checks = {
            "a paused job leases nothing but weights": found["leased_beside_weights_paused_bytes"] == 0,
            "a resumed job is not another attempt": found["attempts"] == 1,
            "a resumed job draws the same pixels": found["same_pixels"],
        }
    elif part == "sensors":
        for state in ("idle", "busy"):
            server, driver = found[state]["server"], found[state]["nvidia-smi"]
            for name, field in SENSORS.items():
                # A virtual machine may hide a sensor: then the driver's tool shows no number either.
                is_known = driver[field].replace(".", "", 1).isdigit()
                checks[f"{name} is known, {state}"] = server[name] is not None or not is_known
        idle, busy = (found[state]["server"]["utilisation_percent"] for state in ("idle", "busy"))
        checks["a card at work is busier than at rest"] = idle is None or busy is None or busy > idle
    elif part == "hidden":
        checks = {f"the right card for {visible}": row["right"] for visible, row in found.items()}
    elif part == "shared":
        workers = dict(found["loads_in_turn"])
        checks = {
            f"two cards are {GAIN_LEAST} times as fast as one": found["gain"] >= GAIN_LEAST,
            "two models in turn are loaded once each": len(found["loads_in_turn"]) == len(workers) == 2,
            "two models in turn take a card each": len(set(workers.values())) == 2,
        }
    return [check for check, is_met in checks.items() if not is_met]


def main() -> int:
    """Checks what was asked for; 1 if a check is not met."""
    asked = parse(__doc__, PARTS, Path("/tmp/calotype-cards"))
    asked.folder.mkdir(parents=True, exist_ok=True)
    for old in asked.folder.iterdir():
        if old.is_dir() and old.name != "models":
            shutil.rmtree(old)
        elif old.suffix == ".log":
            old.unlink()  # A server appends to its log; the loads of an earlier call are not this one's.
    write_models(asked.folder / "models")
    devices = [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())]
    report = Report(asked.json, devices=devices)
    failed: list[str] = []

    def check(part: str, values: dict[str, Any]) -> None:
        report.add(part, values)
        failed.extend(f"{part}: {what}" for what in unmet(part, values))

    for part, measure in (("pauses", pauses), ("sensors", sensors)):
        if part in asked.parts:
            with serving(asked.calotype, asked.folder, part) as server:
                check(part, measure(server))
    if "hidden" in asked.parts:
        check("hidden", hidden(asked.calotype, asked.folder))
    if "shared" in asked.parts and torch.cuda.device_count() > 1:
        check("shared", shared(asked.calotype, asked.folder))
    for what in failed:
        print(f"not met: {what}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
