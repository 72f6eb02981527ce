"""What it costs to find which dimensions go together: seconds and memory beyond the trace that torch.export makes.

ResNet-50, ViT-B/16 and a Llama of seven billion parameters (shapes alone, on the meta device), each in a process of its own. The
seconds are those of propagation and of groups, the least of several repeats, as a clock and as the process itself counts them; the
memory is the rise of the peak of resident memory during the first of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import write
from mirabelle.graph import groups_of, propagated, traced

os.environ["HF_HUB_OFFLINE"] = "1"
LIMITS = {"ResNet-50": 0.5, "ViT-B/16": 1.0, "Llama-7B": 8.0}  # seconds
MOST_BYTES = 1_500_000_000
_STATUS, _PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Bottleneck(nn.Module):
    """Convolutions 1×1, 3×3, 1×1 with a shortcut around them; the middle one holds the stride."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features))))))
        return F.relu(self.bn3(self.conv3(inner)) + self.shortcut(features))


def resnet50() -> nn.Module:
    """3, 4, 6 and 3 bottlenecks of 64, 128, 256 and 512 channels; 25.6 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, 64 << stage, 2 if stage and not block else 1))
            channels = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def vit() -> nn.Module:
    """ViT-B/16 as transformers has it by default."""
    from transformers import ViTConfig, ViTForImageClassification

    model: nn.Module = ViTForImageClassification(ViTConfig(num_labels=1000))
    return model


def llama() -> nn.Module:
    """Llama of 32 layers and width 4,096, as transformers has it by default, without values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(LlamaConfig(use_cache=False)).to(torch.bfloat16)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ResNet-50": (resnet50, lambda: torch.zeros(2, 3, 224, 224)),
    "ViT-B/16": (vit, lambda: torch.zeros(2, 3, 224, 224)),
    "Llama-7B": (llama, lambda: torch.zeros(2, 7, dtype=torch.long, device="meta")),
}


def peak() -> int:
    """The most bytes that this process has held since the peak was last reset."""
    line = next(line for line in _STATUS.read_text("ascii").splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measured(name: str, repeats: int) -> dict[str, Any]:
    build, inputs = MODELS[name]
    model = build().eval()
    begin = time.perf_counter()
    program = traced(model, (inputs(),))
    trace_seconds = time.perf_counter() - begin
    _PEAK_RESET.write_text("5", "ascii")
    before, rise, clock, own = peak(), 0, [], []
    for repeat in range(repeats):
        begin, begin_own = time.perf_counter(), time.process_time()
        flow = propagated(program)
        groups = groups_of(program, flow)
        clock.append(time.perf_counter() - begin)
        own.append(time.process_time() - begin_own)
        if repeat == 0:
            rise = peak() - before
    return {
        "parameters": sum(tensor.numel() for tensor in model.parameters()), "nodes": len(program.graph.nodes),
        "units": flow.units.count, "groups": len(groups), "trace_seconds": trace_seconds, "seconds": clock,
        "process_seconds": own, "bytes": rise, "unknown": dict(flow.unknown),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--one", action="store_true", help="measure in this process and print numbers alone")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.models[0], options.repeats)))
        return
    numbers, lines = {}, []
    for name in options.models:
        command = [sys.executable, __file__, "--one", "--models", name, "--repeats", str(options.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        least, own = min(found["seconds"]), min(found["process_seconds"])
        found["met"] = least <= LIMITS[name] and found["bytes"] <= MOST_BYTES
        numbers[name] = found
        lines.append(
            f"| {name} | {found['parameters']:,} | {found['nodes']:,} | {found['units']:,} | {found['groups']:,} | "
            f"≤ {LIMITS[name]:g} s | **{least:.2f} s** | {own:.2f} s | {found['bytes'] / 1e6:,.0f} MB | "
            f"{found['trace_seconds']:.1f} s | {'yes' if found['met'] else 'NO'} |"
        )
    page = "\n".join(
        [
            "# What finding the groups costs", "",
            "Propagation and grouping beyond the trace; the least of the repeats, and the memory that the first adds to the peak",
            f"(asked: at most {MOST_BYTES / 1e9:g} GB).", "",
            "| model | parameters | nodes | units | groups | asked | clock | process | memory | trace | reached |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|", *lines,
        ]
    )  # fmt: skip
    write("groups", numbers, page + "\n")


if __name__ == "__main__":
    main()
