"""The contract of a score: what matters least."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import PlainValidator

from mirabelle import records
from mirabelle.records.families import Family, subclass_of
from mirabelle.records.record import fields_to_data

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

Need = Literal["gradient", "squared_gradient", "input_moments", "input_norms"]


@dataclass(frozen=True)
class Evidence:
    """What a score may look at beside the tensor itself; it is measured by `scores.evidence.evidence_for`.

    Let ℓₙ be the loss of sample n alone, and x what the columns of a linear or convolution layer's weight are multiplied by:
    its inputs, unfolded under the kernel for a convolution. Both means go over the samples, that of x over every place at
    which the layer is applied, too.

    Args:
        name: of the parameter.
        gradient: mean ∂ℓₙ/∂w, of the parameter's shape.
        squared_gradient: mean (∂ℓₙ/∂w)², of the parameter's shape: the diagonal of the empirical Fisher information.
        input_moments: E[x xᵀ], (groups, columns, columns); one group but in a grouped convolution.
        input_norms: √E[x²], (groups, columns).
    """

    name: str
    gradient: Tensor | None = None
    squared_gradient: Tensor | None = None
    input_moments: Tensor | None = None
    input_norms: Tensor | None = None


class Score(ABC):
    """How much each weight, or each unit, matters; a frozen record.

    A unit (a channel, a neuron, a head) takes weights of several tensors with it. Its score is `unit(Σ contributions)`, the
    sum over all weights that it takes of the tensors that the score covers; by default √Σ s², s the scores of the weights.

    Args:
        needs: the evidence that it looks at.
        samples: how many samples of the training data are looked at, where it needs any.
        parts: into which they are divided for units, whose score is then the mean over the parts.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    parts: int = 1

    @abstractmethod
    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        """Scores of the same shape; higher = keep."""

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        """What each weight adds to the sum of its unit; of the tensor's shape."""
        return self(tensor, evidence).square()

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The scores of units from the sums of their contributions."""
        scores: npt.NDArray[np.float64] = sums**0.5
        return scores

    def covers(self, name: str, tensor: Tensor, module: nn.Module) -> bool:
        """Whether it speaks of a parameter of this module: by default of two or more dimensions."""
        del name, module
        return tensor.ndim > 1

    def to_data(self) -> dict[str, Any]:
        """A table {use = name, ...} from which `score_from_data` makes an equal score."""
        return {"use": SCORES.name_of(type(self), with_path=True), **fields_to_data(self)}


def covered(score: Score, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of which a score speaks, by name; each tied one once."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if score.covers(name, parameter, model.get_submodule(name.rpartition(".")[0]))
    }


def score_from_data(data: Any) -> Score:
    """A score from its name, "Magnitude" or "./file.py:Mine", or from a table {use = name, ...}.

    Raises:
        UserError: E106 unknown score, E120 a user's score that is not found, E102 or E103 wrong settings.
    """
    if isinstance(data, Score):
        return data
    settings = {"use": data} if isinstance(data, str) else dict(data) if isinstance(data, Mapping) else {}
    cls = SCORES.member(str(settings.pop("use", "")))
    score: Score = records.build(cls, settings, f"scores.{cls.__name__}")
    return score


SCORES = Family("score", ("scores",), subclass_of(Score), qualified=False)
ScoreField = Annotated[Score, PlainValidator(score_from_data)]
