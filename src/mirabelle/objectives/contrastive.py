"""The bound form of contrastive distillation (CRD): two trained linear maps and two memory banks of embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.numerics.relations import contrastive_estimate
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.layer_matching import Pair
from mirabelle.task.samples import Samples

if TYPE_CHECKING:
    from mirabelle.task.task import Task


class Contrastive(nn.Module):
    """The contrastive loss between the embeddings of student and teacher, with each side once as the anchor.

    The formula is in the docstring of `objectives.CRD`.

    Args:
        pair: the layers that give the embedding of the student and of the teacher.
        task: its training samples are the instances that the loss distinguishes.
        temperature: divides the inner products of normalized embeddings.
        negatives: number of negative samples for each batch.
        width: dimension of the space in which the embeddings are compared.
        momentum: of the memory banks, in [0, 1).

    Raises:
        UserError: E111 if the training data are a stream, or if a layer does not give one vector for each sample.
    """

    def __init__(self, pair: Pair, task: Task, *, temperature: float, negatives: int, width: int, momentum: float) -> None:
        super().__init__()
        if not isinstance(task.train, Samples):
            message = "CRD needs an index for every training sample, and the training data are a stream without one"
            raise UserError("E111", message, "give the data as samples, or use RKD")
        self.pair, self.count = pair, len(task.train)
        self.temperature, self.negatives, self.momentum = temperature, negatives, momentum
        self.student_layers, self.teacher_layers = (pair.student.name,), (pair.teacher.name,)
        self.maps = nn.ModuleList(nn.Linear(layer.shape[-1], width) for layer in (pair.student, pair.teacher))
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", F.normalize(torch.randn(self.count, width), dim=1))
        self.register_buffer("log_sums", torch.full((2,), torch.nan))  # log Z of each side, set by the first batch
        if len(pair.student.shape) != 2 or len(pair.teacher.shape) != 2:  # noqa: PLR2004
            message = (
                f"layers {pair.student} of the student and {pair.teacher} of the teacher do not give embeddings of samples"
            )
            raise UserError("E111", message, "name layers that give one vector for each sample")

    def forward(self, forward: Forward) -> Tensor:
        assert forward.teacher is not None, "Objective.bind refuses a task without teacher"
        index = forward.batch.index
        if index is None:
            raise UserError("E111", "CRD needs the index of every sample, and this batch has no indices", "use RKD")
        features = forward.features[self.pair.student.name], forward.teacher.features[self.pair.teacher.name]
        one, other = (F.normalize(mapped(part.float()), dim=-1) for mapped, part in zip(self.maps, features, strict=True))
        banks: tuple[Tensor, Tensor] = self.student_bank, self.teacher_bank  # type: ignore[assignment]
        drawn = torch.randint(self.count, (min(self.negatives, self.count),))
        loss = self._estimate(0, (one, other, banks[1]), index, drawn)
        loss = loss + self._estimate(1, (other, one, banks[0]), index, drawn)
        if torch.is_grad_enabled():
            self._move(banks, (one, other), index)
        return loss

    def _estimate(self, side: int, tensors: tuple[Tensor, Tensor, Tensor], index: Tensor, drawn: Tensor) -> Tensor:
        """The loss with one side as the anchor.

        `tensors` are the anchor's embeddings, the other side's embeddings of the same samples, and the other side's bank.
        """
        anchor, partner, bank = tensors
        same = (anchor * partner).sum(-1) / self.temperature
        others = anchor @ bank[drawn].T / self.temperature
        sums = self.get_buffer("log_sums")
        if torch.isnan(sums[side]):
            mean = others.detach().logsumexp((0, 1)) - math.log(others.numel())
            sums[side] = mean + math.log(self.count)
        others = others.masked_fill((index[:, None] == drawn).to(others.device), -torch.inf)  # a sample is not its own negative
        return contrastive_estimate(same - sums[side].clone(), others - sums[side].clone(), self.count)

    def _move(self, banks: tuple[Tensor, Tensor], embeddings: tuple[Tensor, Tensor], index: Tensor) -> None:
        with torch.no_grad():
            for bank, embedding in zip(banks, embeddings, strict=True):
                moved = self.momentum * bank[index] + (1 - self.momentum) * embedding
                bank[index] = F.normalize(moved, dim=-1)
