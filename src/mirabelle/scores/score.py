"""The interface of an importance score, and the measured quantities that it may use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import PlainValidator

from mirabelle import records
from mirabelle.records.families import Family, subclass_of
from mirabelle.records.patterns import names_of_parameters
from mirabelle.records.record import fields_to_data

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

Need = Literal["gradient", "squared_gradient", "input_moments", "input_norms"]


@dataclass(frozen=True)
class Evidence:
    """The measured quantities that a score may use in addition to the tensor itself.

    Let ℓₙ be the loss of sample n, and x the input vector that a row of the weight of a linear layer or convolution is
    multiplied by: the layer's input, for a convolution the patch under the kernel. Means are taken over samples; the mean of
    x also over all positions at which the layer is applied.

    Args:
        name: of the parameter.
        gradient: mean ∂ℓₙ/∂w, of the parameter's shape.
        squared_gradient: mean (∂ℓₙ/∂w)², of the parameter's shape: the diagonal of the empirical Fisher information.
        input_moments: E[x xᵀ], (groups, columns, columns); one group except in a grouped convolution.
        input_norms: √E[x²], (groups, columns).
    """

    name: str
    gradient: Tensor | None = None
    squared_gradient: Tensor | None = None
    input_moments: Tensor | None = None
    input_norms: Tensor | None = None

    def to(self, device: torch.device) -> Evidence:
        """The same quantities on a device."""
        parts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "name"}
        return Evidence(self.name, **{key: None if part is None else part.to(device) for key, part in parts.items()})


class Score(ABC):
    """The importance of each weight, or of each unit; an immutable record. Weights with the lowest scores are pruned first.

    A unit (channel, neuron, attention head) consists of weights in several tensors. Its score is `unit(Σ contributions)`,
    summed over all its weights in tensors that the score covers; by default √Σ s², s the scores of the weights.

    Attributes:
        needs: the quantities of `Evidence` that the score uses.
        samples: number of training samples on which they are measured; only for scores that need any.
        parts: number of parts into which the samples are divided for scores of units, which are the means over the parts.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    parts: int = 1

    @abstractmethod
    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        """The scores of a tensor's elements, of the same shape; a higher score means keep."""

    def contributions(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        """The contribution of each weight to the sum of its unit, of the tensor's shape."""
        return self(tensor, evidence).square()

    def unit(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The scores of units from the sums of their contributions."""
        scores: npt.NDArray[np.float64] = sums**0.5
        return scores

    def covers(self, name: str, tensor: Tensor, module: nn.Module) -> bool:
        """Whether the score is defined for a parameter of this module: by default if it has two or more dimensions."""
        del name, module
        return tensor.ndim > 1

    def to_data(self) -> dict[str, Any]:
        """The score as a table {use = name, ...}, from which `score_from_data` makes an equal score."""
        return {"use": SCORES.name_of(type(self), with_path=True), **fields_to_data(self)}


class LayerScore(Score):
    """A score by which weights are pruned layer by layer, each by the inputs that the pruned layers before it give.

    It is defined for the weights of linear layers and convolutions that are not transposed, and may change the weights that
    are kept.
    """

    @abstractmethod
    def pruned(self, weight: Tensor, moments: Tensor, amount: float | tuple[int, int]) -> Tensor:
        """The pruned weight.

        Args:
            weight: (rows, columns).
            moments: of the inputs x, E[x xᵀ], (columns, columns); for a score that needs "input_norms", E[x²], (columns,).
            amount: the fraction removed, in [0, 1), or (kept, columns) of each group of that many neighbouring columns.
        """

    def covers(self, name: str, tensor: Tensor, module: nn.Module) -> bool:
        from mirabelle.calibration.columns import multiplies_inputs

        del name
        return multiplies_inputs(module, tensor)


def covered(score: Score, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters for which a score is defined, by name.

    A tied parameter appears once, if the score is defined for it in all modules that have it. A parameter with infinite
    values, such as the mask of an attention, is left out.
    """
    names = names_of_parameters(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if all(score.covers(one, parameter, model.get_submodule(one.rpartition(".")[0])) for one in names[name])
        and bool(parameter.isfinite().all())
    }


def score_from_data(data: Any) -> Score:
    """A score from its name, "Magnitude" or "./file.py:Mine", or from a table {use = name, ...}.

    Raises:
        UserError: E106 if the score is unknown, E120 if a user's own score is not found, E102 or E103 if its settings are
            wrong.
    """
    if isinstance(data, Score):
        return data
    settings = {"use": data} if isinstance(data, str) else dict(data) if isinstance(data, Mapping) else {}
    cls = SCORES.member(str(settings.pop("use", "")))
    score: Score = records.build(cls, settings, f"scores.{cls.__name__}")
    return score


SCORES = Family("score", ("scores",), subclass_of(Score), qualified=False)
ScoreField = Annotated[Score, PlainValidator(score_from_data)]
