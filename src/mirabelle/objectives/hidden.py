"""Terms that compare outputs of hidden layers of the student with those of the teacher (feature-based distillation)."""

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
    """The common part of the terms that compare layers of the student with layers of the teacher; the mean over the pairs.

    Args:
        layers: names of the student's layers. A name with "*" selects the outermost layers that match. "name" is the first
            tensor that a layer returns, "name[k]" its tensor number k.
        teacher_layers: names of the teacher's layers, paired with the student's in the order given. If one side is not named,
            its layers are chosen automatically, evenly over the depth: the last layer of every size of feature maps, the
            layers of a transformer, or the last layer of every width of a multilayer perceptron.

    Raises:
        UserError: E112 if a pattern matches no layer, E111 if layers cannot be paired or compared.
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
        """The pairs of layers that are compared."""
        from mirabelle.objectives.layer_matching import pairs_of

        assert task.teacher is not None, "Objective.bind refuses a task without teacher"
        return pairs_of(model, task.teacher, example, (self.layers, self.teacher_layers), self.kinds)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar loss of the features of one pair of layers."""


@record
class Hint(FeatureTerm):
    """Hints (FitNets): mean (r(s) − t)² over all elements, s and t the features of student and teacher.

    r is a learned linear map from the student's width to the teacher's (a 1 × 1 convolution for feature maps). It is trained
    with the student and dropped afterwards; if the widths are equal, r is the identity.

    Args:
        layers: patterns of the student's layers; by default chosen by depth and shape.
        teacher_layers: patterns of the teacher's layers.

    Raises:
        UserError: E112 if a pattern matches no layer, E111 if layers cannot be paired or compared.

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
    """KL divergence of features: T² · KL(softmax(t / T) ‖ softmax(r(s) / T)), softmax over all elements of a sample's features.

    s and t are the features of student and teacher. r is a learned linear map from the student's width to the teacher's (a
    1 × 1 convolution for feature maps), trained with the student and dropped afterwards; if the widths are equal, r is the
    identity. Combined with a term over the outputs it gives L = α · L_feature + (1 − α) · L_decision.

    Args:
        layers: patterns of the student's layers; by default chosen by depth and shape.
        teacher_layers: patterns of the teacher's layers.
        temperature: T > 0.

    Raises:
        UserError: E112 if a pattern matches no layer, E111 if layers cannot be paired or compared.

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
    """Attention transfer: ‖Q(s) − Q(t)‖², Q = Σ_c |f_c|² at every position, scaled to norm 1.

    f_c is channel c of a feature map, so Q shows at which positions the activations are large. For feature maps of
    convolutional networks; the numbers of channels may differ.

    Args:
        layers: patterns of the student's layers; by default the last layer of every size of feature maps.
        teacher_layers: patterns of the teacher's layers.

    Raises:
        UserError: E112 if a pattern matches no layer, E111 if layers cannot be paired or compared.

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
    """Similarity-preserving distillation: ‖G_s − G_t‖²_F / batch², G = F·Fᵀ with rows scaled to norm 1.

    F is the (batch, features) matrix of a layer's output, so G holds the similarity of every two samples in the batch. The
    widths may differ.

    Args:
        layers: patterns of the student's layers; by default chosen by depth and shape.
        teacher_layers: patterns of the teacher's layers.

    Raises:
        UserError: E112 if a pattern matches no layer, E111 if layers cannot be paired or compared.

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
    """Knowledge review: L = Σ_l pyramid_distance(fused_l, t_l) / pairs, fused_l the student's map l fused with deeper maps.

    The fusion (convolutions, and an attention that weighs two maps at every position) is trained with the student and dropped
    afterwards. pyramid_distance is the mean squared error of two maps, pooled to several sizes.

    Args:
        layers: patterns of the student's layers; by default the last layer of every size of feature maps.
        teacher_layers: patterns of the teacher's layers.
        width: number of channels in which maps are fused.

    Raises:
        UserError: E112 if a pattern matches no layer, E111 if layers cannot be paired or compared.

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
