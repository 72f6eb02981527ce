"""What knowledge review trains along: the student's maps joined from the deepest to the shallowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.layer_matching import Pair
from mirabelle.objectives.projection import PairedFeatures, in_precision_of, same_places


class ProjectedFusion(nn.Module):
    """A map, joined with what came from the deeper ones by an attention over the two, and its form of the teacher's width."""

    def __init__(self, channels: int, width: int, out: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.weigh = None if deepest else nn.Conv2d(2 * width, 2, 1)
        self.leave = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.enter(x)
        if self.weigh is not None:
            assert deeper is not None, "all but the deepest are given what came from there"
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = torch.sigmoid(self.weigh(torch.cat([x, deeper], 1)))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        return self.leave(x), x


class Review(PairedFeatures):
    """All pairs, the deepest first.

    Raises:
        UserError: E111 for maps that are not two-dimensional.
    """

    def __init__(self, pairs: Sequence[Pair], compare: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__(pairs, compare)
        for pair in pairs:
            if len(pair.student.shape) != 4:  # noqa: PLR2004
                raise UserError("E111", f"layer {pair.student} of the student gives no maps of two dimensions", "use Hint")
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
