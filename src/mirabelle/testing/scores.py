"""The contract test of a score."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mirabelle.model.state import copied, fingerprint
from mirabelle.scores.evidence import evidence_for
from mirabelle.scores.score import Score, covered, score_from_data
from mirabelle.task.task import Task


def check_score(score: Score, model: nn.Module, task: Task) -> None:
    """Check that a score fulfils the contract of scores.

    It can be converted to plain data and back. It covers at least one parameter of the model. For each of them it returns
    scores and contributions of the parameter's shape, finite and the same in every call, from the evidence that it declares. It
    does not change the model.

    Args:
        score: the score to check.
        model: a model with parameters that the score covers.
        task: a task; the evidence is measured on its training samples.

    Raises:
        AssertionError: with the part of the contract that is violated.

    Example:
        >>> from mirabelle import Task
        >>> from mirabelle.scores import Taylor
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> check_score(Taylor(), nn.Linear(4, 2), Task(train=(x, y), test=(x, y)))
    """
    assert score_from_data(score.to_data()) == score, "a score built from its plain data must equal the original"
    before = fingerprint(model)
    names = covered(score, model)
    assert names, "the score covers no parameter of this model"
    evidence = evidence_for(score, copied(model), task, names, most_samples=16, seed=0)
    for name, parameter in names.items():
        own = evidence[name]
        for kind, found in (("scores", score(parameter, own)), ("contributions", score.contributions(parameter, own))):
            assert found.shape == parameter.shape, (
                f"{kind} of {name} have shape {tuple(found.shape)}, not {tuple(parameter.shape)}"
            )
            assert bool(torch.isfinite(found).all()), f"{kind} of {name} are not finite"
        assert torch.equal(score(parameter, own), score(parameter, own)), f"scores of {name} must be the same in every call"
    units = score.unit(np.array([0.0, 1.0, 4.0]))
    assert units.shape == (3,), "unit() must return one number for each sum of contributions"
    assert bool(np.isfinite(units).all()), "unit() must return finite numbers"
    assert fingerprint(model) == before, "the model must not be changed"
