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
    """Check that a score does what Mirabelle asks of every score.

    It is plain data and comes back from it equal; it covers some parameter of the model; of each it gives scores and
    contributions of the parameter's shape, finite and the same when asked again, with the evidence that it needs and no other;
    and it leaves the model alone.

    Args:
        score: that is checked.
        model: with parameters that it covers.
        task: whose training samples give the evidence.

    Raises:
        AssertionError: with the part of the contract that does not hold.

    Example:
        >>> from mirabelle import Task
        >>> from mirabelle.scores import Taylor
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> check_score(Taylor(), nn.Linear(4, 2), Task(train=(x, y), test=(x, y)))
    """
    assert score_from_data(score.to_data()) == score, "a score must come back equal from its plain data"
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
        assert torch.equal(score(parameter, own), score(parameter, own)), f"scores of {name} must be the same when asked again"
    units = score.unit(np.array([0.0, 1.0, 4.0]))
    assert units.shape == (3,), "unit() must give one number for each sum of contributions"
    assert bool(np.isfinite(units).all()), "unit() must give finite numbers"
    assert fingerprint(model) == before, "the model must be left as it was"
