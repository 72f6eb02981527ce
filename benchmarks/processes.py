"""Two processes of one thread each against one of two threads: ResNet-20, the same batches of 128 images.

    python benchmarks/processes.py [--steps 30] [--rounds 3]

steps     seconds of a training step on images of CIFAR-10's shape (drawn at random: only time is measured), the median over the steps;
          both ways alternate. Two cores are needed.
losses    the losses of the first ten steps in float32 with common batch norms (`sync_batch_norm`), and without batch norms.

The processes exchange gradients by gloo, through the network interface of the machine itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditions import write
from mirabelle import Run, Task, Training
from mirabelle.job.processes_of_job import led_by_first
from mirabelle.report import read_events
from mirabelle.run.launch import is_first
from mirabelle.sources.zoo import resnet20
from mirabelle.training import fit

BATCH, FIRST = 128, 10
TRAINING = Training(
    steps=1, batch_size=BATCH, optimizer="sgd", lr=0.1, lr_schedule="constant", precision="float32", keep="last"
)


class Clock:
    """A control that notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, model: nn.Module, progress: float) -> bool:
        del model, progress
        self.times.append(time.perf_counter())
        return False

    def settled(self, progress: float) -> bool:
        del progress
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


def images() -> Task:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH * (FIRST + 2), 3, 32, 32, generator=generator)
    targets = torch.randint(0, 10, (len(pixels),), generator=generator)
    held = (pixels[:20], targets[:20])
    return Task(train=(pixels, targets), validation=held, test=held)


def network(*, normalized: bool) -> nn.Module:
    torch.manual_seed(0)
    model = resnet20()
    if not normalized:
        for module in list(model.modules()):
            for name, part in module.named_children():
                if isinstance(part, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())
        for parameter in model.parameters():  # without batch norms, the first weights are too large for the depth
            parameter.data *= 0.5
    return model


def fitted(task: Task, *, steps: int, normalized: bool, synchronized: bool) -> tuple[list[float], float]:
    """(seconds of each step after the first three, the sum of the losses of the steps)."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        run = Run(out, seed=0)
        run.journal.decisions["execution"] = "float32 channels_last"
        settings = replace(TRAINING, steps=steps, sync_batch_norm=synchronized, lr=0.01)
        fit(network(normalized=normalized), task, settings, run, controls=[clock])
        epochs = [event for event in read_events(Path(out)) if event["event"] == "epoch"]
    pauses = [after - before for before, after in zip(clock.times[3:], clock.times[4:], strict=False)]
    return pauses, sum(event["loss"] for event in epochs) * steps


def losses(task: Task, *, normalized: bool) -> list[float]:
    """The losses of the first steps."""
    sums = [0.0, *(fitted(task, steps=k, normalized=normalized, synchronized=normalized)[1] for k in range(1, FIRST + 1))]
    return [after - before for before, after in itertools.pairwise(sums)]


def work(task: Task, what: str, steps: int) -> Any:
    if what == "losses":
        return {"synchronized": losses(task, normalized=True), "without": losses(task, normalized=False)}
    own = replace_data(task, steps)
    return fitted(own, steps=steps, normalized=True, synchronized=what == "synchronized")[0]


def replace_data(task: Task, steps: int) -> Task:
    """The task with one epoch of so many steps, so that no validation comes between them."""
    times = -(-(steps * BATCH) // len(task.train))
    train = task.train.at(torch.arange(len(task.train)).repeat(times)[: steps * BATCH])  # type: ignore[union-attr]
    return Task(
        train=(train.inputs, train.targets),
        validation=(task.validation.inputs, task.validation.targets),
        test=(task.test.inputs, task.test.targets),
    )


def child(what: str, steps: int, out: Path) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    task = images()
    found = led_by_first(task, {"what": what}, lambda: work(task, what, steps))
    if is_first():
        out.write_text(json.dumps(found))


def measured(what: str, steps: int, count: int) -> Any:
    """What `work` returns in `count` processes, which have two threads together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--child", what, "--steps", str(steps), "--out", str(out)]
        known = {**os.environ, "OMP_NUM_THREADS": str(2 // count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        places = [
            {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            for rank in range(count)
        ]
        started = [subprocess.Popen(command, env={**known, **place}) for place in places]
        assert not any(one.wait() for one in started), "a process has failed"
        return json.loads(out.read_text())


def page(found: dict[str, Any]) -> str:
    def row(name: str, of: str, asked: str) -> str:
        return f"| {name} | {asked} | **{found['ratios'][of]:.2f}** ({1e3 * found['seconds'][of]:.0f} ms against {1e3 * found['seconds']['one']:.0f} ms) |"

    apart = {
        name: max(abs(one - two) for one, two in zip(found["losses"]["1"][name], found["losses"]["2"][name], strict=True))
        for name in found["losses"]["1"]
    }
    rows = [
        row("a step of ResNet-20 at batch 128: two processes against one", "two", "≤ 1.15"),
        row("the same with common batch norms", "synchronized", "–"),
        f"| largest difference of the first ten losses, common batch norms | ≤ 1e-4 | **{apart['synchronized']:.1e}** |",
        f"| the same, without batch norms | ≤ 1e-4 | **{apart['without']:.1e}** |",
    ]
    return "\n".join(
        ["# Two processes of one thread against one of two", "", "| | asked | reached |", "|---|---|---|", *rows, ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.steps, options.out)
        return
    ways = {"one": ("plain", 1), "two": ("plain", 2), "synchronized": ("synchronized", 2)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (what, count) in ways.items():
            times[name].append(statistics.median(measured(what, options.steps, count)))
            print(name, times[name][-1], flush=True)
    seconds = {name: statistics.median(own) for name, own in times.items()}
    ratios = {name: seconds[name] / seconds["one"] for name in ("two", "synchronized")}
    found = {
        "seconds": seconds,
        "ratios": ratios,
        "all": times,
        "losses": {str(count): measured("losses", 1, count) for count in (1, 2)},
    }
    write("processes", found, page(found))


if __name__ == "__main__":
    main()
