"""Replace the last linear layer of a student by that of its teacher, behind a projector."""

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
    """The teacher's last linear layer (frozen) behind a trained projector from the student's embedding to the teacher's.

    The projector is Linear, BatchNorm, ReLU, Linear; its hidden width is half the width of the teacher's embedding.

    Args:
        inputs: width of the student's embedding.
        embedding: width of the teacher's embedding.
        outputs: number of outputs of the last linear layer.
        bias: whether the last linear layer has a bias.

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
        """The module that replaces a head, from its settings in `architecture.json`."""
        del dense
        return cls(**settings)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.project(x))
        return out


def with_head_of(student: nn.Module, teacher: nn.Module, example: Batch) -> nn.Module:
    """Replace the student's last linear layer by a `ReusedHead` with the teacher's; the student is changed in place.

    Args:
        student: its last linear layer is replaced; its embedding must be (batch, width).
        teacher: its last linear layer is copied.
        example: inputs for both models.

    Raises:
        UserError: E112 if one of the two does not end with a linear layer.
    """
    places = head_of(student, example), head_of(teacher, example)
    own, theirs = (model.get_submodule(place) for model, place in zip((student, teacher), places, strict=True))
    if not isinstance(own, nn.Linear) or not isinstance(theirs, nn.Linear):
        raise UserError("E112", "the last layer of student or teacher is not linear", 'leave out head = "teacher"')
    reused = ReusedHead(own.in_features, theirs.in_features, theirs.out_features, bias=theirs.bias is not None)
    reused.head.load_state_dict(copied(theirs).state_dict())
    return replace_module(student, places[0], reused)
