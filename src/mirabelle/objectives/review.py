"""The bound form of knowledge review (ReviewKD): the student's feature maps are fused from the deepest to the shallowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.layer_matching import Pair
from mirabelle.objectives.projection import PairedFeatures, in_precision_of, same_places


class _Norm(nn.BatchNorm2d):
    """Batch norm; a single value per channel, which has no variance, is scaled by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        out: Tensor = super().forward(x)
        return out


class ProjectedFusion(nn.Module):
    """Fuse a feature map with the fused deeper maps, and project the result to the teacher's width.

    An attention computed from both maps weighs them at every position. The result of `forward` is (the projection, the fused
    map).

    Args:
        channels: of the student's feature map.
        width: channels in which maps are fused.
        out: channels of the teacher's feature map.
        deepest: whether this is the deepest map, which has nothing to be fused with.
    """

    def __init__(self, channels: int, width: int, out: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), _Norm(width))
        self.weigh = None if deepest else nn.Conv2d(2 * width, 2, 1)
        self.leave = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), _Norm(out))

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.enter(x)
        if self.weigh is not None:
            assert deeper is not None, "every layer except the deepest gets the fused deeper maps"
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = torch.sigmoid(self.weigh(torch.cat([x, deeper], 1)))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        return self.leave(x), x


class Review(PairedFeatures):
    """The knowledge review loss over all pairs of layers; maps are fused from the deepest to the shallowest.

    Args:
        pairs: the layers to compare, from shallow to deep.
        compare: (student's fused map, teacher's map) -> scalar.
        width: channels in which maps are fused.

    Raises:
        UserError: E111 if a layer's output is not (batch, channels, height, width).
    """

    def __init__(self, pairs: Sequence[Pair], compare: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__(pairs, compare)
        for pair in pairs:
            if len(pair.student.shape) != 4:  # noqa: PLR2004
                message = f"the output of layer {pair.student} of the student is not a two-dimensional feature map"
                raise UserError("E111", message, "use Hint")
        self.joints = nn.ModuleList(
            ProjectedFusion(pair.student.width, width, pair.teacher.width, deepest=pair is pairs[-1]) for pair in pairs
        )

    def forward(self, forward: Forward) -> Tensor:
        assert forward.teacher is not None, "Objective.bind refuses a task without teacher"
        deeper: Tensor | None = None
        parts = []
        for pair, joint in reversed(list(zip(self.pairs, self.joints, strict=True))):
            given = forward.features[pair.student.name]
            with in_precision_of(given):
                out, deeper = joint(given, deeper)
            parts.append(self.compare(*same_places(out.float(), forward.teacher.features[pair.teacher.name].float())))
        total: Tensor = sum(parts[1:], parts[0])
        return total / len(parts)
