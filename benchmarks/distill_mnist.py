"""Hinton's experiment on MNIST: a large net teaches a small one, and a small one that never saw a 3.

Two hidden layers of 1,200 units with dropout, bounded weights and jittered images are the teacher; two of 800 without any
regularization the student, alone and under soft targets at T = 20 beside the labels, on the same images without jitter, three seeds
of each. One more student learns from the teacher on a transfer set without a single 3, and gets a bias for that class afterwards,
chosen on the validation images. Needs MIRABELLE_DATA (or --data-dir). Settings were chosen on the validation split; the test images
are judged once.

Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 3; the bound on weights is that of Srivastava et al. 2014, section 5.1.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditions import ROOT, write
from mirabelle import Augmentation, Run, Task, Training
from mirabelle.objectives import SoftTargets, TaskLoss
from mirabelle.sources.datasets.mnist import mnist
from mirabelle.sources.datasets.settings import BuiltInImages
from mirabelle.task.samples import Samples
from mirabelle.training import evaluate, fit

THREE = 3
LARGEST_NORM = 1.0
SETTINGS = partial(Training, batch_size=512, optimizer="adamw", lr=2e-3, warmup=0.05, keep="best")
SOFT = SoftTargets(temperature=20.0)


class Bounded(nn.Linear):
    """Linear, the incoming weights of each unit kept at a Euclidean norm of at most 1 while they learn."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(self.weight.renorm(2, 0, LARGEST_NORM))
        return super().forward(inputs)


def large() -> nn.Sequential:
    """784–1200–1200–10 with ReLU, bounded weights, and dropout, lighter at the input."""
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), Bounded(784, 1200), nn.ReLU(), nn.Dropout(0.5),
        Bounded(1200, 1200), nn.ReLU(), nn.Dropout(0.5), Bounded(1200, 10),
    )  # fmt: skip


def small() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU(), nn.Linear(800, 10))


def drawn(net: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return net()


def errors(model: nn.Module, task: Task) -> int:
    return round((1 - float(evaluate(model, task.test, task).mean())) * len(task.test))


def without(task: Task, digit: int) -> Task:
    """The training images of all other digits; validation and test stay."""
    kept = task.train.at((task.train.targets != digit).nonzero().flatten())
    return task.replace(train=Samples(kept.inputs, kept.targets))


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
    parser.add_argument("--epochs", type=int, default=80, help="of the students; the teacher learns half as long again")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder that holds mnist with --data-dir or MIRABELLE_DATA")
    task = mnist(options.data_dir, BuiltInImages(mean=(0.0,), deviation=(0.3081,)))  # zero is black, which jitter moves in
    run = Run(ROOT / "runs" / "distill-mnist", seed=0)
    teacher = fit(
        drawn(large, 0),
        task.with_augment(Augmentation(crop=2)),
        SETTINGS(epochs=options.epochs * 3 // 2, objective=1.0 * TaskLoss()),
        run.within("teacher"),
    )
    guided = task.with_teacher(teacher)

    def student(seed: int, samples: Task, training: Training, name: str) -> nn.Sequential:
        return fit(drawn(small, seed), samples, training, Run(run.folder / f"{name}-{seed}", seed=seed))

    by_labels = SETTINGS(epochs=options.epochs // 2, objective=1.0 * TaskLoss(), batch_size=128, lr=1e-3)
    by_both = SETTINGS(epochs=options.epochs, objective=0.5 * SOFT + 0.5 * TaskLoss())
    by_teacher = SETTINGS(epochs=options.epochs, objective=1.0 * SOFT)
    seeds = range(options.seeds)
    alone = [errors(student(seed, task, by_labels, "alone"), task) for seed in seeds]
    taught = [errors(student(seed, guided, by_both, "taught"), task) for seed in seeds]
    blind = student(0, without(task, THREE).with_teacher(teacher), by_teacher, "blind")
    mended, raised = with_bias(blind, task, THREE)
    found: dict[str, Any] = {
        "teacher": errors(teacher, task), "alone": alone, "distilled": taught,
        "never saw a 3": errors(blind, task), "never saw a 3, bias raised": errors(mended, task), "bias raised by": raised,
        "epochs": options.epochs,
    }  # fmt: skip
    mean_alone, mean_taught = statistics.mean(alone), statistics.mean(taught)
    found["gap closed"] = (mean_alone - mean_taught) / max(1, mean_alone - found["teacher"])
    page = "\n".join(
        [
            "# Hinton's experiment on MNIST", "",
            "Errors on the 10,000 test images; teacher 784–1200–1200–10 with dropout, bounded weights and jittered images, students",
            "784–800–800–10 without any regularization, the same images without jitter, soft targets at T = 20 and labels, half each",
            f"(soft targets alone where no 3 is seen). Students: means of {options.seeds} seeds; the one alone learns in batches of 128, the",
            "others of 512.", "",
            "| | errors | Hinton, Vinyals, Dean 2015 |", "|---|--:|--:|",
            f"| teacher | {found['teacher']} | 67 |", f"| student alone | {mean_alone:.1f} ({listed(alone)}) | 146 |",
            f"| student, distilled | **{mean_taught:.1f}** ({listed(taught)}): {found['gap closed']:.0%} of the gap | 74: 91 % |",
            f"| student that never saw a 3 | {found['never saw a 3']} | 206 |",
            f"| the same, its bias of the 3 raised by {raised:g} | {found['never saw a 3, bias raised']} | 109 |", "",
        ]
    )  # fmt: skip
    write("distill_mnist", found, page)


def listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


if __name__ == "__main__":
    main()
