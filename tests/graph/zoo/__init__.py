"""Small architectures of many kinds, on which structured pruning is proved.

Here are the networks, their inputs, weights that hide no mistake, and for many of them the axis groups derived by hand.
What is done with them is the business of the tests.
"""

from __future__ import annotations

import torch
from torch import nn

from . import (
    attention_on_maps,
    cnn,
    cnn_dense,
    cnn_light,
    experts_and_states,
    mixers,
    moved_channels,
    others,
    pitfalls,
    recurrent,
    transformers,
)
from .architecture import Architecture
from .weights import randomized

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for module in (
        cnn,
        cnn_light,
        cnn_dense,
        moved_channels,
        recurrent,
        mixers,
        attention_on_maps,
        others,
        pitfalls,
        transformers,
        experts_and_states,
    )
    for architecture in module.ARCHITECTURES
}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """The named network in eval mode with non-degenerate weights, and its positional and keyword inputs, all of one type."""
    architecture = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture.build()
    model = randomized(model, seed=0).to(dtype).eval()
    positional, named = architecture.inputs()
    return (
        model,
        tuple(cast(tensor, dtype) for tensor in positional),
        {key: cast(tensor, dtype) for key, tensor in named.items()},
    )


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Integers and truth values stay what they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
