"""The zoo itself: names, seeds, and the groups expected of it, which name what exists and hold where that can be tried."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from proof import tensors_of
from torch import nn
from zoo import ARCHITECTURES, made, transformers
from zoo.expected import EXPECTED, Group

FAST_NAMES = """
lenet vgg resnet_basic resnet_option_a resnext densenet squeezenet res2net normalizer_free polynet mobilenet_v3 shufflenet_v1
shufflenet_v2 ghostnet convnext unet espcn gan_generator high_resolution lstm bidirectional_lstm stacked_gru mlp_mixer
einsum_attention torch_encoder text_cnn wide_and_deep two_tower wavenet point_net siamese volume view_constants two_factorings
chunked_qkv interleaved_qkv cat_of_cat uneven_split gated_linear_unit group_conv transposed_group_conv grouped_channel_shuffle
pixel_shuffle depthwise_multiplier single_output_channel class_token relative_position_table cached_tensor tied_layers
weight_norm grouped_queries rotary_halves dense_experts group_norm one_group_norm max_over_channels in_place gathered_channels
reordered_channels kernels_per_sample standardized_by_batch_norm norm_over_features shifted_time batch_times_heads
shifted_channels involution spectrum distances sum_over_channels broadcast_residual instance_norm product_of_branches
softmax_over_channels chosen_channels network_in_network bert gpt2 llama t5 vit wav2vec2
built_in_shuffle rolled_stream split_experts sorted_tokens shift_mlp coordinate_convolution auxiliary_head
"""
FAST = frozenset(FAST_NAMES.split())

FROM_PACKAGE = {architecture.name for architecture in transformers.ARCHITECTURES}

# Channels that a buffer or a cache holds apart, or that are read in another order than they are written.
NOT_IN_ONE_ORDER = {
    "batch_norm_without_affine",
    "borrowed_channels",
    "buffer_on_channels",
    "cached_tensor",
    "channel_shuffle",
    "reordered_channels",
    "rolled_channels",
    "shifted_channels",
}

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:The tensor attributes? self.*assigned during export:UserWarning"
    ),  # weights of RNNs, caches
]


def chosen(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test; most of them are slow."""
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


def made_or_skipped(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    if name in FROM_PACKAGE and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    return made(name)


def degenerate(model: nn.Module) -> list[str]:
    """Names of parameters, and of running statistics, that are constant or that nearly vanish."""
    tensors = dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if "running_" in name}
    return [
        name
        for name, tensor in tensors.items()
        if tensor.abs().max() < 0.05 or (tensor.numel() > 1 and tensor.std() < 0.1 * tensor.abs().mean())
    ]


@pytest.mark.parametrize("name", ["siamese", "stacked_experts", "bert"])
def test_the_same_name_makes_the_same_network_and_the_same_inputs(name: str) -> None:
    one, positional, named = made_or_skipped(name)
    other, positional_again, named_again = made(name)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(positional, positional_again, strict=True))
    assert all(torch.equal(named[key], named_again[key]) for key in named)
    assert all(size > 1 for tensor in (*positional, *named.values()) for size in tensor.shape[:1])


def test_names_are_unique_and_known() -> None:
    assert len(ARCHITECTURES) >= 200
    assert set(ARCHITECTURES) >= FAST
    assert len(FAST) >= 0.3 * len(ARCHITECTURES)
    assert set(EXPECTED) <= set(ARCHITECTURES)
    small = {name for name, architecture in ARCHITECTURES.items() if architecture.family in {"pitfall", "recurrent"}}
    assert set(EXPECTED) >= small


@pytest.mark.parametrize("name", chosen(EXPECTED))
def test_expected_groups_name_dimensions_that_are_there(name: str) -> None:
    model, *_ = made_or_skipped(name)
    shapes = {parameter: tensor.shape for parameter, tensor in model.named_parameters()}
    for group in EXPECTED[name]:
        assert len(group.places) == len(group.members.split())
        for parameter, dimension in group.places:
            assert shapes[parameter][dimension] >= group.units


@pytest.mark.parametrize("name", chosen(name for name in EXPECTED if name not in NOT_IN_ONE_ORDER))
def test_units_of_an_expected_group_may_change_places(name: str) -> None:
    """Tried where each member has one element per unit; heads, splits and joints are left to the engine's own test."""
    model, positional, named = made_or_skipped(name)
    with torch.no_grad():
        reference = tensors_of(model(*positional, **named))
        for group in EXPECTED[name]:
            if is_plain(model, group):
                reverse(model, group)
                outputs = tensors_of(model(*positional, **named))
                reverse(model, group)
                for output, before in zip(outputs, reference, strict=True):
                    assert (output - before).abs().max() < 1e-10 * before.abs().max(), group


def is_plain(model: nn.Module, group: Group) -> bool:
    return all(model.get_parameter(parameter).shape[dimension] == group.units for parameter, dimension in group.places)


def reverse(model: nn.Module, group: Group) -> None:
    """The last unit first, in parameters and running statistics."""
    for parameter, dimension in group.places:
        tensor = model.get_parameter(parameter)
        tensor.copy_(tensor.flip(dimension))
        module = model.get_submodule(parameter.rpartition(".")[0])
        if parameter.endswith(".weight") and isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.copy_(module.running_mean.flip(0))
            module.running_var.copy_(module.running_var.flip(0))
