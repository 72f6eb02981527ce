"""What everything that is not training costs: CPU seconds and peak memory of whole processes.

    python benchmarks/speed_of_runs.py [--minilm FOLDER] [--only dynamic pack cut]

`dynamic`: `quantize.Dynamic` alone on perceptrons of 1, 10 and 102 million parameters, from the model to the report. `pack`: the
ONNX file of MiniLM, in int8 and in floating point, packed by `mirabelle.pack`. `cut`: ResNet-56 cut to half its
multiply-accumulates by magnitude and by Hessian, and MiniLM by Hessian. FOLDER is a folder of transformers with the model
(sentence-transformers/all-MiniLM-L6-v2); without it the rows on MiniLM are left out.

Every row is a process of its own. Its CPU seconds are those of the process and of its children, imports included; its memory
is the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conditions import RESULTS, write

MEGA = 1e6
WIDTHS = {"1": (64, [512] * 5), "10": (64, [1024] * 11), "102": (256, [4096] * 7)}  # inputs and hidden widths


def spent() -> float:
    """CPU seconds of this process and of its children so far."""
    return sum(
        part.ru_utime + part.ru_stime for part in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def peak() -> float:
    """The largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGA


def perceptron(millions: str) -> Any:
    from torch import nn

    inputs, widths = WIDTHS[millions]
    layers: list[nn.Module] = []
    for before, after in zip([inputs, *widths], widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def dynamic(millions: str, minilm: str) -> dict[str, float]:
    """A run of `quantize.Dynamic` alone."""
    del minilm
    import torch

    import mirabelle
    from mirabelle import quantize

    torch.manual_seed(0)
    model = perceptron(millions)
    x, y = torch.randn(512, WIDTHS[millions][0]), torch.randint(0, 10, (512,))
    task = mirabelle.Task(train=(x, y), test=(x, y))
    with tempfile.TemporaryDirectory() as folder:
        mirabelle.compress(model, task, [quantize.Dynamic()], out=Path(folder) / "run")
    return {"file_mb": 4 * sum(parameter.numel() for parameter in model.parameters()) / MEGA}


def encoder(minilm: str, **settings: Any) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2, attn_implementation="sdpa", **settings)


def sentences(count: int, length: int = 32) -> Any:
    """Random tokens with a few words that tell the class."""
    import torch

    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 30000, (count, length), generator=draw)
    labels = torch.randint(0, 2, (count,), generator=draw)
    tokens[:, 1] = 2000 + labels
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, labels


def pack(form: str, minilm: str) -> dict[str, float]:
    """`mirabelle.pack` of MiniLM's ONNX file, which another process has exported; the file's content counts as memory."""
    del minilm
    import mirabelle
    from mirabelle.artifact.mira import unpack

    data = Path(os.environ["EXPORTED"], f"{form}.onnx").read_bytes()
    before, memory = spent(), peak()
    packed = mirabelle.pack(data)
    seconds, memory = spent() - before, peak() - memory + len(data) / MEGA
    assert unpack(packed, len(data)) == data
    return {
        "file_mb": len(data) / MEGA, "packed_bytes": len(packed), "mb_per_second": len(data) / MEGA / seconds, "over_mb": memory
    }  # fmt: skip


def export_minilm(form: str, minilm: str) -> dict[str, float]:
    """Write the ONNX file of MiniLM for `pack`."""
    import mirabelle
    from mirabelle import quantize
    from mirabelle.run.run import Run
    from mirabelle.runtime.export import export

    inputs, labels = sentences(16)
    task = mirabelle.Task(train=(inputs, labels), test=(inputs, labels))
    model = encoder(minilm).eval()
    if form == "int8":
        model = quantize.Dynamic()(model, task, Run(os.environ["EXPORTED"]))
    Path(os.environ["EXPORTED"], f"{form}.onnx").write_bytes(export(model, task.example()))
    return {}


