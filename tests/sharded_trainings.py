"""Trainings with divided weights, for `test_sharded_trainings`: run by each of two processes, the first writes what they give.

RANK=0 WORLD_SIZE=2 … python sharded_trainings.py OUT NAME …
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from in_processes import Images, task_of_digits
from mirabelle import Generation, Run, Task, Training, distill, prune, quantize
from mirabelle.errors import UserError
from mirabelle.job.processes_of_job import led_by_first
from mirabelle.model.state import tensors_of_module
from mirabelle.objectives import Hint, TaskLoss
from mirabelle.objectives.bound_objective import BoundFunction
from mirabelle.objectives.objective import Term
from mirabelle.run.launch import is_first
from mirabelle.run.process_group import in_all_processes
from mirabelle.step import Step
from mirabelle.task.batch import Batch
from mirabelle.task.metric import Metric
from mirabelle.training import fit, loop
from mirabelle.training.checkpoint import CHECKPOINT, Checkpoint
from mirabelle.training.gradient_step import GradientStep
from mirabelle.training.shards import own_part

TRAIN = Training(epochs=2, batch_size=50, precision="float32", optimizer="sgd", lr=0.05, shard=True)
ADAM = replace(TRAIN, optimizer="adamw", lr=3e-3, weight_decay=0.1)
WIDTH = 10
RARE = 0.15  # 5 samples of 300 are above it at the beginning
INTERRUPTED_AFTER = 8  # steps of 12
HELD: list[float] = []  # shares of the trained numbers that this process has, one for each training


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.ones(1))  # one process has nothing of it

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.two(torch.relu(self.one(x)))


class Iterated(nn.Sequential):
    """Layers that the model calls one by one."""


class Expert(nn.Module):
    """A layer that only some samples use, which may be none of those of a process."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.rare = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rare = (x[:, 0] > RARE).nonzero()[:, 0]
        y = self.usual(x)
        return y.index_add(0, rare, self.rare(x[rare])) if len(rare) else y


class Blocks(nn.Module):
    """Blocks of several kinds, a parameter without dimensions, one that nothing uses, and one of a single number."""

    def __init__(self, make: Callable[[], nn.Module] = Block, *, tied: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.blocks = nn.ModuleList(make() for _ in range(3))
        self.scale, self.unused = nn.Parameter(torch.tensor(1.5)), nn.Linear(3, 3)
        if tied:
            self.blocks[2].one.weight = self.blocks[0].one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            if isinstance(block, Iterated):
                for layer in block:
                    x = layer(x)
            else:
                x = block(x)
        return self.head(x) * self.scale


class TooLarge(Blocks):
    """Blocks for whose training memory does not suffice."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 2:
            raise RuntimeError("not enough memory: you tried to allocate 12 bytes")
        return super().forward(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.reshape(len(x), 8, 8)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(8, WIDTH, num_layers=2, batch_first=True), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x.reshape(len(x), 8, 8))[0][:, -1])


class Normalized(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Sequential(nn.Conv2d(n, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()) for n in (1, 6)]
        super().__init__(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))


class Successor(nn.Module):
    """Writes symbols one after the other, each from the one before it and the one in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.before, self.scores = nn.Embedding(7, WIDTH), nn.Embedding(7, WIDTH), nn.Linear(WIDTH, 7)

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        return self.scores(torch.tanh(self.source(source) + self.before(written)))


class Size(Term):
    """A term of a user that reads weights, and does not say so."""

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        del task, example
        return BoundFunction(lambda _: model.get_submodule("head").weight.square().sum())


HINT = 0.1 * Hint(layers=("blocks.1",), teacher_layers=("hidden",))
INNER = 1.0 * Hint(layers=("blocks.1.one",), teacher_layers=("hidden",))
FAST: dict[str, tuple[Callable[[], nn.Module], Training]] = {
    "sgd": (Blocks, TRAIN),
    "adamw": (Blocks, ADAM),
    "clip": (Blocks, replace(TRAIN, clip=0.1)),
    "parts": (Blocks, replace(TRAIN, micro_batch=9)),
    "uneven parts": (Blocks, replace(TRAIN, batch_size=61, micro_batch=30)),
    "single samples": (Blocks, replace(TRAIN, steps=2, epochs=None, batch_size=13, micro_batch=1)),
    "projector": (Blocks, replace(ADAM, objective=1.0 * TaskLoss() + HINT)),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Training]] = {
    "recompute": (Blocks, replace(TRAIN, recompute=True)),
    "bfloat16": (Blocks, replace(TRAIN, precision="bfloat16", recompute=True)),
    "relabelled": (Blocks, replace(TRAIN, targets="teacher")),
    "no outputs": (Blocks, replace(ADAM, objective=INNER, keep="last")),
    "outputs of a block": (Blocks, replace(ADAM, objective=HINT, keep="last")),
    "unlabelled": (Blocks, replace(ADAM, objective=1.0 * TaskLoss() + HINT)),
    "tied": (lambda: Blocks(tied=True), ADAM),
    "experts": (lambda: Blocks(Expert), ADAM),
    "iterated": (lambda: Blocks(lambda: Iterated(nn.Linear(WIDTH, WIDTH), nn.Tanh())), ADAM),
    "attention": (Attention, TRAIN),
    "written": (Successor, replace(ADAM, epochs=4, lr=0.02)),
    "recurrent": (Recurrent, ADAM),
    "normalized": (Normalized, replace(TRAIN, sync_batch_norm=True)),
}
FAILING: dict[str, tuple[Callable[[], nn.Module], Training]] = {
    "reads weights": (Blocks, replace(TRAIN, objective=1.0 * TaskLoss() + 0.1 * Size())),
    "diverges": (Blocks, replace(TRAIN, lr=1e30)),
    "too large": (TooLarge, TRAIN),
}
STEPS: dict[str, Step] = {
    "pruned": prune.Weights(sparsity=0.5, train=ADAM),
    "rounds": prune.Weights(sparsity=0.5, rounds=2, train=TRAIN),
    "channels": prune.Channels(sparsity=0.5, train=TRAIN),
    "student": distill.Student(width=0.5, train=TRAIN),
    "aware": quantize.Aware(samples=50, train=TRAIN),
    "codebook": quantize.Codebook(bits=4, train=TRAIN),
}
INTERRUPTED = {"interrupted": True, "left": False, "begun": True}  # name -> whether these processes end it


