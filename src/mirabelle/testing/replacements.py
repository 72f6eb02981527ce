"""The contract test of a module that replaces a dense one."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.model.replacement import REPLACEMENTS, stored_tensors_of


def check_replacement(replacement: nn.Module, dense: nn.Module, example: Tensor, *, tolerance: float = 0.05) -> None:
    """Check that a module that replaces a dense one fulfils the contract of replaced modules.

    From its settings, which are plain data, and the dense module, `from_dense` makes a module with tensors of the same names,
    shapes and dtypes, which returns the same outputs once the tensors are loaded. The tensors that count as parameters are
    among its stored tensors. Its plain tensors fit the dense module, which then returns nearly the same outputs.

    Args:
        replacement: the replaced module, made from `dense`.
        dense: the dense module; it is not changed.
        example: inputs of both modules.
        tolerance: largest difference of the dense module with plain tensors, relative to the largest output; rounded
            activations make a difference.

    Raises:
        AssertionError: with the part of the contract that is violated.

    Example:
        >>> from mirabelle.quantize import WeightLayer
        >>> dense = nn.Linear(4, 2)
        >>> check_replacement(WeightLayer.quantized(dense, 8), dense, torch.randn(3, 4))
    """
    given: Any = replacement
    assert REPLACEMENTS.is_member(type(replacement)), "its class needs the class method `from_dense(dense, **settings)`"
    settings = json.loads(json.dumps(given.settings))
    assert settings == given.settings, "settings must be plain data: numbers, strings, lists, tables"
    again = type(given).from_dense(dense, **settings)
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in one.state_dict().items()} for one in (given, again)]
    assert shapes[0] == shapes[1], "from_dense must make tensors of the same names, shapes and dtypes"
    again.load_state_dict(given.state_dict())
    with torch.no_grad():
        outputs = given.eval()(example)
        assert torch.equal(copy.deepcopy(given)(example), outputs), "a deep copy must return the same outputs"
        assert torch.equal(again.eval()(example), outputs), "with its tensors loaded, the module must return the same outputs"
        stored = given.stored_tensors() if hasattr(given, "stored_tensors") else stored_tensors_of(given)
        own = {tensor.data_ptr() for tensor in (*given.parameters(), *given.buffers())}
        strange = [name for name, tensor in stored.items() if tensor.numel() and tensor.data_ptr() not in own]
        assert not strange, f'"{(strange or [""])[0]}" counts as a parameter, but is no parameter or buffer of the module'
        plain = given.plain_tensors() if hasattr(given, "plain_tensors") else {}
        if plain:
            _check_plain(plain, dense, example, outputs, tolerance)


def _check_plain(plain: dict[str, Tensor], dense: nn.Module, example: Tensor, outputs: Tensor, tolerance: float) -> None:
    tensors = dense.state_dict()
    misfits = [name for name, tensor in plain.items() if name in tensors and tensors[name].shape != tensor.shape]
    assert not misfits, f'plain tensor "{(misfits or [""])[0]}" has another shape than in the dense module'
    computed = torch.func.functional_call(
        dense, {**tensors, **{name: plain[name] for name in plain if name in tensors}}, example
    )
    error = float((computed - outputs).abs().max() / outputs.abs().max().clamp_min(1e-12))
    assert error <= tolerance, f"the dense module with the plain tensors differs by {error:.3g} of the largest output"
