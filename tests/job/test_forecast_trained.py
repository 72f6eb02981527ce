"""A check times the model that a step trains, which for a quantizing step is not the one that it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirabelle.cli.main import run

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