def unlabelled(task: Task) -> Task:
    """Only few samples have labels: none of those that a process takes of many batches."""
    targets = torch.where(torch.arange(len(task.train)) % 37 == 0, task.train.targets, -100)
    pair = task.validation.inputs, task.validation.targets
    return Task(train=(task.train.inputs, targets), validation=pair, test=pair)


def right(sequences: Tensor, targets: Tensor) -> Tensor:
    return (sequences == targets).float().mean(1)


def written() -> Task:
    """Sequences of the successors of symbols; how often a model is called depends on what it writes."""
    source = torch.randint(1, 6, (230, 6), generator=torch.Generator().manual_seed(0))
    data = (source, torch.cat([torch.zeros(230, 1, dtype=torch.long), source[:, :-1] + 1], 1)), source + 1
    few = (source[:70], data[0][1][:70]), data[1][:70]
    metric, generation = Metric("right", right, of_sequences=True), Generation(begin=0, end=6)
    return Task(train=data, validation=few, test=few, loss="token_cross_entropy", metric=metric, generation=generation)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().eval()


def trained(name: str, folder: Path) -> dict[str, Any]:
    """The tensors of a model after a training or a step, or the error that it ends with."""
    task = task_of_digits()
    task = (unlabelled(task) if name == "unlabelled" else task).with_teacher(made(Images))
    task = written() if name == "written" else task
    run = Run(folder / name, seed=7)
    if name in STEPS:
        return tensors_of_module(STEPS[name](made(Blocks if name in ("pruned", "rounds") else Images), task, run))
    if name in FAILING:
        make, training = FAILING[name]
        model = made(make)
        try:
            fit(model, task, training, run)
        except UserError as error:
            return {**tensors_of_module(model), "error": str(error)}
    if name in INTERRUPTED:
        ended = INTERRUPTED[name]
        if name != "begun":
            in_all_processes(interrupted, task, run)
        return tensors_of_module(fit(made(Blocks), task, ADAM, Run(folder / name, seed=7))) if ended else {}
    make, training = {**FAST, **OTHERS}[name]
    return tensors_of_module(fit(made(make), task, training, run))


def interrupted(task: Task, run: Run) -> None:
    """Begin the training "adamw", with a checkpoint after each step; it fails after some of them."""
    step, due, left = GradientStep.__call__, Checkpoint.due, [INTERRUPTED_AFTER]

    def called(*arguments: Any) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise ArithmeticError("interrupted")
        return step(*arguments)

    GradientStep.__call__, Checkpoint.due = called, property(lambda _: True)  # type: ignore[method-assign]
    try:
        fit(made(Blocks), task, ADAM, run)
    except ArithmeticError:
        assert (run.folder / CHECKPOINT).is_file()
    finally:
        GradientStep.__call__, Checkpoint.due = step, due  # type: ignore[method-assign]
    assert left[0] < 0


def all_trained(names: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    return {name: trained(name, folder) for name in names}


def main(out: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    own = loop.optimizer_for

    def noted(parameters: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
        HELD.append(sum(own_part(one).numel() for one in parameters) / sum(one.numel() for one in parameters))
        return own(parameters, training)

    loop.optimizer_for = noted
    found = led_by_first(task_of_digits(), {"names": list(names)}, lambda: all_trained(names, out))
    if is_first():
        torch.save({**found, "held": HELD}, out / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
