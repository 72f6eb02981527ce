"""A teacher for networks that take CIFAR-10 as Keras does: pixels from 0 to 255, channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirabelle.sources.zoo import resnet20

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of what its published weights were trained on


class Teacher(nn.Module):
    """ResNet-20 behind a change of layout and scale: (batch, 32, 32, 3), 0 to 255, in; scores of ten classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet20()
        self.register_buffer("mean", 255 * torch.tensor(_MEAN), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(_DEVIATION), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.network(((image - self.mean) / self.deviation).permute(0, 3, 1, 2))
        return scores
