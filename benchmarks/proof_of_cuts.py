"""What the proof of a structured cut costs for a ViT-B, beside the trace (the export) of the model.

Each cut is made in a process of its own, with random weights, two images and one thread. Times are those of the processor, so that
other work on the machine counts little; memory is the peak above that before the cut.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from conditions import write

CUTS = {"an eighth of every group": ("all", 8), "half of every group": ("all", 2), "half of the MLPs": ("mlp", 2)}
WIDTH_OF_MLP = 3072


def measured(which: str, part: int) -> dict[str, float]:
    """Seconds of the trace and of the cut with its proof, and gigabytes that the cut needs."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from mirabelle.graph import groups_of, propagated, surgery, traced
    from mirabelle.graph.interpret import kept_without

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, images = ViTForImageClassification(ViTConfig()).eval(), torch.randn(2, 3, 224, 224)
    model(images)
    begin = time.process_time()
    program = traced(model, (images,))
    trace = time.process_time() - begin
    flow = propagated(program)
    groups = [group for group in groups_of(program, flow) if which == "all" or len(group) == WIDTH_OF_MLP]
    kept = kept_without(flow, np.concatenate([group.units[: len(group) // part] for group in groups]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    surgery.cut(model, program, flow, kept, ((images,), {}))
    cut = time.process_time() - begin
    return {"trace_s": trace, "cut_s": cut, "gb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
        return
    numbers: dict[str, Any] = {}
    lines = [
        "# The proof of a cut",
        "",
        "| ViT-B, removed | trace, s | cut with its proof, s | ratio | GB above |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, (which, part) in CUTS.items():
        command = [sys.executable, __file__, which, str(part)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        numbers[name] = found
        ratio = found["cut_s"] / found["trace_s"]
        lines.append(f"| {name} | {found['trace_s']:.1f} | {found['cut_s']:.1f} | {ratio:.1f} | {found['gb']:.2f} |")
    write("proof_of_cuts", numbers, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
