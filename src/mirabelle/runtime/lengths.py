"""Whether an exported file computes what its model computes for texts of other lengths than that of its example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.model.state import in_eval_mode
from mirabelle.numerics.arrays import to_numpy
from mirabelle.runtime.runtime import default_runtime
from mirabelle.runtime.views import structure_of
from mirabelle.task.batch import Batch, call

_FLOAT, _ROUNDED = 1e-3, 5e-2  # sums in another order; integers that are rounded the other way
_AGREEING = 0.99
_ROUNDS = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


def computes_other_lengths(model: nn.Module, onnx: bytes, example: Batch, tokens: Mapping[str, int]) -> bool:
    """Whether a file gives the outputs of its model for inputs of one token, of half the tokens, and of one token more.

    Lengths that the model itself does not take are left out. Of a file that rounds to integers, 99 % of the values must agree
    to 5 % of the largest; of others all to 0.1 %.

    Args:
        model: the model.
        onnx: bytes of its file.
        example: inputs by name.
        tokens: the number of tokens of each input whose length is free.
    """
    inputs: Any = example.inputs
    length = next(iter(tokens.values()))
    rounds = any(node.op_type in _ROUNDS for node in structure_of(onnx).graph.node)
    session = default_runtime().load(onnx, torch.get_num_threads())
    for other in sorted({1, max(1, length // 2), length + 1}):
        given = {name: _of_length(tensor, other) if name in tokens else tensor for name, tensor in inputs.items()}
        try:
            with torch.inference_mode(), in_eval_mode(model):
                due = [to_numpy(part) for part in pytree.tree_leaves(call(model, given)) if isinstance(part, Tensor)]
        except Exception:  # noqa: BLE001, S112 (the model does not take this length)
            continue
        try:
            found = session.run(session.feed(given))
        except Exception:  # noqa: BLE001 (whatever the runtime raises)
            return False
        if not all(_agree(*pair, rounds=rounds) for pair in zip(due, found, strict=True)):
            return False
    return True


def _of_length(tensor: Tensor, length: int) -> Tensor:
    """The first tokens; the first one again where there are too few."""
    return torch.cat([tensor, tensor[:, :1]], 1) if length > tensor.shape[1] else tensor[:, :length]


def _agree(due: Any, found: Any, *, rounds: bool) -> bool:
    if due.shape != found.shape:
        return False
    with np.errstate(invalid="ignore"):
        far = np.abs(due.astype(np.float64) - found) > (_ROUNDED if rounds else _FLOAT) * max(float(np.abs(due).max()), 1e-12)
    return bool((far & (due != found)).mean() <= (1 - _AGREEING if rounds else 0))
