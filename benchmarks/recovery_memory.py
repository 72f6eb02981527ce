"""What least-squares recovery takes: memory above the model, and seconds, for more and more samples.

A network of two convolutions and a linear layer on images of 160 × 160, half of its channels cut. Each number of samples has a
process of its own; memory is the peak of resident memory during the recovery less the peak before it, when the data and both
models are there and the model has been traced. `step` is all of `prune.Channels` with recovery, its draw of samples and its trace
included; `fit` is `reconstruct` alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from torch import nn

from conditions import write
from mirabelle import Run, Task, prune
from mirabelle.prune.recovery import reconstruct

COUNTS, MOST_BYTES, SIZE = (16, 64, 256, 1024), 400_000_000, 160


def network() -> nn.Module:
    """Two convolutions of 64 channels on maps of 80 × 80."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).eval()


def peak() -> int:
    """Bytes of resident memory, the most so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(count: int, what: str) -> dict[str, Any]:
    """Memory and seconds of one recovery."""
    model = network()
    inputs, targets = torch.empty(count, 3, SIZE, SIZE).normal_(), torch.arange(count) % 5
    few = inputs[:8], targets[:8]
    task = Task(train=(inputs, targets), validation=few, test=few)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        smaller = prune.Channels(sparsity=0.5)(model, task, run)
        before, begin = peak(), time.perf_counter()
        if what == "step":
            prune.Channels(sparsity=0.5, recover="least-squares", samples=count)(model, task, run)
        else:
            reconstruct(model, smaller, [inputs])
        return {"samples": count, "what": what, "bytes": peak() - before, "seconds": time.perf_counter() - begin}


def row(found: dict[str, Any]) -> str:
    return f"| {found['what']} | {found['samples']} | ≤ 400 MB | **{found['bytes'] / 1e6:.0f} MB** | {found['seconds']:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, help="measure this number in this process and print it")
    parser.add_argument("--what", choices=("fit", "step"), default="fit")
    options = parser.parse_args()
    if options.samples is not None:
        print(json.dumps(measured(options.samples, options.what)))
        return
    rows = []
    for what in ("fit", "step"):
        for count in COUNTS:
            command = [sys.executable, __file__, "--samples", str(count), "--what", what]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    page = "\n".join(
        [
            "# What least-squares recovery takes", "",
            f"Two convolutions and a linear layer on images of {SIZE} × {SIZE}, half of the channels cut; memory above the peak before the "
            "recovery, with data and models in memory. `fit` is `reconstruct` alone, `step` all of `prune.Channels`.", "",
            "| | samples | asked | memory | seconds |", "|---|--:|--:|--:|--:|", *map(row, rows), "",
        ]
    )  # fmt: skip
    write("recovery_memory", {"rows": rows}, page)
    if max(found["bytes"] for found in rows) > MOST_BYTES:
        sys.exit("recovery takes more memory than it may")


if __name__ == "__main__":
    main()
