"""The contract of a module that replaces a module of the dense model: a quantized layer, a factorized one, a skipped one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from mirabelle.records.families import PACKAGES_OF_STEPS, Family


class Replacement(nn.Module):
    """A module that stands where a dense one was, and says of itself what others need to know.

    A subclass keeps its settings, plain data (numbers, strings, lists), in `settings`; with them and the dense module,
    `from_dense` makes it again, its tensors still to be loaded. What it stores follows from its tensors: counting, writing back
    and inspecting ask the methods below, never for names or classes.

    Args:
        settings: of `from_dense`.

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

    rounds: ClassVar[bool] = False  # whether its results are rounded, so that other runtimes may round some of them otherwise

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.settings: dict[str, Any] = dict(settings or {})

    @classmethod
    def from_dense(cls, dense: nn.Module, **settings: Any) -> Self:
        """The replacement with its tensors still to be loaded.

        Args:
            dense: the module that is replaced.
            settings: as `settings` has them.

        Raises:
            UserError: E140 when the dense module is of a kind that has no such form.
        """
        return cls(dense, **settings)  # type: ignore[arg-type]  # of subclasses

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors whose elements count as parameters, by name; an element is zero where the weight is zero.

        By default parameters, and buffers of whole numbers that are no scalars: codes, but neither scales nor statistics.
        """
        return stored_tensors_of(self)

    def plain_tensors(self) -> dict[str, Tensor]:
        """The tensors of the dense module, under its names, as numbers that give the same results; for other frameworks.

        By default none: the tensors go out under their own names.
        """
        return {}

    @property
    def borrowed_tensors(self) -> Mapping[str, str]:
        """Name among `plain_tensors` -> name in the model of a plain tensor that belongs there; by default none."""
        return {}


def stored_tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """`Replacement.stored_tensors` as it is by default, of any module."""
    found = {name: parameter.detach() for name, parameter in module.named_parameters()}
    codes = {name: buffer for name, buffer in module.named_buffers() if buffer.ndim and not buffer.is_floating_point()}
    return found | codes


def _replaces(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, nn.Module) and hasattr(cls, "from_dense")


REPLACEMENTS = Family("replaced module", PACKAGES_OF_STEPS, _replaces)
