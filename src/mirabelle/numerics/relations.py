"""Distances between features of a student and its teacher, and between relations within these features.

Features are tensors of shape (batch, ...). Where only relations are compared, the features of student and teacher may have
different widths. Every function returns a scalar, which is 0 if there is nothing to compare.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.numerics.selections import mean_of

_TINY = 1e-12
_HIDDEN = -1e30  # masked score: the softmax gives exactly 0, without NaN


def attention_of_places(features: Tensor) -> Tensor:
    """Spatial attention map: Σ_c |f_c|² at every position, scaled to norm 1.

    Args:
        features: (batch, channels, ...), such as the output of a convolution.

    Returns:
        (batch, positions).

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928, section 3.1, F²_sum.
    """
    return F.normalize(features.square().sum(1).flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the spatial attention maps Q of student and teacher: mean (Q_student − Q_teacher)².

    Q is `attention_of_places`. The numbers of channels may differ, the numbers of positions may not. The paper uses the norm of
    the difference; the code of its authors uses this mean of squares, which has a gradient also at zero.

    Args:
        student: (batch, channels, ...).
        teacher: (batch, other channels, ...), with the same number of positions.

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928, equation 2.
    """
    return (attention_of_places(student) - attention_of_places(teacher)).square().mean()


def feature_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback–Leibler divergence of features: L = T² · mean_n KL(softmax(t_n / T) ‖ softmax(s_n / T)).

    The softmax is over all elements of the features of a sample.

    Args:
        student: (batch, ...).
        teacher: of the same shape.
        temperature: T > 0.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, with features in place of logits.
    """
    from mirabelle.numerics.divergence import soft_target_divergence

    return soft_target_divergence(student.flatten(1), teacher.flatten(1), temperature)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of the similarities between the samples of a batch: ‖G_s − G_t‖²_F / batch².

    G = F·Fᵀ with the flattened features F, (batch, batch), every row scaled to norm 1.

    Args:
        student: (batch, ...).
        teacher: (batch, ...), of any width.

    Source: Tung, Mori 2019, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, equations 1 to 4.
    """

    def similarity(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return F.normalize(flat @ flat.T, dim=1)

    return (similarity(student) - similarity(teacher)).square().mean()


def distance_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the pairwise distances of samples, each divided by the mean distance of its own network.

    L = mean_{i≠j} h(‖s_i − s_j‖ / μ_s − ‖t_i − t_j‖ / μ_t), h(x) = x²/2 for |x| ≤ 1, |x| − 1/2 beyond

    Args:
        student: (batch, ...).
        teacher: (batch, ...), of any width.

    Source: Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation", arXiv:1904.05068, equations 4 to 7.
    """

    def relations(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        one, other = torch.triu_indices(len(flat), len(flat), 1, device=flat.device)
        # The gradient of the distance is undefined at zero; it is set to zero there.
        distances = (flat[one] - flat[other]).square().sum(1).clamp_min(_TINY).sqrt()
        return distances / distances.mean()

    return mean_of(F.smooth_l1_loss, relations(student), relations(teacher))


def angle_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles formed by all triples of samples.

    L = mean_{i,j,k distinct} h(cos ∠ s_i s_j s_k − cos ∠ t_i t_j t_k), h(x) = x²/2 for |x| ≤ 1, |x| − 1/2 beyond

    Args:
        student: (batch, ...).
        teacher: (batch, ...), of any width.

    Source: Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation", arXiv:1904.05068, equations 8 to 10.
    """

    def cosines(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        directions = F.normalize(flat[None] - flat[:, None], dim=2)  # [j, i] is from j to i
        return directions @ directions.transpose(1, 2)  # [j, i, k]

    count = len(student)
    j, i, k = torch.meshgrid(*[torch.arange(count, device=student.device)] * 3, indexing="ij")
    distinct = (i != j) & (j != k) & (i < k)
    return mean_of(F.smooth_l1_loss, cosines(student)[distinct], cosines(teacher)[distinct])


def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, real: Tensor | None = None
) -> Tensor:
    """Kullback–Leibler divergence of the relations between tokens, softmax(A·Bᵀ / √d), of teacher and student.

    L = mean over samples, heads and tokens of KL(softmax(a_t·b_tᵀ / √d_t) ‖ softmax(a_s·b_sᵀ / √d_s))

    A and B are queries and keys, or both the queries, the keys or the values of one layer. Widths and numbers of attention
    heads may differ, because both networks are split into the same number of relation heads.

    Args:
        student: A and B, each (batch, tokens, width), the width a multiple of `heads`.
        teacher: A and B, each (batch, tokens, other width), the width a multiple of `heads`.
        heads: number of relation heads.
        real: (batch, tokens), False for padding tokens, which are ignored; None for no padding.

    Source: Wang, Wei, Dong, Bao, Yang, Zhou 2020, "MiniLM", arXiv:2002.10957, equations 6 to 10; Wang, Bao, Huang, Dong, Wei
    2021, "MiniLMv2", arXiv:2012.15828, equations 6 to 8.
    """

    def logs(operands: tuple[Tensor, Tensor]) -> Tensor:
        one, other = (features.reshape(*features.shape[:2], heads, -1).transpose(1, 2) for features in operands)
        scores = one @ other.transpose(2, 3) / one.shape[-1] ** 0.5
        if real is None:
            return F.log_softmax(scores, dim=-1)
        masked = scores.masked_fill(~real[:, None, None, :], _HIDDEN)
        return F.log_softmax(masked, dim=-1).transpose(1, 2)[real]

    log_q, log_p = logs(student), logs(teacher)
    distributions = log_q.numel() // log_q.shape[-1]
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / max(distributions, 1)


def pyramid_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of feature maps and of their average-pooled versions (hierarchical context loss).

    L = Σ_l w_l · mean (pool_l(s) − pool_l(t))² / Σ_l w_l, with w = 1 for the map itself and ½, ¼, ⅛ for pooling to 4 × 4, 2 × 2
    and 1 × 1; pooled sizes that are not smaller than the map are skipped

    Args:
        student: (batch, channels, height, width).
        teacher: of the same shape.

    Source: Chen, Liu, Zhao, Jia 2021, "Distilling Knowledge via Knowledge Review", arXiv:2104.09044.
    """
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (4, 2, 1):
        weight /= 2
        if side < student.shape[2]:
            one, other = (F.adaptive_avg_pool2d(features, side) for features in (student, teacher))
            total, weights = total + weight * F.mse_loss(one, other), weights + weight
    return total / weights


def contrastive_estimate(positive: Tensor, negative: Tensor, samples: int) -> Tensor:
    """Contrastive loss for telling the pair of the same sample from pairs of different samples.

    L = −mean_n (log h(u_n) + Σ_m log(1 − h(v_nm))), h(u) = e^u / (e^u + M / N)

    Args:
        positive: u, similarity of student and teacher on the same sample, divided by the temperature, (batch,).
        negative: v, similarities to M other samples, divided by the temperature, (batch, M).
        samples: N, number of training samples.

    Source: Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation", arXiv:1910.10699, equations 15 to 19.
    """
    noise = math.log(negative.shape[1] / samples)
    return -(F.logsigmoid(positive - noise) + F.logsigmoid(noise - negative).sum(1)).mean()
