"""Each source through each step and goal: it runs, or is refused in one line; a killed run ends with the same bytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from mirabelle.step import STEPS as FAMILY
from runs_of_sources import GOALS, SOURCES, STEPS, outcome_of

if importlib.util.find_spec("keras") is None or importlib.util.find_spec("transformers") is None:
    pytest.skip("Keras or transformers is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, Keras and transformers, about their own code
QUICK = (("Keras function", "quantize.Dynamic"), ("torch function", "prune.Weights(sparsity)"))


def test_every_step_has_a_row() -> None:
    assert {row.partition("(")[0] for row in STEPS} == set(FAMILY.known())


@pytest.mark.parametrize(
    ("source", "step"),
    [
        (source, step) if (source, step) in QUICK else pytest.param(source, step, marks=pytest.mark.slow)
        for source in SOURCES
        for step in STEPS
    ],
)
def test_a_source_goes_through_a_step_and_a_kill(source: str, step: str, tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, source, step)
    assert outcome.said == "ok" or outcome.said.startswith("error[E1"), outcome.said
    assert not outcome.differs


@pytest.mark.slow
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_held_to_a_goal(source: str, goal: str, tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, source, "quantize.Dynamic", goal)
    assert outcome.said == "ok", outcome.said
    assert not outcome.differs
