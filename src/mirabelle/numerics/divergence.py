"""How far the student's decisions are from the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_target_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback–Leibler divergence of softened decisions, mean over the batch, a scalar in nats.

    L = T² · mean_n Σ_k p_nk · (log p_nk − log q_nk), p = softmax(teacher / T), q = softmax(student / T)

    The factor T² keeps the gradient's size independent of the temperature.

    Args:
        student: logits, shape (batch, ..., classes).
        teacher: logits of the same shape.
        temperature: T > 0.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> soft_target_divergence(logits, logits, temperature=4.0).item()
        0.0

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    classes = student.shape[-1]
    log_q = F.log_softmax(student.reshape(-1, classes).float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.reshape(-1, classes).float() / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
