"""ONNX operators that compute losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.values import Value, tensor_of

_NO_CLASS = -(1 << 31)  # torch always ignores one target; this one cannot be a class


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(node: Node, log_probabilities: Tensor, targets: Value, weight: Tensor | None = None) -> Tensor:
    ignored = _NO_CLASS if node["ignore_index"] is None else node["ignore_index"]
    return F.nll_loss(log_probabilities, tensor_of(targets).long(), weight, ignore_index=ignored, reduction=node["reduction"])


@operator("SoftmaxCrossEntropyLoss")
def cross_entropy(node: Node, scores: Tensor, targets: Value, weight: Tensor | None = None) -> list[Tensor]:
    log_probabilities = F.log_softmax(scores, 1)
    return [negative_log_likelihood(node, log_probabilities, targets, weight), log_probabilities]


@operator("Det")
def determinant(_node: Node, x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.det(x)
    return found
