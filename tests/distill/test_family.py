"""`mirabelle run` with every term over the teacher, on digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mirabelle import Run, Training, objectives
from mirabelle.cli.main import mirabelle
from mirabelle.objectives import Term
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn, digits_transformer
from mirabelle.training import fit

TERMS = [
    name
    for name in objectives.__all__
    if isinstance(kind := getattr(objectives, name), type) and issubclass(kind, Term) and kind.needs_teacher
]
TOKENS = {"HiddenStates", "AttentionMaps", "TokenRelations"}
EPOCHS = {"HiddenStates": 15}  # others 8: decisions and features are learned faster than the inside of a transformer
WEIGHTS = {"DKD": 0.1, "CRD": 0.05}  # whose loss is large at the start
SETTINGS = {"TokenRelations": ", heads = 2", "CRD": ", negatives = 256", "ReviewKD": ", width = 8"}


def epochs_of(term: str) -> int:
    return EPOCHS.get(term, 8)


def recipe(term: str, weights: Path) -> str:
    model, student = "digits_cnn", "width = 0.5"
    if term in TOKENS:
        model = "digits_transformer"
        student = 'model = "mirabelle.sources.zoo:digits_transformer"\narguments = { width = 12, layers = 2, heads = 2 }'
    if term == "SimKD":
        student += '\nhead = "teacher"'
    return f"""
schema = 1
[model]
from = "mirabelle.sources.zoo:{model}"
[task]
data = "digits"
[baseline]
weights = "{weights / model}.safetensors"
[[step]]
use = "distill.Student"
{student}
[step.train]
epochs = {epochs_of(term)}
batch_size = 64
lr = 5e-3
precision = "float32"
keep = "last"
objective = [
  {{ term = "{term}", weight = {{ start = {WEIGHTS.get(term, 1.0)}, end = 0.05 }}{SETTINGS.get(term, "")} }},
  {{ term = "TaskLoss", weight = 0.5 }},
]
"""


def test_the_family_has_its_members() -> None:
    assert len(TERMS) == 19
    assert set(TERMS) >= TOKENS | set(SETTINGS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of both teachers, trained once."""
    folder, task = tmp_path_factory.mktemp("weights"), digits()
    training = Training(epochs=4, batch_size=64, lr=5e-3, precision="float32")
    for make in (digits_cnn, digits_transformer):
        torch.manual_seed(0)
        model = fit(make(), task, training, Run(folder / make.__name__))
        save_file(model.state_dict(), folder / f"{make.__name__}.safetensors")
    return folder


# One over decisions and one over features; formula and contract of every term have fast tests of their own.
FAST = ("SoftTargets", "Hint")
EACH = [term if term in FAST else pytest.param(term, marks=pytest.mark.slow) for term in TERMS]


@pytest.mark.parametrize("term", EACH)
def test_a_student_is_distilled_with_every_term(term: str, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe(term, weights))
    assert not mirabelle(args=["run", str(path), "--out", str(tmp_path / "run"), "--quiet"], standalone_mode=False)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(gate["passed"] for gate in report["gates"].values())
    assert report["end"]["metric"]["value"] > 0.5, "it has learned something"
    assert report["end"]["parameters"] < report["start"]["parameters"]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "epoch" and "distill" in event["where"]]
    assert len(losses) == epochs_of(term)
    assert losses[-1] < losses[0]
