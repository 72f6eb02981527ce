"""The contract of a score: what matters least."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainValidator

from mirabelle import plain

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What a score may look at beside the tensor itself: the parameter's name."""

    name: str


class Score(ABC):
    """How much each weight matters; a frozen record."""

    @abstractmethod
    def __call__(self, tensor: Tensor, evidence: Evidence) -> Tensor:
        """Scores of the same shape; higher = keep."""

    def to_data(self) -> dict[str, Any]:
        """A table {use = name, ...} from which `score_from_data` makes an equal score."""
        return {"use": type(self).__name__, **plain.fields_to_data(self)}


def score_from_data(data: Any) -> Score:
    """A score from its name, or from a table {use = name, ...}.

    Raises:
        UserError: E106 unknown score, E102 or E103 wrong settings.
    """
    if isinstance(data, Score):
        return data
    settings = {"use": data} if isinstance(data, str) else dict(data) if isinstance(data, Mapping) else {}
    cls = plain.lookup("scores", str(settings.pop("use", "")), Score)
    score: Score = plain.build(cls, settings, f"scores.{cls.__name__}")
    return score


ScoreField = Annotated[Score, PlainValidator(score_from_data)]
