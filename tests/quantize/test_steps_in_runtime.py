"""Torch and ONNX Runtime on quantized networks with real weights: each layer within one step, end to end the same class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, quantize
from mirabelle.quantize import DynamicLayer, StaticLayer, TokenLayer
from mirabelle.recipe.file import read_recipe
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.task.batch import Batch
from mirabelle.training import evaluate

pytestmark = pytest.mark.slow

SAMPLES = 1000
RECIPE = """
schema = 1
[model]
from = "mirabelle.sources.zoo:resnet20"
weights = { pickle = "data:cifar10-resnets/resnet20-12fca82f.th", prefixes = { "module." = "" } }
[task]
data = "cifar10"
[[step]]
use = "quantize.Static"
"""


@pytest.fixture(scope="module")
def data() -> Path:
    place = os.environ.get("MIRABELLE_DATA")
    if place is None or not (Path(place) / "cifar10-resnets").is_dir() or not (Path(place) / "cifar-10-batches-bin").is_dir():
        pytest.skip("MIRABELLE_DATA does not name a folder with CIFAR-10 and cifar10-resnets in it")
    return Path(place)


@pytest.fixture(scope="module")
def resnet(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE, "utf-8")
    file = read_recipe(path, data_folder=data)
    return file.build_model().eval(), file.build_task(data)


@pytest.mark.parametrize("step", [quantize.Static(), quantize.Static(weight_bits=4)], ids=["8 bits", "4 bits"])
def test_each_layer_within_one_step_and_the_same_class(resnet: tuple[nn.Module, Any], step: Any, tmp_path: Path) -> None:
    model, task = resnet
    quantized = step(model, task, Run(tmp_path))
    images = task.validation.at(torch.arange(SAMPLES)).inputs
    for name, inputs in _inputs_of(quantized, images[:16], StaticLayer).items():
        layer = quantized.get_submodule(name)
        torch_gives, runtime_gives = _both(layer, inputs)
        step_size = layer.output_scale if layer.output_scale is not None else 1e-5 * torch_gives.abs().max()
        assert float((torch_gives - runtime_gives).abs().max()) <= 1.001 * float(step_size), name
    torch_gives, runtime_gives = _both(quantized, images)
    assert float((torch_gives.argmax(1) == runtime_gives.argmax(1)).float().mean()) >= 0.995
    assert task.metric.value(evaluate(quantized, task.validation, task)) > 0.85


@pytest.mark.parametrize(("granularity", "kind"), [("token", TokenLayer), ("tensor", DynamicLayer)])
def test_each_dynamic_layer_within_one_step(granularity: Any, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 256), nn.GELU(), nn.Linear(256, 96), nn.LayerNorm(96), nn.Linear(96, 10)).eval()
    inputs = torch.randn(SAMPLES, 96) * torch.linspace(0.1, 5.0, 96)
    quantized = quantize.Dynamic()._quantized(model, ("0", "2", "4") if granularity == "tensor" else ())
    for name, given in _inputs_of(quantized, inputs[:64], kind).items():
        layer: Any = quantized.get_submodule(name)
        torch_gives, runtime_gives = _both(layer, given)
        spread = given.amax(-1) - given.amin(-1) if granularity == "tensor" else 2 * given.abs().amax(-1)
        step_size = float(spread.max()) / 254 * float((layer.codes.abs().amax(0) * layer.scale).max())
        assert float((torch_gives - runtime_gives).abs().max()) <= step_size, name
    torch_gives, runtime_gives = _both(quantized, inputs)
    assert float((torch_gives.argmax(1) == runtime_gives.argmax(1)).float().mean()) >= 0.995


def _inputs_of(model: nn.Module, inputs: Tensor, kind: type[nn.Module]) -> dict[str, Tensor]:
    """What each layer of a class is given, by name."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0].detach()))
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return seen


def _both(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    batch = Batch(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    session = default_runtime().load(export(model, Batch(inputs[:2], batch.targets[:2])), 1)
    given = session(inputs)
    assert isinstance(given, Tensor)
    with torch.no_grad():
        return model(inputs), given
