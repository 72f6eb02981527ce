"""The teacher's features as targets: terms that look at what layers between input and output give."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from mirabelle.objectives.forward import Kind
from mirabelle.objectives.objective import Term
from mirabelle.records.record import Count, Patterns, Positive, record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.objectives.layer_matching import Pair
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


@record
class FeatureTerm(Term):
    """A comparison of layers of the student with layers of the teacher, mean over their pairs.

    Args:
        layers: names of the student's layers, whole or with "*", which takes the outermost layers that match; what a layer
            gives besides its first tensor is "name[k]".
        teacher_layers: of the teacher's, paired with the student's in the order in which they are named. Where one side is
            not named, its layers are found: the last of every size of maps, the layers of a transformer, or the last of every
            width of a perceptron, spread evenly over the depth.

    Raises:
        UserError: E112 a pattern that matches nothing, E111 layers that cannot be paired or compared.
    """

    needs_teacher = True
    kinds: ClassVar[tuple[Kind, ...]] = ("maps", "tokens", "vectors")
    projects: ClassVar[bool] = False
    resizes: ClassVar[bool] = True
    real_tokens: ClassVar[bool] = False

    layers: Patterns = ()
    teacher_layers: Patterns = ()

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.projection import PairedFeatures

        settings = {"projects": self.projects, "resizes": self.resizes, "real_tokens": self.real_tokens}
        return PairedFeatures(self.pairs(model, task, example), self.compare, **settings)

    def pairs(self, model: nn.Module, task: Task, example: Batch) -> list[Pair]:
        """The layers that are compared."""
        from mirabelle.objectives.layer_matching import pairs_of

        assert task.teacher is not None, "Objective.bind refuses a task without teacher"
        return pairs_of(model, task.teacher, example, (self.layers, self.teacher_layers), self.kinds)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of the features of one pair."""


@record
class Hint(FeatureTerm):
    """mean (r(s) − t)² over all elements: a layer of the student, through a linear map r, gives what the teacher's does.

    r maps the width, place by place (a convolution of 1 × 1 for maps), is trained along and dropped; where both widths are
    equal there is none.

    Args:
        layers: patterns of the student's layers; by default found by depth and shape.
        teacher_layers: patterns of the teacher's.

    Raises:
        UserError: E112 a pattern that matches nothing, E111 layers that cannot be paired or compared.

    Example:
        >>> (0.5 * Hint(layers=("layer2",), teacher_layers=("layer2",))).needs_teacher
        True

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets", arXiv:1412.6550.
    """

    projects: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.mse_loss(student, teacher)


@record
class FeatureKL(FeatureTerm):
    """T² · KL(softmax(t / T) ‖ softmax(r(s) / T)) over all elements of a sample's features, r as in `Hint`.

    With a decision term it is `L = α·L_feature + (1−α)·L_decision`.

    Args:
        layers: patterns of the student's layers; by default found by depth and shape.
        teacher_layers: patterns of the teacher's.
        temperature: T > 0.

    Raises:
        UserError: E112 a pattern that matches nothing, E111 layers that cannot be paired or compared.

    Example:
        >>> from mirabelle.objectives import SoftTargets
        >>> len((0.3 * FeatureKL(temperature=2.0) + 0.7 * SoftTargets()).terms)
        2

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, with features for logits.
    """

    projects: ClassVar[bool] = True

    temperature: Positive = 1.0

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        from mirabelle.numerics.relations import feature_divergence

        return feature_divergence(student, teacher, self.temperature)


@record
class AttentionTransfer(FeatureTerm):
    """‖Q(s) − Q(t)‖², Q = Σ_c |f_c|² at every place, scaled to norm 1: the student looks where the teacher looks.

    Needs no map between widths. For maps of convolutions.

    Args:
        layers: patterns of the student's layers; by default the last of every size of maps.
        teacher_layers: patterns of the teacher's.

    Raises:
        UserError: E112 a pattern that matches nothing, E111 layers that cannot be paired or compared.

    Example:
        >>> (100.0 * AttentionTransfer()).needs_teacher
        True

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("maps",)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        from mirabelle.numerics.relations import attention_distance

        return attention_distance(student, teacher)


@record
class SimilarityPreserving(FeatureTerm):
    """‖G_s − G_t‖²_F / batch², G = F·Fᵀ with rows of norm 1: what is alike for the teacher is alike for the student.

    Needs no map between widths.

    Args:
        layers: patterns of the student's layers; by default found by depth and shape.
        teacher_layers: patterns of the teacher's.

    Raises:
        UserError: E112 a pattern that matches nothing, E111 layers that cannot be paired or compared.

    Example:
        >>> (3000.0 * SimilarityPreserving()).needs_teacher
        True

    Source: Tung, Mori 2019, arXiv:1907.09682.
    """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        from mirabelle.numerics.relations import similarity_distance

        return similarity_distance(student, teacher)


@record
class ReviewKD(FeatureTerm):
    """Knowledge review: maps of the student, each joined with the deeper ones, are held against those of the teacher.

    L = Σ_l pyramid_distance(joined_l, t_l) / pairs; what joins them, attention over two maps and convolutions, is trained
    along and dropped.

    Args:
        layers: patterns of the student's layers; by default the last of every size of maps.
        teacher_layers: patterns of the teacher's.
        width: channels in which maps are joined.

    Raises:
        UserError: E112 a pattern that matches nothing, E111 layers that cannot be paired or compared.

    Example:
        >>> (1.0 * ReviewKD()).needs_teacher
        True

    Source: Chen, Liu, Zhao, Jia 2021, arXiv:2104.09044.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("maps",)

    width: Count = 64

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.review import Review

        return Review(self.pairs(model, task, example), self.compare, self.width)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        from mirabelle.numerics.relations import pyramid_distance

        return pyramid_distance(student, teacher)
