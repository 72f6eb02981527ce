"""Channels that change places between grouped layers, and branches that only some of them take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import Architecture, arguments, floats, integers
from .cnn import ConvNorm


class ShuffledBottleneck(nn.Module):
    """ShuffleNet V1 with widths that its groups divide twice; the shuffle is written by hand or torch's own."""

    def __init__(self, width: int, inner: int, groups: int, own: nn.Module | None = None) -> None:
        super().__init__()
        self.groups, self.own = groups, own
        self.reduce = ConvNorm(width, inner, 1, groups=groups)
        self.depthwise = ConvNorm(inner, inner, 3, groups=inner)
        self.expand = ConvNorm(inner, width, 1, groups=groups)

    def shuffled(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.size()
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.reduce(x))
        y = self.shuffled(y) if self.own is None else self.own(y)
        return F.relu(x + self.expand(self.depthwise(y)))


class ShuffledGroups(nn.Module):
    def __init__(self, own: bool) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2)
        self.blocks = nn.Sequential(*[ShuffledBottleneck(32, 16, 2, nn.ChannelShuffle(2) if own else None) for _ in range(2)])
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class AxialShift(nn.Module):
    """AS-MLP: parts of the channels are rolled over the map, beside a residual stream."""

    def __init__(self, width: int = 18, parts: int = 3) -> None:
        super().__init__()
        self.parts = parts
        self.norm, self.before, self.after = nn.GroupNorm(1, width), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.before(self.norm(x)))
        shifts = range(-(self.parts // 2), self.parts // 2 + 1)
        rows = torch.cat([torch.roll(part, by, 2) for part, by in zip(y.chunk(self.parts, 1), shifts, strict=True)], 1)
        columns = torch.cat([torch.roll(part, by, 3) for part, by in zip(y.chunk(self.parts, 1), shifts, strict=True)], 1)
        return x + self.after(rows + columns)


class ShiftMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 18, 4, 4), nn.Sequential(AxialShift(), AxialShift())
        self.head = nn.Linear(18, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class RolledStream(nn.Module):
    """The residual stream is read one channel further on: all of its channels hang together."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.expand, self.project = nn.Linear(9, 20), nn.Linear(20, 32), nn.Linear(32, 20)
        self.norm, self.head = nn.LayerNorm(20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        x = x + torch.roll(x, 1, -1)
        return self.head(self.norm(x + self.project(F.gelu(self.expand(x)))))


class SplitExperts(nn.Module):
    """Several experts in one layer, whose widths differ: cut apart, each with its own activation and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [12, 20, 8]
        self.enter, self.gate = nn.Linear(9, 24), nn.Linear(24, 3)
        self.expand = nn.Linear(24, sum(self.sizes))
        self.project = nn.ModuleList(nn.Linear(size, 24) for size in self.sizes)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.enter(x))
        weights = self.gate(x).softmax(-1)
        parts = torch.split(self.expand(x), self.sizes, -1)
        for k, (part, project) in enumerate(zip(parts, self.project, strict=True)):
            x = x + weights[:, k : k + 1] * project(F.gelu(part))
        return self.head(x)


class SortedTokens(nn.Module):
    """Tokens are sorted by their expert, cut by how many each has, and put back; as in JetMoe."""

    def __init__(self, experts: int = 3, width: int = 20, inner: int = 28) -> None:
        super().__init__()
        self.embed, self.router = nn.Embedding(50, width), nn.Linear(width, experts, bias=False)
        self.expand = nn.Parameter(torch.randn(experts, 2 * inner, width))
        self.project = nn.Parameter(torch.randn(experts, width, inner))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        flat = x.flatten(0, 1)
        scores, chosen = self.router(flat).softmax(-1).max(-1)
        order = chosen.argsort(stable=True)
        counts = F.one_hot(chosen, len(self.expand)).sum(0).tolist()
        parts = flat[order].split(counts, 0)
        hidden = torch.cat([F.linear(part, weight) for part, weight in zip(parts, self.expand, strict=True)], 0)
        gate, value = hidden.chunk(2, -1)
        parts = (F.silu(gate) * value).split(counts, 0)
        out = torch.cat([F.linear(part, weight) for part, weight in zip(parts, self.project, strict=True)], 0)
        out = torch.zeros_like(flat).index_add(0, order, out * scores[order, None])
        return self.head(self.norm(x + out.view_as(x)))


class AuxiliaryHead(nn.Module):
    """GoogLeNet: training adds what a second head says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = ConvNorm(3, 16, 3, stride=2), ConvNorm(16, 24, 3)
        self.auxiliary, self.hidden, self.second = nn.Conv2d(16, 12, 1), nn.Linear(12, 14), nn.Linear(14, 5)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        scores = self.head(F.relu(self.body(x)).mean((2, 3)))
        if self.training:
            scores = scores + 0.3 * self.second(F.relu(self.hidden(F.relu(self.auxiliary(x)).mean((2, 3)))))
        return scores


class SlicesAssigned(nn.Module):
    """Temporal shift: slices of an empty tensor are written; a width stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x).relu()
        shifted = torch.zeros_like(x)
        shifted[:, 1:, :4] = x[:, :-1, :4]
        shifted[:, :-1, 4:8] = x[:, 1:, 4:8]
        shifted[:, :, 8:] = x[:, :, 8:]
        return self.head(self.middle(shifted).relu().reshape(len(x), -1, 12)).mean(1)


