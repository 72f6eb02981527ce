"""How samples relate as a target: terms over the embedding of a sample, what the last linear layer is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mirabelle.objectives.objective import Term
from mirabelle.records.record import Count, NotNegative, Patterns, Positive, record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.objectives.layer_matching import Pair
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


_PAIR, _TRIPLE = 2, 3  # samples


@record
class EmbeddingTerm(Term):
    """A comparison of one embedding of the student with one of the teacher.

    Args:
        layers: the student's layer, or "name:input" for what a layer is given; by default what the last linear layer is given.
        teacher_layers: the teacher's.

    Raises:
        UserError: E112 a name that matches nothing, or a model without linear layer; E111 several layers.
    """

    needs_teacher = True

    layers: Patterns = ()
    teacher_layers: Patterns = ()

    def embeddings(self, model: nn.Module, task: Task, example: Batch) -> Pair:
        """The two layers."""
        from mirabelle.objectives.layer_matching import embeddings_of

        assert task.teacher is not None, "Objective.bind refuses a task without teacher"
        return embeddings_of(model, task.teacher, example, (self.layers, self.teacher_layers))


@record
class RKD(EmbeddingTerm):
    """Relational distillation: δ · (distances of all pairs of samples) + γ · (angles at all triples), of both compared.

    Needs no map between widths; batches of up to about 200 samples, as there are batch³ angles. A batch without a pair, or
    without a triple, has none.

    Args:
        distance: δ, weight of the distances.
        angle: γ, weight of the angles.

    Raises:
        UserError: E112 and E111 as `EmbeddingTerm`.

    Example:
        >>> RKD(angle=0.0).distance
        25.0

    Source: Park, Kim, Lu, Cho 2019, arXiv:1904.05068.
    """

    distance: NotNegative = 25.0
    angle: NotNegative = 50.0

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.projection import PairedFeatures

        return PairedFeatures([self.embeddings(model, task, example)], self.compare)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of two embeddings, (batch, ...) each."""
        from mirabelle.numerics.relations import angle_relation, distance_relation

        loss = 0.0 * student.sum()
        if self.distance and len(student) >= _PAIR:
            loss = loss + self.distance * distance_relation(student, teacher)
        if self.angle and len(student) >= _TRIPLE:
            loss = loss + self.angle * angle_relation(student, teacher)
        return loss


@record
class SimKD(EmbeddingTerm):
    """mean (p(s) − t)²: the student's embedding, projected, is the teacher's; the teacher's own head decides from it.

    For students with `distill.Student(head = "teacher")`, whose projector p stays in the model. The paper trains with this term
    alone.

    Args:
        layers: the student's projector; by default found.
        teacher_layers: the teacher's embedding; by default what its last linear layer is given.

    Raises:
        UserError: E112 and E111 as `EmbeddingTerm`, E111 for a student whose embedding is of another width than the teacher's.

    Example:
        >>> SimKD().needs_teacher
        True

    Source: Chen, Mei, Zhang, Wang, Feng, Chen 2022, arXiv:2203.14001.
    """

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.errors import UserError
        from mirabelle.objectives.projection import PairedFeatures

        pair = self.embeddings(model, task, example)  # what the student's last linear layer is given comes from the projector
        if pair.student.shape != pair.teacher.shape:
            message = f"layer {pair.student} of the student does not have the width of {pair.teacher} of the teacher"
            raise UserError("E111", message, 'take distill.Student(head = "teacher"), or use Hint')
        return PairedFeatures([pair], self.compare)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of two embeddings of one shape."""
        import torch.nn.functional as F

        return F.mse_loss(student, teacher)


@record
class CRD(EmbeddingTerm):
    """Contrastive distillation: the student's embedding of a sample is told from the teacher's embeddings of other samples.

    −log h(u) − Σ log(1 − h(v)), h(x) = eˣ / Z / (eˣ / Z + M / N), of u, v the products of normalized embeddings over the
    temperature; once with the student as anchor, once with the teacher. Z is N times the mean of eᵛ over the first batch, as in
    the authors' code. Both sides are mapped to `width` by linear layers that are trained along and dropped; the other samples'
    embeddings come from banks that move along with a momentum.

    Args:
        temperature: of the products.
        negatives: M, other samples for each batch, drawn anew.
        width: of the embeddings that are compared.
        momentum: of the banks.

    Raises:
        UserError: E112 and E111 as `EmbeddingTerm`, E111 for data that come as a stream: samples must be known again.

    Example:
        >>> (0.8 * CRD(negatives=1024)).needs_teacher
        True

    Source: Tian, Krishnan, Isola 2020, arXiv:1910.10699.
    """

    temperature: Positive = 0.07
    negatives: Count = 4096
    width: Count = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.contrastive import Contrastive

        return Contrastive(
            self.embeddings(model, task, example),
            task,
            temperature=self.temperature,
            negatives=self.negatives,
            width=self.width,
            momentum=self.momentum,
        )
