"""Terms that compare the outputs of the student with those of the teacher (response-based distillation)."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.objectives.forward import Forward, MeanOver
from mirabelle.objectives.objective import Term
from mirabelle.records.record import NotNegative, Positive, record
from mirabelle.records.schedules import Annealed, value_at

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.task.batch import Batch, Outputs
    from mirabelle.task.outputs import OutputKind
    from mirabelle.task.task import Task

Temperature = Positive | Annealed
Temperatures = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Decisions(Term):
    """The common part of the terms that compare the student's outputs with the teacher's.

    A subclass implements `compare`. Class scores of several tokens or positions are passed to it with the classes in the last
    dimension; tokens without a label are left out. If no token has a label, the loss is 0.
    """

    needs_teacher = True
    mean_over: ClassVar[MeanOver] = "places"
    compares: ClassVar[Literal["classes", "labels", "numbers"]] = "classes"
    """What the term takes outputs for: a softmax needs classes that exclude each other, a sigmoid logits."""

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.bound_objective import BoundFunction

        del model, example
        self._check(task.outputs)
        temperature = getattr(self, "temperature", 1.0)
        if isinstance(temperature, Annealed) and min(temperature.start, temperature.end) <= 0:
            raise UserError("E110", f"temperature must be above 0; got {temperature}", "start and end with a value above 0")
        return BoundFunction(partial(self._compared, kind=task.outputs))

    def _check(self, kind: OutputKind) -> None:
        """Raise E111 if the term would take the outputs for what they are not."""
        form, name = kind.form.value, type(self).__name__
        if self.compares == "classes" and form in ("labels", "numbers"):
            message = f"{name} compares classes of which one is right; by the loss the outputs are {form}"
            raise UserError("E111", message, "use MultiLabel" if form == "labels" else "use Regression")
        if self.compares == "labels" and form == "labels" and kind.activation is None:
            message = f"{name} takes logits; by the loss the outputs are probabilities"
            raise UserError("E111", message, 'use Regression, or the loss "binary_cross_entropy" of logits')

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """The scalar loss of two outputs of the same shape.

        Args:
            student: outputs of the student, classes in the last dimension.
            teacher: outputs of the teacher, of the same shape.
            batch: the batch that both were computed for.
            temperature: the temperature at the present progress of the training.
        """

    def _compared(self, forward: Forward, *, kind: OutputKind) -> Tensor:
        from mirabelle.numerics.several_outputs import UNLABELLED
        from mirabelle.numerics.target_shapes import are_one_class_each_place

        assert forward.teacher is not None, "Objective.bind refuses a task without teacher"
        student, teacher = forward.outputs, forward.teacher.outputs
        shapes = [_shapes(outputs) for outputs in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise UserError(
                "E111",
                f"the student gives outputs of shape {shapes[0]} for each sample, the teacher {shapes[1]}",
                "use a teacher and a student with the same classes",
            )
        if isinstance(student, tuple):
            return self._compared_each(student, teacher, forward.batch)
        targets = forward.batch.targets
        student, teacher = kind.with_classes_last(student), kind.with_classes_last(teacher)
        if are_one_class_each_place(student, targets):  # one label for each token, some of them padding
            student, teacher = student[targets != UNLABELLED], teacher[targets != UNLABELLED]
        temperature = value_at(getattr(self, "temperature", 1.0), forward.progress)
        return self.compare(student, teacher, forward.batch, temperature)

    def _compared_each(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The loss of a model with several outputs; only distances are defined for outputs of every kind."""
        del teacher, batch
        message = f"{type(self).__name__} compares class scores of one output; the model has {len(student)} outputs"
        raise UserError("E111", message, "use Regression, or the loss of the task")


def _shapes(outputs: Outputs) -> str:
    """The shapes of the outputs without the batch dimension, as text for a message."""
    from mirabelle.task.batch import parts_of

    return " and ".join(str(tuple(part.shape[1:])) for part in parts_of(outputs))


@record
class SoftTargets(Decisions):
    """Soft targets: T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    Args:
        temperature: T > 0. A higher temperature gives more weight to the teacher's ranking of the wrong classes. May change
            during training (`schedules.Annealed`).
        standardize: scale the logits of every sample to mean 0 and standard deviation 1 over the classes first, so that the
            student need not match the range of the teacher's logits; T = 2 is a good starting value then.

    Example:
        >>> objective = 0.9 * SoftTargets(temperature=4.0)
        >>> objective.needs_teacher
        True

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531; standardized: Sun, Ren, Li, Wang, Cao 2024, arXiv:2403.01427.
    """

    temperature: Temperature = 4.0
    standardize: bool = False

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import soft_target_divergence, standardized

        del batch
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        return soft_target_divergence(student, teacher, temperature)


@record
class DKD(Decisions):
    """Decoupled knowledge distillation: T² · (α · KL of target class versus rest + β · KL among the other classes).

    In `SoftTargets` the weight of the second part decreases as the teacher becomes more confident; here it is β. Every sample
    must have exactly one correct class.

    Args:
        temperature: T > 0.
        alpha: α, weight of the part that compares the target class with the rest.
        beta: β, weight of the part that compares the other classes; 1 to 8, higher for a more confident teacher.

    Raises:
        UserError: E111 if the targets are not class indices of shape (batch,).

    Example:
        >>> from mirabelle.objectives import TaskLoss
        >>> (TaskLoss() + DKD(beta=2.0)).needs_teacher
        True

    Source: Zhao, Cui, Song, Qiu, Liang 2022, arXiv:2203.08679.
    """

    temperature: Temperature = 4.0
    alpha: NotNegative = 1.0
    beta: NotNegative = 8.0

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import decoupled_divergence
        from mirabelle.numerics.target_shapes import are_one_class

        unlabelled = not batch.targets.is_floating_point() and bool((batch.targets < 0).any())
        if unlabelled or not are_one_class(student, batch.targets):
            raise UserError(
                "E111",
                f"DKD needs one correct class for each sample; got targets of shape {tuple(batch.targets.shape)} "
                f"for outputs of shape {tuple(student.shape)}" + (", some without a class" if unlabelled else ""),
                "use SoftTargets, or MultiLabel where a sample has several labels",
            )
        return decoupled_divergence(
            student,
            teacher,
            batch.targets,
            temperature=temperature,
            target_weight=self.alpha,
            other_weight=self.beta,
        )


