"""A check times the model that a step trains, which for a quantizing step is not the one that it gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from mirabelle import Run, Training, quantize
from mirabelle.cli.main import run
from mirabelle.quantize.rounded_layer import RoundedLayer
from mirabelle.sources.datasets.digits import digits
from mirabelle.training import Joint
from mirabelle.training.shared import training_of

RECIPE = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
[task]
data = "digits"
[baseline]
train = {{ epochs = 1 }}
[[step]]
{step}
train = {{ epochs = 1 }}
"""
STEPS = {
    "aware": 'use = "quantize.Aware"',
    "codebook": 'use = "quantize.Codebook"',
    "rate": 'use = "quantize.EntropyConstrained"\nrate = 1.0',
    "size": 'use = "quantize.EntropyConstrained"\nsize = "2 kB"',
    "joint": 'use = "training.Joint"\nsteps = [{ use = "prune.Weights", sparsity = 0.5 }, '
    '{ use = "quantize.EntropyConstrained", rate = 1.0 }]',
}


@pytest.mark.parametrize("step", STEPS)
def test_check_times_a_training_of_a_quantizing_step(step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(step=STEPS[step]), "utf-8")
    assert run(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "time about" in out


def test_a_joint_training_trains_all_layers_that_its_parts_round(tmp_path: Path) -> None:
    parts = (quantize.EntropyConstrained(rate=1.0, include=("1",)), quantize.EntropyConstrained(rate=1.0, include=("3",)))
    joint = Joint(steps=parts, train=Training(epochs=1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    preview = joint.preview(model, digits(), Run(tmp_path))
    rounded = [name for name, module in preview.trained.named_modules() if isinstance(module, RoundedLayer)]
    assert rounded == ["1", "3"]
    assert len(training_of(preview, digits()).objective.terms) == 3
