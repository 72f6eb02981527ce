"""Make models by the user's Python functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.errors import UserError, is_out_of_memory
from mirabelle.records.functions import function_from


def made_by(name: str, arguments: Mapping[str, Any], folder: Path) -> nn.Module:
    """The module that a function returns.

    Args:
        name: "pkg.mod:function", or "./file.py:function" relative to `folder`.
        arguments: keyword arguments of the function.
        folder: relative paths refer to it.

    Raises:
        UserError: E120 if the function is not found or raises an exception, E121 if it does not return a module.
    """
    factory = function_from(name, folder)
    try:
        model = factory(**arguments)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            "E120", f"{name} raised {type(error).__name__}: {error}", "call the function in Python to see why"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError("E121", f"{name} returned {type(model).__name__}", "return a torch.nn.Module")
    return model
