"""What the training loop costs: against the same steps in a bare torch loop, and with a cached teacher against without.

LeNet-5 at batch 128 on data of MNIST's shape (drawn at random: only time is measured). Each side trains one epoch of 200 steps and
evaluates once; sides alternate, the first pair is a warm-up. The measured execution is decided beforehand, and the teacher's cache
filled beforehand; checkpoints are on, as they always are.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from conditions import write
from mirabelle import Run, Task, Training
from mirabelle.objectives import Objective, SoftTargets, TaskLoss
from mirabelle.sources.zoo import lenet5
from mirabelle.training import Execution, evaluate, fit

STEPS, BATCH, PAIRS = 200, 128, 15
TRAINING = Training(epochs=1, batch_size=BATCH, lr=1e-3, lr_schedule="cosine", keep="last")


def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS * BATCH + 1000, 1, 28, 28, generator=generator)
    targets = torch.randint(0, 10, (len(images),), generator=generator)
    held = (images[-1000:], targets[-1000:])
    return Task(train=(images[:-1000], targets[:-1000]), validation=held, test=held)


def bare_epoch(model: nn.Module, data: Task, execution: Execution) -> None:
    """The same steps, written out."""
    model = execution.laid_out(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), TRAINING.lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    for k in range(STEPS):
        index = order[k * BATCH : (k + 1) * BATCH]
        inputs, targets = execution.inputs(data.train.inputs[index]), data.train.targets[index]
        with execution.autocast(torch.device("cpu")):
            outputs = model(inputs)
        loss = F.cross_entropy(outputs.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    evaluate(model, data.validation, data)


def ratios(one: Callable[[], None], other: Callable[[], None], pairs: int = PAIRS) -> list[float]:
    """Seconds of `other` over seconds of `one`, pair by pair, the order within a pair alternating."""
    found = []
    for pair in range(pairs + 1):
        seconds = {}
        for call in (one, other) if pair % 2 else (other, one):
            begin = time.perf_counter()
            call()
            seconds[call] = time.perf_counter() - begin
        found.append(seconds[other] / seconds[one])
    return found[1:]


def main() -> None:
    data, folder = task(), Path(tempfile.mkdtemp())
    rows = []
    for execution in (Execution("float32", channels_last=False), Execution("bfloat16", channels_last=True)):
        rows += compared(execution, data, folder)
    shutil.rmtree(folder)
    page = "\n".join(
        [
            "# What the training loop costs", "",
            f"LeNet-5, batch {BATCH}, epochs of {STEPS} steps and one evaluation of 1,000 samples; {PAIRS} pairs, alternating; ratio of",
            "wall times. The first epoch with a teacher, which fills the cache, is excluded.", "",
            "| | execution | asked | median | least – most |", "|---|---|--:|--:|--:|",
            *(f"| {row['name']} | {row['execution']} | ≤ {row['asked']:.2f} | **{statistics.median(row['ratios']):.3f}** "
              f"| {min(row['ratios']):.3f} – {max(row['ratios']):.3f} |" for row in rows),
        ]
    )  # fmt: skip
    write("training_loop", {"rows": rows}, page + "\n")


def compared(execution: Execution, data: Task, folder: Path) -> list[dict[str, Any]]:
    """Our loop against the bare one, and with a cached teacher against without, in one execution."""
    model, teacher = lenet5(), lenet5().eval()
    softened = 0.9 * SoftTargets(temperature=4.0) + 0.1 * TaskLoss()

    def ours(objective: Objective | None = None) -> None:
        run = Run(folder / str(execution))
        (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        run.journal.decisions["execution"] = str(execution)
        taught = data.with_teacher(teacher) if objective else data
        fit(copy.deepcopy(model), taught, TRAINING, run, objective=objective)

    ours(softened)  # fills the cache
    loop = ratios(lambda: bare_epoch(copy.deepcopy(model), data, execution), ours)
    cached = ratios(ours, lambda: ours(softened))
    return [
        {"name": "loop / bare loop", "execution": str(execution), "asked": 1.03, "ratios": loop},
        {"name": "epoch with cached teacher / plain epoch", "execution": str(execution), "asked": 1.05, "ratios": cached},
    ]


if __name__ == "__main__":
    main()
