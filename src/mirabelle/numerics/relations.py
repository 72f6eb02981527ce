"""How far apart features of a student and of its teacher are, by themselves and by their relations.

Features are tensors of shape (batch, ...); those of a student may have other widths wherever only relations are compared.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12
_HIDDEN = -1e30  # a score before the softmax that leaves nothing after it, and no NaN


def attention_of_places(features: Tensor) -> Tensor:
    """Where a layer looks: Σ_c |f_c|² at every place, scaled to norm 1; (batch, places).

    Args:
        features: (batch, channels, ...), such as the maps of a convolution.

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928, section 3.1, F²_sum.
    """
    return F.normalize(features.square().sum(1).flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and places of (Q_student − Q_teacher)², Q = `attention_of_places`; widths may differ, places not.

    The paper has the norm, its authors' code this mean of squares, which has a gradient at zero, too.

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928, equation 2.
    """
    return (attention_of_places(student) - attention_of_places(teacher)).square().mean()


def feature_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """L = T² · mean_n KL(softmax(t_n / T) ‖ softmax(s_n / T)) over all elements of a sample's features.

    Args:
        student: (batch, ...).
        teacher: of the same shape.
        temperature: T > 0.

    Source: the softmax over elements is that of Hinton, Vinyals, Dean 2015, arXiv:1503.02531, with features for logits.
    """
    from mirabelle.numerics.divergence import soft_target_divergence

    return soft_target_divergence(student.flatten(1), teacher.flatten(1), temperature)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently the samples of a batch resemble each other: ‖G_s − G_t‖²_F / batch².

    G is F·Fᵀ of the flattened features, (batch, batch), every row scaled to norm 1.

    Source: Tung, Mori 2019, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, equations 1 to 4.
    """

    def similarity(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return F.normalize(flat @ flat.T, dim=1)

    return (similarity(student) - similarity(teacher)).square().mean()


def distance_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss between the distances of all pairs of samples, each side's in units of its own mean distance.

    L = mean_{i≠j} h(‖s_i − s_j‖ / μ_s − ‖t_i − t_j‖ / μ_t), h(x) = x²/2 for |x| ≤ 1, |x| − 1/2 beyond

    Args:
        student: (batch, ...), at least two samples.
        teacher: (batch, ...), of any width.

    Source: Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation", arXiv:1904.05068, equations 4 to 7.
    """

    def relations(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        one, other = torch.triu_indices(len(flat), len(flat), 1, device=flat.device)
        # A distance of zero has no direction to pull in; its gradient is taken as none.
        distances = (flat[one] - flat[other]).square().sum(1).clamp_min(_TINY).sqrt()
        return distances / distances.mean()

    return F.smooth_l1_loss(relations(student), relations(teacher))


def angle_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss between the cosines of the angles at all triples of samples.

    L = mean_{i,j,k distinct} h(cos ∠ s_i s_j s_k − cos ∠ t_i t_j t_k), h as in `distance_relation`

    Args:
        student: (batch, ...), at least three samples.
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
    return F.smooth_l1_loss(cosines(student)[distinct], cosines(teacher)[distinct])


def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, real: Tensor | None = None
) -> Tensor:
    """How differently tokens relate: softmax(A·Bᵀ / √d) of each relation head, teacher's against student's.

    L = mean over samples, heads and tokens of KL(softmax(a_t·b_tᵀ / √d_t) ‖ softmax(a_s·b_sᵀ / √d_s))

    For queries with keys, or for the queries, keys or values of one layer with themselves; widths and numbers of attention
    heads may differ, since both are cut anew into `heads` relation heads.

    Args:
        student: A and B, each (batch, tokens, width), the width a multiple of `heads`.
        teacher: A and B, each (batch, tokens, another width), the same.
        heads: of relations.
        real: (batch, tokens), False for padding, to which no token relates and which does not count; None for no padding.

    Source: Wang, Wei, Dong, Bao, Yang, Zhou 2020, "MiniLM", arXiv:2002.10957, equations 6 to 10; Wang, Bao, Huang, Dong, Wei
    2021, "MiniLMv2", arXiv:2012.15828, equations 6 to 8.
    """

    def logs(operands: tuple[Tensor, Tensor]) -> Tensor:
        one, other = (features.reshape(*features.shape[:2], heads, -1).transpose(1, 2) for features in operands)
        scores = one @ other.transpose(2, 3) / one.shape[-1] ** 0.5
        if real is None:
            return F.log_softmax(scores, dim=-1)
        seen = scores.masked_fill(~real[:, None, None, :], _HIDDEN)
        return F.log_softmax(seen, dim=-1).transpose(1, 2)[real]

    log_q, log_p = logs(student), logs(teacher)
    decisions = log_q.numel() // log_q.shape[-1]
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / decisions


def pyramid_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of maps, and of their averages over 4 × 4, 2 × 2 and 1 × 1 places, which count ½, ¼ and ⅛.

    L = Σ_l w_l · mean (pool_l(s) − pool_l(t))² / Σ_l w_l; levels as large as the map or larger are left out

    Args:
        student: (batch, channels, height, width).
        teacher: of the same shape.

    Source: Chen, Liu, Zhao, Jia 2021, "Distilling Knowledge via Knowledge Review", arXiv:2104.09044, hierarchical context loss.
    """
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (4, 2, 1):
        weight /= 2
        if side < student.shape[2]:
            one, other = (F.adaptive_avg_pool2d(features, side) for features in (student, teacher))
            total, weights = total + weight * F.mse_loss(one, other), weights + weight
    return total / weights


def contrastive_estimate(positive: Tensor, negative: Tensor, samples: int) -> Tensor:
    """The loss of telling the one pair of the same sample from pairs of different ones.

    L = −mean_n (log h(u_n) + Σ_m log(1 − h(v_nm))), h(u) = e^u / (e^u + M / N)

    Args:
        positive: u, similarities of student and teacher on the same sample over the temperature, (batch,).
        negative: v, those with M other samples, (batch, M).
        samples: N, of the training data.

    Source: Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation", arXiv:1910.10699, equations 15 to 19.
    """
    noise = math.log(negative.shape[1] / samples)
    return -(F.logsigmoid(positive - noise) + F.logsigmoid(noise - negative).sum(1)).mean()
