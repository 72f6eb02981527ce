"""Shapes and dtypes of the example inputs of a trace, as plain data that is saved with a rewritten program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mirabelle.errors import UserError

_LARGEST = 1 << 16  # limit for the sizes of example inputs read from a file


Example: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class ExampleSignature:
    """Shapes and dtypes of example inputs.

    Args:
        args: (shape, name of the dtype) of each positional argument.
        kwargs: (shape, name of the dtype) of each keyword argument.
    """

    args: tuple[tuple[tuple[int, ...], str], ...]
    kwargs: Mapping[str, tuple[tuple[int, ...], str]]

    @staticmethod
    def of(example: Example) -> ExampleSignature:
        """Describe example inputs.

        Raises:
            UserError: E121 if one of them is not a tensor.
        """
        others = [part for part in (*example[0], *example[1].values()) if not isinstance(part, Tensor)]
        if others:
            message = (
                "the model's code does not work with the new widths, and the program that replaces it takes tensors only; "
                f"got {type(others[0]).__name__}"
            )
            raise UserError("E121", message, "change forward to take single tensors, or use prune.Weights")

        def one(tensor: Tensor) -> tuple[tuple[int, ...], str]:
            return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

        return ExampleSignature(tuple(map(one, example[0])), {name: one(tensor) for name, tensor in example[1].items()})

    @staticmethod
    def from_data(data: Any) -> ExampleSignature:
        """Read the data that `to_data` returns.

        Raises:
            UserError: E141 if they are damaged.
        """
        try:
            args = tuple(_one_from_data(part) for part in data["args"])
            return ExampleSignature(args, {str(name): _one_from_data(part) for name, part in data["kwargs"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "E141", f"architecture.json does not describe the inputs of its program: {error}", "restore it"
            ) from error

    def example(self) -> Example:
        """Inputs of these shapes filled with ones: valid indices for most embedding tables, and masks that mask nothing."""
        args = [torch.ones(shape, dtype=getattr(torch, name)) for shape, name in self.args]
        return tuple(args), {key: torch.ones(shape, dtype=getattr(torch, name)) for key, (shape, name) in self.kwargs.items()}

    def to_data(self) -> dict[str, Any]:
        """The signature as JSON-compatible data."""

        def one(part: tuple[tuple[int, ...], str]) -> dict[str, Any]:
            return {"shape": list(part[0]), "type": part[1]}

        return {"args": [one(part) for part in self.args], "kwargs": {name: one(part) for name, part in self.kwargs.items()}}


def _one_from_data(part: Any) -> tuple[tuple[int, ...], str]:
    shape, name = tuple(int(size) for size in part["shape"]), str(part["type"])
    if not isinstance(getattr(torch, name, None), torch.dtype) or not all(0 < size <= _LARGEST for size in shape):
        raise ValueError(part)
    return shape, name
