from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle.graph import cut, groups_of, propagated, traced
from mirabelle.graph.interpret import kept_without
from mirabelle.sources import model_from, zoo
from mirabelle.sources.zoo import ResNet


@pytest.mark.parametrize(("name", "parameters", "layers"), [("resnet20", 269_722, 20), ("resnet56", 853_018, 56)])
def test_residual_networks_have_the_published_sizes(name: str, parameters: int, layers: int, tmp_path: Path) -> None:
    model = model_from(f"mirabelle.sources.zoo:{name}", {}, tmp_path)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == layers
    names = {name for name, _ in model.named_parameters()}
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv2.weight", "layer3.2.bn1.weight", "linear.bias"} <= names


@pytest.mark.parametrize(
    ("name", "parameters", "shape"), [("vgg8", 3_917_386, (3, 32, 32)), ("digits_transformer", 20_194, (1, 8, 8))]
)
def test_students_and_teachers_are_as_large_as_they_say(
    name: str, parameters: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = model_from(f"mirabelle.sources.zoo:{name}", {}, tmp_path)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    assert model(torch.randn(2, *shape)).shape == (2, 10)
    assert f"{parameters:,} parameters" in (getattr(zoo, name).__doc__ or "")


def test_a_shortcut_takes_every_other_place_and_adds_zeros_on_both_sides() -> None:
    block = ResNet(blocks=1).layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # the inner branch gives nothing
    features = torch.rand(2, 16, 8, 8)
    given = block(features)
    assert torch.equal(given[:, 8:24], features[:, :, ::2, ::2])
    assert not given[:, :8].any()
    assert not given[:, 24:].any()


def test_every_block_has_a_group_within_and_every_stage_one_on_its_stream() -> None:
    torch.manual_seed(0)
    model, images = ResNet(blocks=2).eval(), torch.randn(2, 3, 32, 32)
    program = traced(model, (images,))
    flow = propagated(program)
    groups = groups_of(program, flow)
    inner = {f"layer{stage}.{block}.conv1.weight:0": 16 << stage - 1 for stage in (1, 2, 3) for block in (0, 1)}
    streams = {"conv1.weight:0": 16, "layer2.0.conv2.weight:0": 16, "layer3.0.conv2.weight:0": 32}
    assert {group.name: len(group) for group in groups} == inner | streams
    gone = np.concatenate([group.units[: len(group) // 4] for group in groups if group.name in inner])
    smaller = cut(model, program, flow, kept_without(flow, gone), ((images,), {}))
    assert isinstance(smaller, ResNet)
    assert smaller.layer3[1].conv1.weight.shape == (48, 64, 3, 3)
    assert smaller.layer3[1].conv2.weight.shape == (64, 48, 3, 3)
