"""Runs that are killed at random moments, over data that are read when needed, and in two processes: do they end with the same bits?

    python benchmarks/kills.py [--kills 30]

Each run trains, prunes with distillation, and quantizes; it is killed three times (SIGKILL), at moments drawn at random from the first
event of the run to its usual end, and then ends. Its files are compared with those of a run that was left alone.

images    image files, decoded into the cache; their sizes are taken for too large for the memory.
table     a .parquet file, encoded into the cache, likewise.
processes the images, by two processes (gloo); the first, the second or both are killed. As many as of the others together.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from conditions import write
from mirabelle.run.journal import read_events

SHIPPED = ("model.safetensors", "model.onnx", "architecture.json")
KINDS = {"processes": 2, "images": 1, "table": 1}
SHARE = {"processes": 1.0, "images": 0.5, "table": 0.5}  # of the kills
TRAINING = 'train = { epochs = 4, batch_size = 32, lr = 2e-3, precision = "float32" }'
RECIPE = """
schema = 1
seed = 3
[model]
from = "./net.py:{net}"
[task]
data = "{data}"
[baseline]
{training}
[goal]
latency = "any"
[[step]]
use = "prune.Weights"
sparsity = 0.6
schedule = "cubic"
{training}
[[step]]
use = "quantize.Static"
"""
NETS = """
from torch import nn

def images():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 3))

def table():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
"""
# Nothing is small: every set of data is read when it is needed.
START = """
import sys
from mirabelle.sources.datasets import images, table
images.IN_MEMORY = table.IN_MEMORY = 0
from mirabelle.cli.entry import main
main()
"""


def prepare(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for k in range(900):
        place = folder / "photos" / f"class-{k % 3}" / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((draw.integers(0, 80, (24, 24, 3)) + 50 * (k % 3)).astype(np.uint8)).save(place)
    columns = {f"x{k}": draw.normal(size=6000) for k in range(6)}
    columns["y"] = np.where(columns["x0"] * columns["x1"] > 0, "yes", "no")
    parquet.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=1000)
    (folder / "net.py").write_text(NETS)
    (folder / "start.py").write_text(START)
    for name, data in (("images", "photos/"), ("table", "rows.parquet")):
        (folder / f"{name}.toml").write_text(RECIPE.format(net=name, data=f"./{data}", training=TRAINING))


def started(folder: Path, recipe: Path, out: Path, count: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, str(folder / "start.py"), "run", str(recipe), "--out", str(out), "--quiet"]
    known = {**os.environ, "OMP_NUM_THREADS": "1", "MIRABELLE_CACHE": str(folder / "cache")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    places = [{**several, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)] if count > 1 else [{}]
    return [
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**known, **one})
        for one in places
    ]


def ended(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    told = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], told[0]


def killed(processes: Sequence[subprocess.Popen[str]], out: Path, seconds: float, victims: Sequence[int]) -> list[int]:
    """Kill some processes of a run, so long after its first event of this process."""
    before = len(read_events(out))
    while len(read_events(out)) == before and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    time.sleep(seconds)
    for rank in victims:
        processes[rank].send_signal(signal.SIGKILL)
    return ended(processes)[0]


def of_kind(kind: str, kills: int, folder: Path) -> dict[str, Any]:
    draw, count = random.Random(kind), KINDS[kind]  # noqa: S311 (no secret)
    name = "images" if kind == "processes" else kind
    reference = folder / f"{kind}-whole"
    begin = time.perf_counter()
    statuses, told = ended(started(folder, folder / f"{name}.toml", reference, count))
    assert statuses == [0] * count, told
    times = [event["time"] for event in read_events(reference)]
    usual = times[-1] - times[0]
    found = {"runs": 0, "kills": 0, "in work": 0, "same": 0, "seconds": usual}
    for number in range(kills // 3):
        out = folder / f"{kind}-{number}"
        for _ in range(3):
            victims = draw.choice([[0], [1], [0, 1]]) if count > 1 else [0]
            statuses = killed(started(folder, reference / "recipe.toml", out, count), out, draw.uniform(0, usual), victims)
            found["kills"] += 1
            found["in work"] += any(statuses[rank] == -signal.SIGKILL for rank in victims)
        statuses, told = ended(started(folder, reference / "recipe.toml", out, count))
        found["runs"] += 1
        same = statuses == [0] * count and all((out / one).read_bytes() == (reference / one).read_bytes() for one in SHIPPED)
        found["same"] += same
        print(
            kind,
            number,
            "same" if same else f"OTHER: {statuses} {told[-500:]}",
            f"{time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    return found


def page(found: dict[str, Any]) -> str:
    rows = [
        f"| {kind} | {one['kills']} ({one['in work']} while it worked) | {one['runs']} | **{one['same']} of {one['runs']}** |"
        for kind, one in found.items()
    ]
    head = [
        "# Killed runs over data on disk, and of two processes",
        "",
        "| | kills | runs | the same bits as undisturbed |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = {}
        for kind in KINDS:
            found[kind] = of_kind(kind, round(SHARE[kind] * options.kills), Path(folder))
            write("kills", found, page(found))


if __name__ == "__main__":
    main()