@record
class DIST(Decisions):
    """Correlation distillation: T² · (β · mean_n (1 − ρ_n) + γ · mean_k (1 − ρ_k)).

    ρ_n is Pearson's correlation of the student's and the teacher's probabilities over the classes of sample n, ρ_k that over
    the samples of class k in the batch; probabilities are softmax(logits / T). The relative order of the scores counts, not
    their values; useful if the teacher is much stronger than its student.

    Args:
        temperature: T > 0.
        beta: β, weight of the correlation over the classes of a sample.
        gamma: γ, weight of the correlation over the samples of a class within the batch.

    Example:
        >>> (2.0 * DIST()).needs_teacher
        True

    Source: Huang, You, Wang, Qian, Xu 2022, arXiv:2205.10536.
    """

    temperature: Temperature = 1.0
    beta: NotNegative = 1.0
    gamma: NotNegative = 1.0

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import correlation_distance

        del batch
        flat = student.flatten(0, -2), teacher.flatten(0, -2)
        return correlation_distance(*flat, temperature, self.beta, self.gamma)


@record
class MLKD(Decisions):
    """Multi-level logit distillation: Σ_T (soft targets + relations of the samples in a batch + γ · relations of the classes).

    The relations of the classes are squared sums over the batch, so they grow with (batch / classes)². The paper uses 64
    samples and 100 classes; with 128 samples and 10 classes this part dominates the loss and training may collapse: use
    γ = (classes / batch)² in such a case.

    Args:
        temperatures: the temperatures T, each > 0, over which the loss is summed.
        by_class: γ ≥ 0, weight of the relations of the classes.

    Example:
        >>> MLKD(temperatures=(2.0, 4.0)).needs_teacher
        True

    Source: Jin, Wang, Lin 2023, "Multi-Level Logit Distillation", CVPR.
    """

    temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
    by_class: NotNegative = 1.0

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import multi_level_divergence

        del batch, temperature
        return multi_level_divergence(student.flatten(0, -2), teacher.flatten(0, -2), self.temperatures, self.by_class)


@record
class ReverseKL(Decisions):
    """Reverse KL divergence: T² · KL(softmax(student / T) ‖ softmax(teacher / T)), mean over the batch.

    It is mode-seeking: the student is penalized for probability on classes that the teacher finds unlikely.

    Args:
        temperature: T > 0.

    Example:
        >>> ReverseKL().temperature
        1.0

    Source: Gu, Dong, Wei, Huang 2024, arXiv:2306.08543.
    """

    temperature: Temperature = 1.0

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import reverse_divergence

        del batch
        return reverse_divergence(student, teacher, temperature)


@record
class JensenShannon(Decisions):
    """Generalized Jensen-Shannon divergence: T² · (β · KL(p ‖ m) + (1 − β) · KL(q ‖ m)), m = β·p + (1 − β)·q.

    p is softmax(teacher / T), q is softmax(student / T); mean over the batch.

    Args:
        temperature: T > 0.
        beta: β in (0, 1); 1/2 is the symmetric divergence, near 0 it behaves like the forward KL, near 1 like the reverse KL.

    Example:
        >>> JensenShannon(beta=0.5).needs_teacher
        True

    Source: Agarwal et al. 2024, arXiv:2306.13649.
    """

    temperature: Temperature = 1.0
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import jensen_shannon_divergence

        del batch
        return jensen_shannon_divergence(student, teacher, temperature, self.beta)


@record
class MultiLabel(Decisions):
    """Multi-label distillation: T² · KL(sigmoid(teacher / T) ‖ sigmoid(student / T)) of each label's Bernoulli distribution.

    The mean is taken over labels and batch. For tasks in which a sample may have several labels.

    Args:
        temperature: T > 0.

    Example:
        >>> MultiLabel().needs_teacher
        True

    Source: Yang, Shen, Huang, Qiu 2023, arXiv:2308.06453.
    """

    compares: ClassVar[Literal["classes", "labels", "numbers"]] = "labels"
    temperature: Temperature = 1.0

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import bernoulli_divergence

        del batch
        return bernoulli_divergence(student, teacher, temperature)


@record
class Regression(Decisions):
    """Mean squared error between the outputs of student and teacher: mean (student − teacher)², for regression or raw logits.

    For a model with several outputs it is the unweighted mean of their errors; the task loss "matching" scales each output by
    its variance instead.

    Example:
        >>> (0.5 * Regression()).needs_teacher
        True

    Source: Ba, Caruana 2014, arXiv:1312.6184.
    """

    compares: ClassVar[Literal["classes", "labels", "numbers"]] = "numbers"

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        import torch.nn.functional as F

        from mirabelle.numerics.selections import mean_of

        del batch, temperature
        return mean_of(F.mse_loss, student.float(), teacher.float())

    def _compared_each(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch) -> Tensor:
        import torch

        pairs = zip(student, teacher, strict=True)
        return torch.stack([self.compare(one, other, batch, 1.0) for one, other in pairs]).mean()
