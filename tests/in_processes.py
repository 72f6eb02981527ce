"""Trainings that several processes compute, for `test_processes`: run by each of them, the first writes the weights.

RANK=0 WORLD_SIZE=2 … python in_processes.py OUT NAME …
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mirabelle import Run, Task, Training, distill, prune, quantize, training
from mirabelle.job.processes_of_job import led_by_first
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.objectives import TaskLoss
from mirabelle.objectives.objective import TERMS
from mirabelle.run.launch import is_first
from mirabelle.scores import Taylor
from mirabelle.sources.datasets.digits import digits
from mirabelle.step import Step
from mirabelle.task.augmentation import Augmentation
from mirabelle.training import fit

TRAIN = Training(epochs=1, batch_size=60, precision="float32", optimizer="sgd", lr=0.05)
STEPS: dict[str, Step] = {
    "prune.Weights": prune.Weights(sparsity=0.5, schedule="linear", train=TRAIN),
    "revive": prune.Weights(sparsity=0.5, revive=True, schedule="linear", train=TRAIN),
    "rounds": prune.Weights(sparsity=0.5, rounds=2, rewind="weights", train=TRAIN),
    "prune.Channels": prune.Channels(sparsity=0.5, train=TRAIN),
    "scores": prune.Channels(sparsity=0.5, score=Taylor(), train=TRAIN),
    "distill.Student": distill.Student(width=0.5, train=TRAIN),
    "quantize.Aware": quantize.Aware(samples=50, train=TRAIN),
    "quantize.Codebook": quantize.Codebook(bits=4, train=TRAIN),
    "quantize.EntropyConstrained": quantize.EntropyConstrained(rate=1.0, train=TRAIN),
    "training.Joint": training.Joint(
        steps=(prune.Weights(sparsity=0.5, schedule="cubic"), quantize.Aware(samples=50)), train=TRAIN
    ),
}
OF_OTHER_TASKS = {"CRD", "Rate", "MultiLabel", "Regression", "TokenRelations", "AttentionMaps", "HiddenStates"}
TERM_NAMES = sorted(set(TERMS.known()) - OF_OTHER_TASKS)
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"micro_batch": 16},
    "recompute": {"recompute": True},
    "clip": {"clip": 0.1},
    "uneven": {"batch_size": 61},
    "relabelled": {"targets": "teacher"},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "batch norm": {"sync_batch_norm": True},
    "batch norm of uneven parts": {"sync_batch_norm": True, "batch_size": 61, "micro_batch": 30},
    "augmented": {},
    "weighted": {},
    "stream": {"optimizer": "adamw", "lr": 1e-3},
}


class Images(nn.Module):
    """A small convolutional network."""

    def __init__(self, *, normalized: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.norm = nn.BatchNorm2d(6) if normalized else nn.Identity()
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def task_of_digits() -> Task:
    whole = digits()
    train, rest = whole.train.drawn(300, 0), whole.validation.drawn(120, 0)  # type: ignore[union-attr]
    pair = rest.inputs, rest.targets
    return Task(train=(train.inputs, train.targets), validation=pair, test=pair)


def model_of(name: str, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return Images(normalized=name.startswith("batch norm")).eval()


def trained(name: str, task: Task, folder: Path) -> dict[str, Tensor]:
    """The tensors of a model after a step, or a training with a term or with other settings."""
    run = Run(folder / name, seed=7)
    model, teacher = model_of(name), model_of("", seed=4)
    task = task.with_teacher(teacher)
    if name in STEPS:
        return tensors_of_module(STEPS[name](model, task, run))
    if name in TRAININGS:
        if name == "augmented":
            task = task.replace(augment=Augmentation(crop=1, views=2))
        if name == "stream":  # whose last batch is smaller than the others
            loader = DataLoader(TensorDataset(task.train.inputs, task.train.targets), batch_size=59)
            held = task.validation.inputs, task.validation.targets
            task = Task(train=loader, validation=held, test=held).with_teacher(teacher)
        if name == "weighted":
            task = Task(
                train=(task.train.inputs, task.train.targets), validation=(task.validation.inputs, task.validation.targets),
                test=(task.test.inputs, task.test.targets), loss=nn.CrossEntropyLoss(torch.arange(1.0, 11.0)),
            )  # fmt: skip
        return tensors_of_module(fit(copied(model), task, replace(TRAIN, **TRAININGS[name]), run))
    objective = 1.0 * TaskLoss() + 0.1 * TERMS.member(name)()
    settings = Training(steps=3, batch_size=60, precision="float32", optimizer="sgd", lr=0.01, objective=objective)
    return tensors_of_module(fit(copied(model), task, settings, run))


def all_trained(names: Sequence[str], task: Task, folder: Path) -> dict[str, dict[str, Tensor]]:
    return {name: trained(name, task, folder) for name in names}


def in_processes(arguments: Sequence[str], count: int = 2, **environment: str) -> list[subprocess.Popen[str]]:
    """Start a Python program in several processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **environment}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**known, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip


def main(out: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    task = task_of_digits()
    found = led_by_first(task, {"names": list(names)}, lambda: all_trained(names, task, out / "runs"))
    if is_first():
        torch.save(found, out / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
