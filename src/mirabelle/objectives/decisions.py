"""The teacher's decisions as targets: terms that look at the outputs of both and at nothing else."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.objectives.forward import Forward
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
    """A comparison of the student's outputs with the teacher's."""

    needs_teacher = True

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.bound_objective import BoundFunction

        del model, example
        temperature = getattr(self, "temperature", 1.0)
        if isinstance(temperature, Annealed) and min(temperature.start, temperature.end) <= 0:
            raise UserError("E110", f"temperature must be above 0; got {temperature}", "begin and end above 0")
        return BoundFunction(partial(self._compared, kind=task.outputs))

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """The loss, a scalar, of outputs of the same shape, at the temperature of the moment."""

    def _compared(self, forward: Forward, *, kind: OutputKind) -> Tensor:
        from mirabelle.numerics.several_outputs import UNLABELLED
        from mirabelle.numerics.target_shapes import are_one_class_each_place

        assert forward.teacher is not None, "Objective.bind refuses a task without teacher"
        student, teacher = forward.outputs, forward.teacher.outputs
        shapes = [_shapes(outputs) for outputs in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise UserError(
                "E111",
                f"student gives {shapes[0]} outputs a sample, the teacher {shapes[1]}",
                "take a teacher and a student with the same classes",
            )
        if isinstance(student, tuple):
            return self._compared_each(student, teacher, forward.batch)
        targets = forward.batch.targets
        student, teacher = kind.with_classes_last(student), kind.with_classes_last(teacher)
        if are_one_class_each_place(student, targets):  # some places are padding
            student, teacher = student[targets != UNLABELLED], teacher[targets != UNLABELLED]
        temperature = value_at(getattr(self, "temperature", 1.0), forward.progress)
        return self.compare(student, teacher, forward.batch, temperature)

    def _compared_each(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Of several outputs; only distances make sense for all kinds of them."""
        del teacher, batch
        message = f"{type(self).__name__} compares class scores; the model gives {len(student)} outputs"
        raise UserError("E111", message, "use Regression, or the loss of the task")


def _shapes(outputs: Outputs) -> str:
    """As people read them, without the batch axis."""
    from mirabelle.task.batch import parts_of

    return " and ".join(str(tuple(part.shape[1:])) for part in parts_of(outputs))


@record
class SoftTargets(Decisions):
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    Args:
        temperature: T > 0; the higher, the more the teacher's ranking of wrong classes counts. May change while a model trains
            (`schedules.Annealed`).
        standardize: logits are first brought to mean 0 and deviation 1 over the classes of each decision, so that a student
            need not learn the range of the teacher's; T = 2 is a good start then.

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
    """Decoupled distillation: T² · (α · KL of the target class against the rest + β · KL among the other classes).

    In `SoftTargets` the second part counts the less the surer the teacher is; here it counts as β says. For samples of one
    right class each.

    Args:
        temperature: T > 0.
        alpha: α, weight of the target class against the rest.
        beta: β, weight of the other classes among themselves; 1 to 8, higher for a surer teacher.

    Raises:
        UserError: E111 when targets are not class indices of shape (batch,).

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
                f"DKD needs the one right class of each sample; got targets of shape {tuple(batch.targets.shape)} "
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
    """T² · (β · what the classes' correlation lacks to one + γ · what the samples' does): the order counts, not the values.

    Suits a teacher that is far stronger than its student.

    Args:
        temperature: T > 0.
        beta: β, weight of the relations between the classes of a sample.
        gamma: γ, weight of the relations between the samples of a class, over a batch.

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
    """Multi-level distillation: Σ_T (soft targets + how samples of a batch relate + γ · how classes relate).

    How classes relate is a sum over the batch, squared, so that it grows with (batch / classes)². The paper has 64 samples of
    100 classes; with 128 of 10 it outweighs all the rest and a training may collapse: take γ = (classes / batch)² there.

    Args:
        temperatures: each T > 0.
        by_class: γ ≥ 0.

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
    """T² · KL(softmax(student / T) ‖ softmax(teacher / T)): the student keeps to what the teacher finds likely.

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
    """T² · (β · KL(p ‖ m) + (1 − β) · KL(q ‖ m)) with the teacher's p, the student's q and m = β·p + (1 − β)·q.

    Args:
        temperature: T > 0.
        beta: β in (0, 1); 1/2 is the symmetric divergence, near 0 it behaves as the forward one, near 1 as the reverse one.

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
    """For several labels a sample: T² · KL between the two Bernoulli decisions of every label, mean over labels and batch.

    Args:
        temperature: T > 0.

    Example:
        >>> MultiLabel().needs_teacher
        True

    Source: Yang, Shen, Huang, Qiu 2023, arXiv:2308.06453.
    """

    temperature: Temperature = 1.0

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        from mirabelle.numerics.divergence import bernoulli_divergence

        del batch
        return bernoulli_divergence(student, teacher, temperature)


@record
class Regression(Decisions):
    """Mean squared distance of the outputs to the teacher's: the matching loss of regression, and of bare logits.

    Of several outputs it is the mean over them, each as it is; the loss "matching" of a task weighs them by their variance.

    Example:
        >>> (0.5 * Regression()).needs_teacher
        True

    Source: Ba, Caruana 2014, arXiv:1312.6184.
    """

    def compare(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        import torch.nn.functional as F

        del batch, temperature
        return F.mse_loss(student.float(), teacher.float())

    def _compared_each(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch) -> Tensor:
        import torch

        pairs = zip(student, teacher, strict=True)
        return torch.stack([self.compare(one, other, batch, 1.0) for one, other in pairs]).mean()
