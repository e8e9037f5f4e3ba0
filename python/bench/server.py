"""`calotype serve` as a child process: requests over HTTP, loads read from its log, and the memory of its card."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PYTHON = Path(__file__).resolve().parents[1]
PROMPT = "a red apple on the beach"
LOG_LINE = r"\S+Z +INFO calotype_engine::\S+: "
WEIGHTS_READ = re.compile(LOG_LINE + r"`([^`]+)` took (\d+) components from memory and (\d+) from files")
LOADED = re.compile(LOG_LINE + r"Loaded `([^`]+)` into (\S+): (\d+) bytes in (\d+) ms \((.*)\)")


def loads_in(log: str) -> list[dict[str, Any]]:
    """The loads that a server's log tells of, in order.

    The server's dispatcher, a single task, logs two lines for each load: first where its weights came from, without
    the worker's name, then which worker has it. No other load's line is between them. A load that its worker did not
    survive has the first line alone.
    """
    rows: list[dict[str, Any]] = []
    read: tuple[str, int, int] | None = None
    for line in log.splitlines():
        if found := WEIGHTS_READ.fullmatch(line):
            read = found[1], int(found[2]), int(found[3])
        elif found := LOADED.fullmatch(line):
            if read is None or read[0] != found[1]:
                raise RuntimeError(f"the log does not tell where these weights came from: {line}")
            sizes = {"bytes": int(found[3]), "ms": int(found[4]), "from_memory": read[1], "from_files": read[2]}
            rows.append({"model": found[1], "worker": found[2], **sizes, "phases": found[5]})
            read = None
    return rows


class Server:
    """`calotype serve` on the first card."""

    def __init__(self, program: Path, data: Path, models: Path, options: list[str]) -> None:
        self.log = data.with_suffix(".log")
        environment = os.environ | {
            "CALOTYPE_PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join([str(PYTHON), os.environ.get("PYTHONPATH", "")]),
            "RUST_LOG": "info",
            "NO_COLOR": "1",
        }
        places = ["--data-dir", str(data), "--models", str(models)]
        command = [str(program), "serve", "--listen", "127.0.0.1:0", *places, *options]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        if found is None:
            raise RuntimeError(f"{line}{self.log.read_text()}")
        self.url = found[0]

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.read().decode()}") from None

    def submit(self, **fields: Any) -> str:
        """A job's id."""
        request = {"prompt": PROMPT, "guidance": 5.0, "sampler": "euler", **fields}
        return str(self.ask("/api/jobs", request)["job"]["id"])

    def events(self, path: str) -> Iterator[Any]:
        """Server-sent events, until the server ends them."""
        with urllib.request.urlopen(self.url + path, timeout=300) as lines:
            for line in lines:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def ended(self, job: str) -> Any:
        """The job, once it has ended; raises where that was no success."""
        for _ in self.events(f"/api/jobs/{job}/events"):
            pass
        view = self.ask(f"/api/jobs/{job}")
        if view["state"] != "succeeded":
            raise RuntimeError(f"{view.get('error')}\n{self.log.read_text()[-3000:]}")
        return view

    def draw(self, **fields: Any) -> Any:
        """A job's end, with the seconds that it took through the door."""
        started = time.perf_counter()
        view = self.ended(self.submit(**fields))
        return view | {"s": time.perf_counter() - started}

    def wait_for_segments(self, count: int) -> None:
        """Until so many components wait in memory."""
        if self.segments() >= count:
            return
        for event in self.events("/api/events"):
            if event["event"] == "segment" and event["state"] == "failed":
                raise RuntimeError(f"weights are not kept in memory: {event['reason']}")
            if event["event"] == "segment" and self.segments() >= count:
                return

    def segments(self) -> int:
        """Components that are ready in memory."""
        cache = self.ask("/api/memory")[0].get("cache") or {"segments": []}
        return sum(segment["state"] == "ready" for segment in cache["segments"])

    def loads(self) -> list[dict[str, Any]]:
        """The loads since its log began."""
        return loads_in(self.log.read_text())

    def gpu_worker(self) -> Any:
        """The worker of the card."""
        for device in self.ask("/api/devices"):
            if device["device"]["kind"] == "cuda":
                return device["workers"][0]
        raise RuntimeError("there is no card")

    def wait_ready(self) -> None:
        """Until the card's worker takes work."""
        if self.gpu_worker()["state"] == "ready":
            return
        for event in self.events("/api/events"):
            if event["event"] == "worker" and self.gpu_worker()["state"] == "ready":
                return

    def stop(self) -> None:
        """As a service manager would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextmanager
def serving(program: Path, place: Path, name: str, *options: str) -> Iterator[Server]:
    """A server of its own data directory, its worker ready."""
    server = Server(program, place / name, place / "models", list(options))
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def card_used_bytes() -> int:
    """Memory of the card that anybody holds."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 20


def share_of_card(gb: float) -> str:
    """The `--memory-share` that gives the card such a budget."""
    return f"{gb * 1e9 / torch.cuda.get_device_properties(0).total_memory:.4f}"
