"""How much a change of a model changes its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.device import at_work
from mirabelle.model.edits import put
from mirabelle.task.batch import Inputs, call, tensors_of
from mirabelle.task.samples import Samples, Stream
from mirabelle.training.by_length import batches_by_length

_TEXTS = 16  # of similar lengths in a batch
_CONSTANT = 1e-10  # of the power of outputs: a spread up to this is that of rounding


class OutputChange:
    """The change of outputs against those of a model: Σ (y − ŷ)² / Σ (y − ȳ)², with ȳ the mean over the samples.

    Of several outputs it is the mean of their changes, so that none counts more for its scale. Labels are not needed.

    Args:
        model: in eval mode.
        batches: inputs.
        whole: the same inputs with the shape that programs were recorded with, if the batches have another.

    Raises:
        UserError: E121 if outputs are not finite, or none is in floating point.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Inputs], whole: Iterable[Inputs] | None = None) -> None:
        self._batches, self._whole = batches, batches if whole is None else whole
        self._outputs = _outputs(model, batches)
        self._spreads = [_spread(y) for y in self._outputs]
        if not self._outputs or not np.isfinite(self._spreads).all():
            what = "not finite" if self._outputs else "not in floating point"
            message = f"the outputs of the model are {what} on the calibration data"
            raise UserError("E121", message, "mend the model or the data")

    @classmethod
    def drawn(cls, model: nn.Module, data: Samples | Stream, count: int, seed: int) -> OutputChange:
        """The change on `data.drawn(count, seed)`, without the padding that texts of a batch share where it has no influence.

        Raises:
            UserError: as the class.
        """
        found = data.drawn(count, seed)
        texts = batches_by_length(found, _TEXTS, model)
        if texts is None:
            return cls(model, CalibrationSamples.of([found.inputs]).for_model(model))
        whole = [found.at(text.index).inputs for text in texts if text.index is not None]
        return cls(model, [text.inputs for text in texts], whole)

    def of(self, changed: nn.Module) -> float:
        """The change of the outputs of another model, for the same inputs; infinite if they are not finite."""
        batches = self._whole if architecture_of(changed).rewritten else self._batches
        pairs = zip(self._outputs, _outputs(changed, batches), self._spreads, strict=True)
        change = float(np.mean([float((y - z).square().sum()) / (spread or 1.0) for y, z, spread in pairs]))
        return change if np.isfinite(change) else float("inf")


def _spread(outputs: Tensor) -> float:
    """Σ (y − ȳ)², or Σ y² if the outputs are the same for all samples but for rounding."""
    spread, power = float((outputs - outputs.mean(0)).square().sum()), float(outputs.square().sum())
    return spread if spread > _CONSTANT * power else power


@contextmanager
def standing_in(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """A context in which modules stand in the places of others, without a record; gives the model to call."""
    names = {
        name: [other for other, same in model.named_modules(remove_duplicate=False) if same is model.get_submodule(name)]
        for name in modules
    }
    before = {name: model.get_submodule(name) for name in modules}
    changed = model
    try:
        for name, module in modules.items():
            changed = put(changed, names[name], module)
        yield changed
    finally:
        for name, module in before.items():
            if name:
                put(model, names[name], module)


@contextmanager
def having(tensor: Tensor, values: Tensor) -> Iterator[None]:
    """A context in which a tensor of a model has other values."""
    before = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(values)
        try:
            yield
        finally:
            tensor.copy_(before)


@torch.no_grad()
def _outputs(model: nn.Module, batches: Iterable[Inputs]) -> list[Tensor]:
    """Each floating-point output for all samples, in float32."""
    with at_work(model):
        parts = [[y.float().cpu() for y in tensors_of(call(model, inputs)) if y.is_floating_point()] for inputs in batches]
    return [torch.cat(same) for same in zip(*parts, strict=True)]
