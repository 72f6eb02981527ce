"""Hinton's experiment on MNIST: a large net teaches a small one, and a small one that never saw a 3.

Two hidden layers of 1,200 units with dropout and jittered images are the teacher; two of 800 without any regularization the
student, alone and under soft targets at T = 20; a third student learns from the teacher on a transfer set without a single 3, and
gets a bias for that class afterwards, chosen on the validation images. Needs MIRABELLE_DATA (or --data-dir). Settings were chosen on
the validation split; the test images are judged once.

Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 3.
"""

from __future__ import annotations

import argparse
import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditions import ROOT, write
from mirabelle import Augmentation, Run, Task, Training
from mirabelle.batch import Samples
from mirabelle.objectives import SoftTargets, TaskLoss
from mirabelle.sources.mnist import mnist
from mirabelle.training import evaluate, fit

THREE = 3
SETTINGS = partial(Training, batch_size=128, optimizer="adamw", lr=1e-3, keep="best")


def net(width: int, dropout: float = 0.0) -> nn.Sequential:
    """784–width–width–10 with ReLU; dropout at the input is lighter."""
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(dropout * 0.4), nn.Linear(784, width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10),
    )  # fmt: skip


def drawn(seed: int, width: int, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return net(width, dropout)


def errors(model: nn.Module, task: Task) -> int:
    return round((1 - float(evaluate(model, task.test, task).mean())) * len(task.test))


def without(task: Task, digit: int) -> Task:
    """The training images of all other digits; validation and test stay."""
    kept = task.train.at((task.train.targets != digit).nonzero().flatten())
    other = copy.copy(task)
    other.train = Samples(kept.inputs, kept.targets)
    return other


def with_bias(model: nn.Sequential, task: Task, digit: int) -> tuple[nn.Sequential, float]:
    """A copy with the bias of one class raised to what is best on the validation images, and by how much."""
    found = []
    for raised in torch.arange(0.0, 10.1, 0.5).tolist():
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[-1].bias[digit] += raised
        found.append((float(evaluate(other, task.validation, task).mean()), -raised, other))
    _, raised, best = max(found, key=lambda item: item[:2])
    return best, -raised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder that holds mnist with --data-dir or MIRABELLE_DATA")
    task, run = mnist(options.data_dir), Run(ROOT / "runs" / f"distill-mnist-{options.seed}", seed=options.seed)
    jittered = task.with_augment(Augmentation(crop=2))
    teacher = fit(
        drawn(options.seed, 1200, 0.5), jittered, SETTINGS(epochs=2 * options.epochs, weight_decay=0.05), run.within("teacher")
    )
    soft = SETTINGS(epochs=options.epochs, objective=1.0 * SoftTargets(temperature=20.0))
    alone = fit(
        drawn(options.seed, 800), task, SETTINGS(epochs=options.epochs, objective=1.0 * TaskLoss()), run.within("alone")
    )
    taught = fit(drawn(options.seed, 800), task.with_teacher(teacher), soft, run.within("taught"))
    blind_task = without(task, THREE).with_teacher(teacher)
    blind = fit(drawn(options.seed, 800), blind_task, soft, run.within("blind"))
    mended, raised = with_bias(blind, task, THREE)
    found: dict[str, Any] = {
        "teacher": errors(teacher, task), "alone": errors(alone, task), "distilled": errors(taught, task),
        "never saw a 3": errors(blind, task), "never saw a 3, bias raised": errors(mended, task), "bias raised by": raised,
        "epochs": options.epochs, "seed": options.seed,
    }  # fmt: skip
    found["gap closed"] = (found["alone"] - found["distilled"]) / max(1, found["alone"] - found["teacher"])
    page = "\n".join(
        [
            "# Hinton's experiment on MNIST", "",
            "Errors on the 10,000 test images, one seed; teacher 784–1200–1200–10 with dropout and jittered images, students",
            "784–800–800–10 without any regularization, the same images without jitter, soft targets at T = 20.", "",
            "| | errors | Hinton, Vinyals, Dean 2015 |", "|---|--:|--:|",
            f"| teacher | {found['teacher']} | 67 |", f"| student alone | {found['alone']} | 146 |",
            f"| student, distilled | **{found['distilled']}** ({found['gap closed']:.0%} of the gap) | 74 (91 %) |",
            f"| student that never saw a 3 | {found['never saw a 3']} | 206 |",
            f"| the same, its bias of the 3 raised by {raised:g} | {found['never saw a 3, bias raised']} | 109 |", "",
        ]
    )  # fmt: skip
    write("distill_mnist", found, page)


if __name__ == "__main__":
    main()
