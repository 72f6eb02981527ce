"""What becomes of a cut architecture in float32: as a module at three batch sizes and after an optimizer step, saved and loaded
onto a fresh dense one, and as ONNX.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from proof import difference, half_of, tensors_of
from torch import nn
from torch.utils import _pytree as pytree
from zoo import ARCHITECTURES, made
from zoo.weights import randomized

from mirabelle import load, save
from mirabelle.graph.exporter_tables import translations_read_once
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_cut, run_masked
from mirabelle.graph.propagate import propagated
from mirabelle.graph.sizes import resized
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import Program, traced
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import copied
from mirabelle.runtime.export import quiet
from mirabelle.runtime.runtime import default_runtime

NOT_IN_ONNX = {  # whole or cut
    "distances": "torch.onnx knows no cdist",
    "sorted_tokens": "torch.onnx knows no split at counts that depend on data",
    "projected_lstm": "an LSTM in ONNX has no projection",
}
FLOAT32 = 2e-4  # relative; sums of other lengths in another order, through a few layers


@dataclass(frozen=True)
class Shipped:
    """Differences relative to the largest output.

    Args:
        rewritten: why the rewritten program is shipped; empty where the model's own code follows its widths.
        module: between the cut module and the masked program.
        loaded: between the cut module and itself, saved and loaded.
        onnx: between the cut module and its ONNX form; 0 where it can have none.
        batches: between the cut module and the masked program, both with one sample, one more and three more than the example;
            None where the model's code fixes their number.
        step: between the cut module in eval mode and the cut program with the module's tensors, after one optimizer step in
            training mode; None where the dense model cannot be trained either.
    """

    rewritten: str
    module: float
    loaded: float
    onnx: float
    batches: float | None = None
    step: float | None = None

    def faults(self) -> list[str]:
        """What does not hold, in words."""
        parts = {
            "the cut module": self.module,
            "the loaded module": self.loaded,
            "its ONNX form": self.onnx,
            "the cut module on another batch": self.batches or 0.0,
            "the trained module": self.step or 0.0,
        }
        return [f"{name} differs by {worst:.1e}" for name, worst in parts.items() if not worst <= FLOAT32]


class Run(NamedTuple):
    """What is needed to run a program without the removed units."""

    program: Program
    flow: Flow
    kept: Kept


@torch.no_grad()
def shipped(name: str) -> Shipped:
    """An architecture of the zoo, half of every group cut, in each of its forms."""
    model, positional, named = made(name, torch.float32)
    program = traced(model, positional, named)
    flow = propagated(program)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    masked = run_masked(program, flow, kept, pytree.tree_leaves((positional, named)))
    smaller = cut(model, program, flow, kept, (positional, named)).eval()
    outputs = list(tensors_of(smaller(*positional, **named)))
    with tempfile.TemporaryDirectory() as folder:
        save(smaller, folder)
        again = load(lambda: dense(name), folder).eval()
    return Shipped(
        rewritten=architecture_of(smaller).rewritten or "",
        module=difference(outputs, masked),
        loaded=difference(list(tensors_of(again(*positional, **named))), outputs),
        onnx=0.0 if name in NOT_IN_ONNX else difference(onnx_outputs(smaller, positional, named), outputs),
        batches=on_other_batches(smaller, Run(program, flow, kept), (positional, named)),
        step=after_a_step(smaller, model, Run(program, flow, kept), (positional, named)),
    )


def on_other_batches(smaller: nn.Module, run: Run, example: Any) -> float | None:
    """The largest difference from the masked program over the numbers of samples that the program takes.

    Where the masked program itself holds for the batch of its trace alone, as where the batch is merged with an axis of which
    elements are removed, the outputs of the first samples are compared with those of the example.
    """
    worst: list[float] = []
    for size in ({"to": 1}, {"more": 1}, {"more": 3}):
        other = resized(run.program, example, **size)
        if other is None:
            continue
        outputs = None
        try:
            masked = run_masked(run.program, run.flow, run.kept, pytree.tree_leaves(other))
        except (RuntimeError, AssertionError):
            if "to" in size:  # a trace assumes two samples or more
                continue
            masked = run_masked(run.program, run.flow, run.kept, pytree.tree_leaves(example))
            outputs = [
                part[: len(whole)] for part, whole in zip(tensors_of(smaller(*other[0], **other[1])), masked, strict=True)
            ]
        worst.append(difference(outputs or list(tensors_of(smaller(*other[0], **other[1]))), masked))
    return max(worst, default=None)


def after_a_step(smaller: nn.Module, dense: nn.Module, run: Run, example: Any) -> float | None:
    """The difference from the cut program after one step of gradient descent of the module, if the dense one can be trained."""
    try:
        step(copied(dense), example)
    except (RuntimeError, ValueError):
        return None
    step(smaller, example)
    own = dict(smaller.named_parameters(remove_duplicate=False)) | dict(smaller.named_buffers(remove_duplicate=False))
    tensors = {key: own.get(key, tensor) for key, tensor in run.program.tensors.items()}
    expected = run_cut(run.program, run.flow, run.kept, tensors, pytree.tree_leaves(example))
    return difference(list(tensors_of(smaller(*example[0], **example[1]))), expected)


def step(model: nn.Module, example: Any) -> None:
    """One step of gradient descent in training mode, after which the model is in eval mode again."""
    model.train()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        loss = sum(part.square().mean() for part in tensors_of(model(*example[0], **example[1])))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def dense(name: str) -> nn.Module:
    """A fresh module with other weights than `made` gives."""
    return randomized(ARCHITECTURES[name].build(), seed=7).eval()


def onnx_outputs(model: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> list[torch.Tensor]:
    """What ONNX Runtime gives for the exported model, its sizes those of the example."""
    flat, spec = pytree.tree_flatten((positional, named))
    with quiet(), translations_read_once():
        exported = torch.onnx.export(Flat(model, spec), tuple(flat), dynamo=True, opset_version=18, verbose=False)
    assert exported is not None, "the exporter gives a program"
    session = default_runtime().load(exported.model_proto.SerializeToString(), threads=1)
    feed = dict(zip(session.input_names, inputs_read(exported, flat), strict=True))
    return [torch.from_numpy(np.asarray(part)) for part in session.run(feed)]


def inputs_read(exported: Any, flat: Iterable[torch.Tensor]) -> list[np.ndarray]:
    """The arrays of the inputs that the ONNX form still has; one that is never read is left out there."""
    names = {value.name for value in exported.model_proto.graph.input}
    return [part.numpy() for place, part in enumerate(flat) if f"tensors_{place}" in names]


class Flat(nn.Module):
    """A model that takes its tensors by position, as ONNX does."""

    def __init__(self, model: nn.Module, spec: Any) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, *tensors: torch.Tensor) -> Any:
        positional, named = pytree.tree_unflatten(list(tensors), self.spec)
        return self.model(*positional, **named)
