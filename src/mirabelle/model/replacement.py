"""The contract of modules that replace modules of the dense model, such as quantized, factorized and skipped layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from mirabelle.records.families import PACKAGES_OF_STEPS, Family

_READ = ("weight", "bias")  # tensors of a layer that models read themselves


class Replacement(nn.Module):
    """A module that replaces a module of the dense model and describes what it stores.

    A subclass keeps its settings (numbers, strings and lists) in `settings`. When a saved model is loaded, `from_dense` creates
    the replacement again from the dense module and the settings, and then its tensors are loaded. The methods below tell other
    parts of Mirabelle what the module stores, so that they can count its parameters, inspect it and convert it to other
    frameworks without knowing its class. Code of the model that reads `weight` or `bias` gets the plain tensors. Settings of
    the dense module that the replacement lacks, such as `in_features`, are copied to it.

    Args:
        settings: keyword arguments of `from_dense`.

    Example:
        >>> import torch
        >>> class Scaled(Replacement):
        ...     def __init__(self, dense: nn.Module, *, bits: int) -> None:
        ...         super().__init__({"bits": bits})
        ...         self.register_buffer("levels", torch.zeros(dense.weight.shape, dtype=torch.int8))
        ...         self.register_buffer("step", torch.ones(()))
        >>> {name: tensor.numel() for name, tensor in Scaled.from_dense(nn.Linear(3, 2), bits=4).stored_tensors().items()}
        {'levels': 6}
    """

    rounds: ClassVar[bool] = False  # whether the module rounds its results, so that runtimes may differ by one rounding step
    drops: ClassVar[bool] = False  # whether the layer is gone: the module returns its input

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.settings: dict[str, Any] = dict(settings or {})

    @classmethod
    def from_dense(cls, dense: nn.Module, **settings: Any) -> Self:
        """Create the replacement of a dense module. Its tensors are loaded afterwards.

        Args:
            dense: the module to replace.
            settings: the saved `settings`.

        Raises:
            UserError: E140 if a module of this class cannot be replaced.
        """
        return cls(dense, **settings)  # type: ignore[arg-type]  # of subclasses

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with uncounted():
            return super().__call__(*args, **kwargs)

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors whose elements count as parameters, by name. Zero elements must correspond to zero weights.

        By default all parameters, and all integer buffers that are not scalars: quantized weights, but not scales and running
        statistics.
        """
        return stored_tensors_of(self)

    def plain_tensors(self) -> dict[str, Tensor]:
        """The tensors of an equivalent dense module, by its names, for other frameworks; quantized weights are dequantized.

        By default empty: the tensors are exported under their own names.
        """
        return {}

    def __getattr__(self, name: str) -> Any:
        """The plain weight or bias, for code that reads it from the layer (`x @ table.weight.T`, `layer.weight.dtype`)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _READ and vars(self).get("in_place") and "weight" in (plain := self.plain_tensors()):
                return plain.get(name)
            raise

    @property
    def borrowed_tensors(self) -> Mapping[str, str]:
        """Name of a plain tensor -> name in the model of a tensor outside this module that it shares; by default empty."""
        return {}


_other = threading.local()


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """A context for code that is not the model's own, such as a replacement or an observer; see `model.call_results`."""
    _other.depth = getattr(_other, "depth", 0) + 1
    try:
        yield
    finally:
        _other.depth -= 1


def is_uncounted() -> bool:
    """Whether this thread runs code that is not the model's own."""
    return getattr(_other, "depth", 0) > 0


def stored_tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The default of `Replacement.stored_tensors`, for any module."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    codes = {name: buffer for name, buffer in module.named_buffers() if buffer.ndim and not buffer.is_floating_point()}
    return parameters | codes


def _replaces(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, nn.Module) and hasattr(cls, "from_dense")


REPLACEMENTS = Family("replaced module", ("model", *PACKAGES_OF_STEPS), _replaces)
