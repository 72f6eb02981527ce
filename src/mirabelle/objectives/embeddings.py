"""Terms that compare embeddings of samples, by default the input of the last linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mirabelle.objectives.objective import Term
from mirabelle.records.record import Count, NotNegative, Patterns, Positive, record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.objectives.layer_matching import Pair
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


@record
class EmbeddingTerm(Term):
    """The common part of the terms that compare one embedding of the student with one of the teacher.

    Args:
        layers: the student's layer: "name" for the output of a layer, "name:input" for its input; by default the input of the
            last linear layer.
        teacher_layers: the teacher's layer, written in the same way.

    Raises:
        UserError: E112 if a name matches no layer, or the model has no linear layer at its end; E111 if several layers are
            named.
    """

    needs_teacher = True

    layers: Patterns = ()
    teacher_layers: Patterns = ()

    def embeddings(self, model: nn.Module, task: Task, example: Batch) -> Pair:
        """The student's and the teacher's layer whose embeddings are compared."""
        from mirabelle.objectives.layer_matching import embeddings_of

        assert task.teacher is not None, "Objective.bind refuses a task without teacher"
        return embeddings_of(model, task.teacher, example, (self.layers, self.teacher_layers))


@record
class RKD(EmbeddingTerm):
    """Relational knowledge distillation: δ · (loss over distances of all pairs) + γ · (loss over angles of all triples).

    Distances between two samples and angles between three samples, in the student's embedding, are compared with those in the
    teacher's by a Huber loss. The two widths may differ. Use batches of up to about 200 samples, since there are batch³ angles.
    In a batch of one sample the loss is 0, in a batch of two there are only distances.

    Args:
        layers: the student's layer: "name" for the output of a layer, "name:input" for its input; by default the input of the
            last linear layer.
        teacher_layers: the teacher's layer, written in the same way.
        distance: δ, weight of the distances.
        angle: γ, weight of the angles.

    Raises:
        UserError: E112 if a name matches no layer, or the model has no linear layer at its end; E111 if several layers are
            named.

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
        """The scalar loss of two embeddings, each of shape (batch, ...)."""
        from mirabelle.numerics.relations import angle_relation, distance_relation
        from mirabelle.numerics.selections import nothing

        loss = nothing(student)
        if self.distance:
            loss = loss + self.distance * distance_relation(student, teacher)
        if self.angle:
            loss = loss + self.angle * angle_relation(student, teacher)
        return loss


@record
class SimKD(EmbeddingTerm):
    """Distillation with the teacher's classifier: mean (p(s) − t)², s and t the embeddings, p the student's projector.

    For students made by `distill.Student(head = "teacher")`: they end with the projector p, which stays in the model, and a
    copy of the teacher's last linear layer. The paper trains with this term alone.

    Args:
        layers: the student's projector; by default the input of the last linear layer, which is the projector's output.
        teacher_layers: the teacher's embedding; by default the input of its last linear layer.

    Raises:
        UserError: E112 if a name matches no layer, or the model has no linear layer at its end; E111 if several layers are
            named, or if the widths of the two embeddings differ.

    Example:
        >>> SimKD().needs_teacher
        True

    Source: Chen, Mei, Zhang, Wang, Feng, Chen 2022, arXiv:2203.14001.
    """

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.errors import UserError
        from mirabelle.objectives.projection import PairedFeatures

        pair = self.embeddings(model, task, example)  # the input of the student's last linear layer is the projector's output
        if pair.student.shape != pair.teacher.shape:
            message = f"layer {pair.student} of the student and layer {pair.teacher} of the teacher differ in width"
            raise UserError("E111", message, 'use distill.Student(head = "teacher"), or the term Hint')
        return PairedFeatures([pair], self.compare)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar loss of two embeddings of the same shape."""
        import torch.nn.functional as F

        return F.mse_loss(student, teacher)


@record
class CRD(EmbeddingTerm):
    """Contrastive representation distillation: −log h(u) − Σ log(1 − h(v)), h(x) = eˣ / Z / (eˣ / Z + M / N).

    u is the inner product of the student's and the teacher's normalized embedding of the same sample, divided by the
    temperature; v the same product for two different samples; N the number of training samples, M the number of negatives. The
    loss is summed over the student and the teacher as the anchor. Z is N times the mean of eᵛ over the first batch, as in the
    authors' code. Linear layers map both embeddings to `width` dimensions; they are trained with the student and dropped
    afterwards. Embeddings of negatives come from memory banks that are updated with a momentum.

    Args:
        layers: the student's layer: "name" for the output of a layer, "name:input" for its input; by default the input of the
            last linear layer.
        teacher_layers: the teacher's layer, written in the same way.
        temperature: > 0, divides the inner products.
        negatives: M, number of negative samples, drawn anew for each batch.
        width: dimension of the space in which embeddings are compared.
        momentum: of the memory banks, in [0, 1).

    Raises:
        UserError: E112 if a name matches no layer, or the model has no linear layer at its end; E111 if several layers are
            named, or if the training data are a stream, whose samples have no index.

    Example:
        >>> (0.8 * CRD(negatives=1024)).needs_teacher
        True

    Source: Tian, Krishnan, Isola 2020, arXiv:1910.10699.
    """

    remembers_samples: ClassVar[bool] = True

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
