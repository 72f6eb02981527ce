"""An affine function after a network, so that it computes quantities of any size from outputs of about 1."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import Edit, damaged


@dataclass(frozen=True)
class ScaleOutput(Edit):
    """The outputs of the model become output · deviation + mean; names of modules and tensors stay as they are.

    Args:
        mean: is added.
        deviation: is multiplied.
    """

    mean: float
    deviation: float

    def replay(self, model: nn.Module) -> nn.Module:
        model.__class__ = _scaled_class(type(model))
        model.__dict__["_mirabelle_output_scale"] = (self.mean, self.deviation)
        return model

    def to_data(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ScaleOutput:
        values = [data.get(key) for key in ("mean", "deviation")]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise damaged("the scale of the outputs is not two numbers")
        return cls(*map(float, values))  # type: ignore[arg-type]  # checked above


def with_output_scale(model: nn.Module, mean: float, deviation: float) -> nn.Module:
    """Let a model that returns one tensor compute output · deviation + mean from now on, in place, and record the edit.

    Args:
        model: is changed in place. One that another framework's file must hold (it has the method `write_back`) is returned
            as it is, since that file has no place for the function.
        mean: is added to each output.
        deviation: each output is multiplied by it before.

    Example:
        >>> import torch
        >>> model = with_output_scale(nn.Identity(), mean=100.0, deviation=10.0)
        >>> model(torch.tensor([0.5])), type(model).__name__
        (tensor([105.]), 'Identity')
    """
    if hasattr(model, "write_back"):
        return model
    edit = ScaleOutput(mean, deviation)
    record = architecture_of(model).with_edit(edit)
    model = edit.replay(model)
    attach(model, record)
    return model


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}  # class -> the class with scaled outputs


def _scaled_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of a module of class `cls` whose outputs are scaled, with the same names and signature."""
    if cls in _CLASSES:
        return _CLASSES[cls]

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **keywords: Any) -> Tensor:
        mean, deviation = self.__dict__["_mirabelle_output_scale"]
        scaled: Tensor = cls.forward(self, *args, **keywords) * deviation + mean
        return scaled

    names = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    _CLASSES[cls] = type(cls.__name__, (cls,), names)
    return _CLASSES[cls]
