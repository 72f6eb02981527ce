"""What checkpoints cost: trainings that write them as they always do, against the same trainings with checkpoints switched off.

LeNet-5 at batch 128 on data of MNIST's shape (drawn at random: only time is measured), AdamW, the best weights kept, so that a
checkpoint holds four times the model. Sides alternate, the first pair is a warm-up; execution is decided beforehand.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conditions import write
from mirabelle import Run, Task, Training
from mirabelle.sources.zoo import lenet5
from mirabelle.training import Execution, fit
from mirabelle.training.checkpoint import Checkpoint
from training_loop import BATCH, PAIRS, STEPS, ratios, task

EPOCHS, ASKED = 3, 1.02


@contextmanager
def switched_off() -> Iterator[None]:
    """Nothing is due and nothing is written."""
    due, written = Checkpoint.due, Checkpoint.write
    Checkpoint.due, Checkpoint.write = property(lambda _: False), lambda *_: None
    try:
        yield
    finally:
        Checkpoint.due, Checkpoint.write = due, written


@contextmanager
def counted(taken: list[tuple[float, int]]) -> Iterator[None]:
    """Seconds and bytes of every checkpoint that is written."""
    written = Checkpoint.write

    def write_and_tell(self: Checkpoint, *arguments: Any) -> None:
        begin = time.perf_counter()
        written(self, *arguments)
        taken.append((time.perf_counter() - begin, self.path.stat().st_size))

    Checkpoint.write = write_and_tell
    try:
        yield
    finally:
        Checkpoint.write = written


def compared(execution: Execution, data: Task, folder: Path, epochs: int, pairs: int) -> dict[str, Any]:
    """With checkpoints over without, in one execution."""
    model, training = lenet5(), Training(epochs=epochs, batch_size=BATCH, lr=1e-3)
    taken: list[tuple[float, int]] = []
    trainings = 0

    def trained() -> None:
        run = Run(folder / str(execution))
        (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        run.journal.decisions["execution"] = str(execution)
        fit(copy.deepcopy(model), data, training, run)

    def without() -> None:
        with switched_off():
            trained()

    def usual() -> None:
        nonlocal trainings
        trainings += 1
        with counted(taken):
            trained()

    found = ratios(without, usual, pairs)
    return {
        "execution": str(execution), "asked": ASKED, "ratios": found, "checkpoints_a_training": len(taken) / trainings,
        "checkpoint_seconds": statistics.median(seconds for seconds, _ in taken) if taken else None,
        "checkpoint_bytes": taken[-1][1] if taken else None,
    }  # fmt: skip


def row(found: dict[str, Any]) -> str:
    seconds, size = found["checkpoint_seconds"], found["checkpoint_bytes"]
    each = f"{1000 * seconds:.0f} ms, {size / 1e6:.1f} MB" if seconds is not None else "–"
    low, high = min(found["ratios"]), max(found["ratios"])
    return (
        f"| {found['execution']} | ≤ {ASKED:.2f} | **{statistics.median(found['ratios']):.3f}** | {low:.3f} – {high:.3f} | "
        f"{found['checkpoints_a_training']:.1f} | {each} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"with fewer than {PAIRS} nothing is kept")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    data, folder = task(), Path(tempfile.mkdtemp())
    executions = (Execution("float32", channels_last=False), Execution("bfloat16", channels_last=True))
    rows = [compared(execution, data, folder, options.epochs, options.pairs) for execution in executions]
    shutil.rmtree(folder)
    page = "\n".join(
        [
            "# What checkpoints cost", "",
            f"LeNet-5, batch {BATCH}, trainings of {options.epochs} epochs of {STEPS} steps; wall time with checkpoints over wall time without, "
            f"{options.pairs} pairs, alternating.", "",
            "| execution | asked | median | least – most | checkpoints a training | one checkpoint |", "|---|--:|--:|--:|--:|--:|",
            *map(row, rows), "",
        ]
    )  # fmt: skip
    if options.pairs < PAIRS:
        print(page)
    else:
        write("checkpointing", {"epochs": options.epochs, "rows": rows}, page)


if __name__ == "__main__":
    main()
