"""Layers and outputs that a pruned model no longer tells apart: they are the same for every sample, and were not before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.model.device import at_work, home
from mirabelle.model.left_alone import few
from mirabelle.model.watch import LayerRun, watch

if TYPE_CHECKING:
    from mirabelle.run.run import Run
    from mirabelle.task.samples import Samples, Stream

_SAMPLES = 64  # that are compared
_SHOWN = 3  # outputs that are named
_SAME = 1e-6  # a difference of this share of the largest value is rounding


def told_of_collapse(run: Run, dense: nn.Module, pruned: nn.Module, data: Samples | Stream) -> nn.Module:
    """Record a warning if layers or outputs of a pruned model are the same for every sample; returns the model.

    Args:
        run: records the event.
        dense: the model before pruning.
        pruned: the model after pruning, and after training if there is one.
        data: training data, from which samples are drawn with the seed of the run.
    """
    for text in collapsed(dense, pruned, CalibrationSamples.drawn(data, _SAMPLES, run.seed)):
        run.event("warning", text=text)
    return pruned


def collapsed(dense: nn.Module, pruned: nn.Module, samples: CalibrationSamples) -> list[str]:
    """Sentences on layers, and single outputs, of a pruned model that are the same for all samples, unlike before pruning.

    Example:
        >>> dense, pruned = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> _ = pruned[0].weight.data.zero_()
        >>> collapsed(dense, pruned, CalibrationSamples.of([torch.randn(8, 2)]))[0].partition(":")[0]
        'the outputs of 0, 1, the model are the same for all of 8 samples, and were not before'
    """
    after = _spreads(pruned, samples)
    if not any(spread.silent.any() for spread in after.values()):
        return []
    before = _spreads(dense, samples)
    remedy = "prune less there, by `exclude`, or raise `floor` in a global ranking"
    lost = [name for name, spread in after.items() if spread.silent.all() and name in before and not before[name].silent.all()]
    alike = f"the same for all of {len(samples)} samples, and"
    if lost:
        return [f"the outputs of {few([name or 'the model' for name in lost])} are {alike} were not before: {remedy}"]
    outputs, whole = after.get(""), before.get("")
    if outputs is None or whole is None or outputs.silent.shape != whole.silent.shape:
        return []
    gone = (outputs.silent & ~whole.silent).nonzero().flatten().tolist()
    return [f"output {place} is {alike} was not before: {remedy}" for place in gone[:_SHOWN]]


@dataclass
class _Spread:
    """How much each number that a layer returns for a sample differs between samples."""

    first: Tensor | None = None
    difference: Tensor = field(default_factory=lambda: torch.zeros(1))
    largest: Tensor = field(default_factory=lambda: torch.zeros(1))

    @property
    def silent(self) -> Tensor:
        return self.difference <= _SAME * self.largest

    def take(self, given: Tensor) -> None:
        given = given.detach()
        if not given.ndim or not given.numel():
            return
        given = (
            (given if given.is_floating_point() else given.abs().float()).flatten(1)
            if given.ndim > 1
            else given[:, None].float()
        )
        if self.first is None:
            self.first = given[:1]
            self.difference, self.largest = self.difference.to(given.device), self.largest.to(given.device)
        if given.shape[1] != self.first.shape[1]:
            self.difference = self.difference + torch.inf  # of another length for every sample
            return
        self.difference = torch.maximum(self.difference, (given - self.first).abs().amax(0).nan_to_num(torch.inf))
        self.largest = torch.maximum(self.largest, given.abs().max())


def _spreads(model: nn.Module, samples: CalibrationSamples) -> dict[str, _Spread]:
    """The differences between samples, by the name of each layer with parameters of its own; "" are the outputs."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if not name or next(module.parameters(recurse=False), None) is not None
    }
    found: dict[str, _Spread] = {}

    def take(run: LayerRun) -> None:
        if run.output is not None:
            found.setdefault(run.name, _Spread()).take(run.output)

    with at_work(model):
        watch(model, samples.for_model(model), layers, after=take)
    return {name: _Spread(*home((spread.first, spread.difference, spread.largest))) for name, spread in found.items()}