def cut(case: str, minilm: str) -> dict[str, float]:
    """`prune.Channels` to half the multiply-accumulates, without training: the step alone, from the trace to the cut model."""
    import torch

    import mirabelle
    from mirabelle import prune
    from mirabelle.inspection.measure import multiply_accumulates
    from mirabelle.run.run import Run
    from mirabelle.sources.zoo import resnet56

    torch.manual_seed(0)
    if case == "minilm hessian":
        model, (inputs, labels) = encoder(minilm).eval(), sentences(1024)
        task = mirabelle.Task(train=(inputs, labels), test=(inputs, labels))
    else:
        model = resnet56().eval()
        x, y = torch.randn(1024, 3, 32, 32), torch.randint(0, 10, (1024,))
        task = mirabelle.Task(train=(x, y), test=(x, y))
    scored = {"score": "Hessian"} if case.endswith("hessian") else {}
    with tempfile.TemporaryDirectory() as folder:
        smaller = prune.Channels(macs="50%", **scored)(model, task, Run(folder))
    ratio = multiply_accumulates(smaller, task.example()) / multiply_accumulates(model, task.example())
    return {"macs_ratio": ratio}


CASES: dict[str, Callable[[str, str], dict[str, float]]] = {
    "dynamic": dynamic, "pack": pack, "cut": cut, "export_minilm": export_minilm
}  # fmt: skip
ROWS = {
    ("dynamic", "1"): "≤ 6 s", ("dynamic", "10"): "≤ 12 s", ("dynamic", "102"): "≤ 60 s, ≤ 3 × file + 0.6 GB",
    ("pack", "int8"): "≥ 40 MB/s", ("pack", "fp32"): "≥ 40 MB/s",
    ("cut", "resnet56 magnitude"): "≤ 5 s", ("cut", "resnet56 hessian"): "≤ 12 s", ("cut", "minilm hessian"): "≤ 60 s",
}  # fmt: skip

BEFORE = {
    ("dynamic", "1"): "8.4 s", ("dynamic", "10"): "17.4 s", ("dynamic", "102"): "172 s, 4.2 GB",
    ("pack", "int8"): "6.5 MB/s", ("pack", "fp32"): "8.3 MB/s",
    ("cut", "resnet56 magnitude"): "20 s", ("cut", "resnet56 hessian"): "39 s", ("cut", "minilm hessian"): "> 285 s",
}  # fmt: skip


def in_a_process(case: str, which: str, minilm: str) -> dict[str, float]:
    """The numbers of one row, measured in a process of its own with one thread."""
    command = [sys.executable, __file__, "--minilm", minilm, "--case", case, which]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minilm", default="")
    parser.add_argument("--only", nargs="*", default=["dynamic", "pack", "cut"])
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        begin = time.perf_counter()
        numbers = CASES[options.case[0]](options.case[1], options.minilm)
        print(json.dumps({"cpu_seconds": spent(), "seconds": time.perf_counter() - begin, "peak_mb": peak(), **numbers}))
        return
    before = RESULTS / "speed_of_runs.json"
    found: dict[str, dict[str, float]] = json.loads(before.read_text())["rows"] if before.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EXPORTED"] = folder
        for (case, which), asked in ROWS.items():
            if case not in options.only or ("minilm" in which or case == "pack") > bool(options.minilm):
                continue
            if case == "pack":
                in_a_process("export_minilm", which, options.minilm)
            found[f"{case} {which}"] = numbers = in_a_process(case, which, options.minilm)
            numbers["load"] = os.getloadavg()[0]
            print(case, which, asked, numbers, flush=True)
            write("speed_of_runs", {"rows": found}, page_of(found))


def page_of(found: dict[str, dict[str, float]]) -> str:
    lines = []
    for (case, which), asked in ROWS.items():
        if numbers := found.get(f"{case} {which}"):
            rate = f"{numbers['mb_per_second']:.0f} MB/s" if "mb_per_second" in numbers else f"{numbers['cpu_seconds']:.1f} s"
            memory = f"{numbers['peak_mb']:.0f} MB" if "over_mb" not in numbers else f"{numbers['over_mb']:.0f} MB"
            file = f"{numbers['file_mb']:.0f} MB" if "file_mb" in numbers else ""
            earlier = BEFORE[case, which]
            lines.append(f"| {case}, {which} | {asked} | {earlier} | **{rate}** | {memory} | {file} | {numbers['load']:.1f} |")
    intro = (
        "CPU seconds and peak memory of whole processes, imports included, one thread; of `pack`, the call alone. On two shared "
        "cores: the last column is the load of the machine at the end of the row, and CPU seconds grow with it. "
        "Before: at commit 315f60d under a load of 2; of `cut`, on another machine. A run does more since then: it times each step "
        "beside the model before it, and both models in every runtime that is installed."
    )
    return "\n".join(
        ["# What is not training", "", intro, "",
         "| | asked | before | measured | peak memory | fp32 or packed file | load |", "|---|--:|--:|--:|--:|--:|--:|", *lines]
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