class ConditionalQueries(nn.Module):
    """Conditional DETR: the sine embedding of a query's place is put into a slice, head by head beside its content."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.queries = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(9, 24))
        self.place, self.content, self.around = nn.Linear(24, 2), nn.Linear(24, 24), nn.Linear(24, 24)
        self.key, self.value, self.out, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.patch(x).flatten(2).transpose(1, 2)
        b, n, c = memory.shape
        queries = self.queries[None].repeat(b, 1, 1)
        places = self.place(queries).sigmoid()
        angles = places[..., None] * torch.arange(1, c // 2 + 1, dtype=x.dtype)
        sines = torch.empty(b, len(self.queries), c, dtype=x.dtype)
        sines[..., : c // 2], sines[..., c // 2 :] = angles[:, :, 0].sin(), angles[:, :, 1].cos()
        content = self.content(queries).view(b, -1, 4, 6)
        around = self.around(sines).view(b, -1, 4, 6)
        query = torch.cat([content, around], 3).view(b, -1, 48)
        key = torch.cat([self.key(memory).view(b, n, 4, 6)] * 2, 3).view(b, n, 48)
        query, key = (part.view(b, -1, 4, 12).transpose(1, 2) for part in (query, key))
        value = self.value(memory).view(b, n, 4, 6).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.head(queries + self.out(out))


class SelectiveScan(nn.Module):
    """Mamba: gated, convolved over time, and a state whose decay, input and output follow the data."""

    def __init__(self, width: int = 20, inner: int = 28, state: int = 5, rank: int = 7) -> None:
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.embed, self.norm = nn.Embedding(50, width), nn.LayerNorm(width)
        self.in_proj, self.conv = nn.Linear(width, 2 * inner, bias=False), nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.x_proj, self.dt_proj = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.a_log, self.d = nn.Parameter(torch.randn(inner, state)), nn.Parameter(torch.randn(inner))
        self.out_proj, self.head = nn.Linear(inner, width, bias=False), nn.Linear(width, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        y, gate = self.in_proj(self.norm(x)).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : tokens.size(1)]).transpose(1, 2)
        step, into, out_of = torch.split(self.x_proj(y), [self.rank, self.state, self.state], -1)
        step = F.softplus(self.dt_proj(step))
        decay = torch.exp(step[..., None] * -torch.exp(self.a_log))
        given = step[..., None] * into[:, :, None] * y[..., None]
        state, steps = torch.zeros(len(x), self.inner, self.state, dtype=x.dtype), []
        for t in range(tokens.size(1)):
            state = decay[:, t] * state + given[:, t]
            steps.append((state @ out_of[:, t, :, None]).squeeze(-1))
        y = (torch.stack(steps, 1) + self.d * y) * F.silu(gate)
        return self.head(x + self.out_proj(y))


TOKENS = arguments(integers(50, 3, 7))
MAPS = arguments(floats(3, 3, 20, 28))
VECTORS = arguments(floats(3, 9))

ARCHITECTURES = (
    Architecture("shuffled_groups", "cnn", lambda: ShuffledGroups(own=False), MAPS),
    Architecture("built_in_shuffle", "cnn", lambda: ShuffledGroups(own=True), MAPS),
    Architecture("shift_mlp", "mlp", ShiftMlp, MAPS),
    Architecture("rolled_stream", "mlp", RolledStream, VECTORS),
    Architecture("split_experts", "mlp", SplitExperts, VECTORS),
    Architecture("sorted_tokens", "transformer", SortedTokens, TOKENS),
    Architecture("auxiliary_head", "cnn", AuxiliaryHead, MAPS),
    Architecture("slices_assigned", "mlp", SlicesAssigned, arguments(floats(3, 5, 6))),
    Architecture("conditional_queries", "transformer", ConditionalQueries, MAPS),
    Architecture("selective_scan", "transformer", SelectiveScan, TOKENS),
)
