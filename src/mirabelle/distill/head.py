"""The teacher's last layer in the student's place."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import replace_module
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import copied
from mirabelle.objectives.layer_matching import head_of
from mirabelle.task.batch import Batch


class ReusedHead(Replacement):
    """The teacher's linear head, which is not trained, behind a projector from the student's embedding to the teacher's.

    The projector is linear, batch norm, ReLU, linear, its middle half as wide as the teacher's embedding.

    Args:
        inputs: width of the student's embedding.
        embedding: width of the teacher's.
        outputs: of the head.
        bias: whether the head has one.

    Source: Chen, Mei, Zhang, Wang, Feng, Chen 2022, "Knowledge Distillation with the Reused Teacher Classifier",
    arXiv:2203.14001.
    """

    def __init__(self, inputs: int, embedding: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__({"inputs": inputs, "embedding": embedding, "outputs": outputs, "bias": bias})
        middle = max(1, embedding // 2)
        self.project = nn.Sequential(
            nn.Linear(inputs, middle, bias=False), nn.BatchNorm1d(middle), nn.ReLU(), nn.Linear(middle, embedding)
        )
        self.head = nn.Linear(embedding, outputs, bias=bias).requires_grad_(requires_grad=False)

    @classmethod
    def from_dense(cls, dense: nn.Module, **settings: Any) -> Self:
        del dense
        return cls(**settings)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.project(x))
        return out


def with_head_of(student: nn.Module, teacher: nn.Module, example: Batch) -> nn.Module:
    """The student with the teacher's head in the place of its own; the student itself changes.

    Args:
        student: its last linear layer is replaced; its embeddings are vectors.
        teacher: its last linear layer is copied.
        example: inputs that both take.

    Raises:
        UserError: E112 when one of the two has no linear layer at its end.
    """
    places = head_of(student, example), head_of(teacher, example)
    own, theirs = (model.get_submodule(place) for model, place in zip((student, teacher), places, strict=True))
    if not isinstance(own, nn.Linear) or not isinstance(theirs, nn.Linear):
        raise UserError("E112", "the last layer of student or teacher is not linear", 'leave out head = "teacher"')
    reused = ReusedHead(own.in_features, theirs.in_features, theirs.out_features, bias=theirs.bias is not None)
    reused.head.load_state_dict(copied(theirs).state_dict())
    return replace_module(student, places[0], reused)
