"""Attention on feature maps: heads in the batch, windows that are rolled, positions that are looked up, sampled or deformed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import Architecture, arguments, floats


class BottleneckAttention(nn.Module):
    """BoTNet: heads in the batch, relative logits by a pad, a flattening and a slice."""

    def __init__(self, width: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.depth, self.size = heads, width // heads, size
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.rows = nn.Parameter(torch.randn(2 * size[0] - 1, self.depth))
        self.columns = nn.Parameter(torch.randn(2 * size[1] - 1, self.depth))

    def relative(self, query: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        b, h, w, _ = query.shape
        x = (query @ table.t()).reshape(-1, w, 2 * w - 1)
        x = F.pad(F.pad(x, [0, 1]).flatten(1), [0, w - 1]).reshape(-1, w + 1, 2 * w - 1)[:, :w, w - 1 :]
        return x.reshape(b, h, 1, w, w).expand(-1, -1, h, -1, -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        query, key, value = torch.split(self.qkv(x), [c, c, c], 1)
        query = query.reshape(b * self.heads, self.depth, h * w).transpose(1, 2)
        key = key.reshape(b * self.heads, self.depth, h * w)
        value = value.reshape(b * self.heads, self.depth, h * w).transpose(1, 2)
        grid = query.reshape(-1, h, w, self.depth)
        across = self.relative(grid, self.columns).permute(0, 1, 3, 2, 4)
        down = self.relative(grid.transpose(1, 2), self.rows).permute(0, 3, 1, 4, 2)
        scores = (query @ key) * self.depth**-0.5 + (across + down).reshape(-1, h * w, h * w)
        out = scores.softmax(-1) @ value
        return out.transpose(1, 2).reshape(b, c, h, w)


class BoTNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 20, 3, 2, 1), nn.BatchNorm2d(20)
        self.reduce, self.attention, self.expand = (
            nn.Conv2d(20, 16, 1),
            BottleneckAttention(16, 2, (5, 7)),
            nn.Conv2d(16, 20, 1),
        )
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.expand(F.relu(self.attention(F.relu(self.reduce(x))))))
        return self.head(x.mean((2, 3)))


class DecomposedPositions(nn.Module):
    """SAM: heads in the batch, biases of rows and columns from tables by einsum."""

    def __init__(self, width: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.randn(2 * size[0] - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.randn(2 * size[1] - 1, width // heads))

    @staticmethod
    def looked_up(table: torch.Tensor, size: int) -> torch.Tensor:
        steps = torch.arange(size)
        return table[steps[:, None] - steps[None, :] + size - 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, b * self.heads, h * w, -1).unbind(0)
        attention = (query * self.scale) @ key.transpose(-2, -1)
        grid = query.reshape(b * self.heads, h, w, -1)
        down = torch.einsum("bhwc,hkc->bhwk", grid, self.looked_up(self.rel_pos_h, h))
        across = torch.einsum("bhwc,wkc->bhwk", grid, self.looked_up(self.rel_pos_w, w))
        attention = attention.view(b * self.heads, h, w, h, w) + down[:, :, :, :, None] + across[:, :, :, None, :]
        out = attention.view(b * self.heads, h * w, h * w).softmax(-1) @ value
        return self.proj(out.view(b, self.heads, h, w, -1).permute(0, 2, 3, 1, 4).reshape(b, h, w, -1))


class SegmentAnything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(1, 5, 7, 24))
        self.norm1, self.attention = nn.LayerNorm(24), DecomposedPositions(24, 4, (5, 7))
        self.norm2, self.expand, self.project = nn.LayerNorm(24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.neck = nn.Conv2d(24, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).permute(0, 2, 3, 1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.project(F.gelu(self.expand(self.norm2(x))))
        return self.neck(x.permute(0, 3, 1, 2))


class RelativePositions(nn.Module):
    """CoaT: depthwise convolutions whose kernel grows with the head, shared by all blocks that use them."""

    def __init__(self, depth: int, windows: dict[int, int]) -> None:
        super().__init__()
        self.splits = [heads * depth for heads in windows.values()]
        self.layers = nn.ModuleList(
            nn.Conv2d(heads * depth, heads * depth, size, padding=size // 2, groups=heads * depth)
            for size, heads in windows.items()
        )

    def forward(self, query: torch.Tensor, value: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        b, heads, count, depth = query.shape
        maps = value.transpose(-1, -2).reshape(b, heads * depth, *size)
        parts = torch.split(maps, self.splits, 1)
        mixed = torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)], 1)
        return query * mixed.reshape(b, heads, depth, count).transpose(-1, -2)


class ConvAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, around: nn.Module, positions: nn.Module) -> None:
        super().__init__()
        self.heads, self.around, self.positions = heads, around, positions
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = self.around(x, size)
        b, n, c = x.shape
        query, key, value = (
            self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        context = key.softmax(2).transpose(-1, -2) @ value
        out = (query @ context) * (c // self.heads) ** -0.5 + self.positions(query, value, size)
        return x + self.proj(out.transpose(1, 2).reshape(b, n, c))


class PositionsByConvolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, width, 3, 1, 1, groups=width)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        b, _, c = x.shape
        maps = x.transpose(1, 2).view(b, c, *size)
        return (self.proj(maps) + maps).flatten(2).transpose(1, 2)


class CoaT(nn.Module):
    """Two blocks and their parent hold the same two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        around, positions = PositionsByConvolution(24), RelativePositions(6, {3: 2, 5: 2})
        self.blocks = nn.ModuleList(ConvAttentionBlock(24, 4, around, positions) for _ in range(2))
        self.around, self.positions = around, positions
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x)
        size = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, size)
        return self.head(x.mean(1))


class Windows(nn.Module):
    """Swin: windows of a rolled map, biases by head from a table, a mask for the seam, a residual stream around it."""

    def __init__(self, width: int, heads: int, size: int, shift: int) -> None:
        super().__init__()
        self.heads, self.size, self.shift = heads, size, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads))
        steps = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        apart = (steps[:, :, None] - steps[:, None, :]).permute(1, 2, 0) + size - 1
        self.register_buffer("index", apart[:, :, 0] * (2 * size - 1) + apart[:, :, 1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w, c = x.shape
        s = self.size
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        windows = x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        query, key, value = self.qkv(windows).reshape(-1, s * s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (c // self.heads) ** -0.5
        scores = scores + self.table[self.index.view(-1)].view(s * s, s * s, -1).permute(2, 0, 1)
        if self.shift:
            scores = scores.view(b, -1, self.heads, s * s, s * s) + self.seam(h, w)[None, :, None]
        out = scores.view(-1, self.heads, s * s, s * s).softmax(-1) @ value
        out = self.proj(out.transpose(1, 2).reshape(-1, s * s, c))
        out = out.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(out, (self.shift, self.shift), (1, 2)) if self.shift else out

    def seam(self, h: int, w: int) -> torch.Tensor:
        parts = torch.zeros(h, w)
        count = 0
        for rows in (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None)):
            for columns in (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None)):
                parts[rows, columns] = count
                count += 1
        s = self.size
        parts = parts.view(h // s, s, w // s, s).permute(0, 2, 1, 3).reshape(-1, s * s)
        return (parts[:, None] - parts[:, :, None]).ne(0) * -100.0


class ShiftedWindows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(4))
        self.windows = nn.ModuleList(Windows(24, 4, 3, shift) for shift in (0, 1))
        self.expand = nn.ModuleList(nn.Linear(24, 40) for _ in range(2))
        self.project = nn.ModuleList(nn.Linear(40, 24) for _ in range(2))
        self.merge, self.head = nn.Linear(4 * 24, 32, bias=False), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        for i in range(2):
            x = x + self.windows[i](self.norms[2 * i](x))
            x = x + self.project[i](F.gelu(self.expand[i](self.norms[2 * i + 1](x))))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.merge(x).mean((1, 2)))


class DeformableAttention(nn.Module):
    """Deformable DETR: values are sampled around reference points at offsets that the queries give."""

    def __init__(self, width: int = 24, heads: int = 4, points: int = 3) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets, self.weights = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, query: torch.Tensor, memory: torch.Tensor, reference: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        b, n, c = query.shape
        h, w = size
        value = self.value(memory).view(b, h * w, self.heads, c // self.heads)
        offsets = self.offsets(query).view(b, n, self.heads, self.points, 2)
        weights = self.weights(query).view(b, n, self.heads, self.points).softmax(-1)
        places = reference[:, :, None, None] + offsets / torch.tensor([w, h], dtype=offsets.dtype)
        maps = value.permute(0, 2, 3, 1).reshape(b * self.heads, c // self.heads, h, w)
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, grid, align_corners=False)
        weights = weights.transpose(1, 2).reshape(b * self.heads, 1, n, self.points)
        return self.out((sampled * weights).sum(-1).view(b, c, n).transpose(1, 2))


class DeformableDetr(nn.Module):
    """Positions are a normalized grid, added to a backbone's map; queries are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.norm, self.project = nn.Conv2d(3, 20, 4, 4), nn.BatchNorm2d(20), nn.Conv2d(20, 24, 1)
        self.level = nn.Parameter(torch.randn(24))
        self.encoder, self.encoder_norm = DeformableAttention(), nn.LayerNorm(24)
        self.expand, self.contract, self.feed_norm = nn.Linear(24, 40), nn.Linear(40, 24), nn.LayerNorm(24)
        self.queries, self.points = nn.Embedding(9, 24), nn.Linear(24, 2)
        self.decoder, self.decoder_norm = DeformableAttention(), nn.LayerNorm(24)
        self.classes, self.boxes = nn.Linear(24, 6), nn.Linear(24, 4)

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        """Sines of cumulated ones, divided by the last of them."""
        ones = torch.ones_like(x[:, 0])
        down, across = ones.cumsum(1), ones.cumsum(2)
        down, across = down / (down[:, -1:, :] + 1e-6) * 6.28, across / (across[:, :, -1:] + 1e-6) * 6.28
        steps = 20 ** (2 * (torch.arange(12, dtype=x.dtype) // 2) / 12)
        down, across = down[..., None] / steps, across[..., None] / steps
        parts = [torch.stack((p[..., 0::2].sin(), p[..., 1::2].cos()), 4).flatten(3) for p in (down, across)]
        return torch.cat(parts, 3).flatten(1, 2)

    def reference(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        h, w = size
        down, across = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        grid = torch.stack((across.reshape(-1) / w, down.reshape(-1) / h), -1).to(x.dtype)
        return grid[None].expand(x.shape[0], -1, -1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.project(F.relu(self.norm(self.backbone(x))))
        size = (x.shape[2], x.shape[3])
        around = self.positions(x) + self.level
        memory = x.flatten(2).transpose(1, 2)
        memory = self.encoder_norm(memory + self.encoder(memory + around, memory, self.reference(x, size), size))
        memory = self.feed_norm(memory + self.contract(F.relu(self.expand(memory))))
        queries = self.queries.weight[None].expand(x.shape[0], -1, -1)
        points = self.points(queries).sigmoid()
        queries = self.decoder_norm(queries + self.decoder(queries, memory, points, size))
        return self.classes(queries), (self.boxes(queries) + F.pad(torch.logit(points), (0, 2))).sigmoid()


class SpatialTransformer(nn.Module):
    """A map is sampled on a grid that the network itself places."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.place = nn.Conv2d(3, 12, 5, 2), nn.Linear(12, 6)
        self.conv, self.norm, self.after = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 20, 3)
        self.head = nn.Linear(20, 5)
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = (0.1 * self.place(F.relu(self.look(x)).mean((2, 3))) + self.identity).view(-1, 2, 3)
        y = F.relu(self.norm(self.conv(x)))
        y = F.grid_sample(y, F.affine_grid(theta, list(y.shape), align_corners=False), align_corners=False)
        return self.head(F.relu(self.after(y)).mean((2, 3)))


class CoordinateConvolution(nn.Module):
    """Normalized coordinates are joined to the channels of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv, self.after = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(14, 16, 3), nn.Conv2d(18, 20, 1)
        self.head = nn.Linear(20, 5)

    @staticmethod
    def coordinates(x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.size()
        down = torch.linspace(-1, 1, h, dtype=x.dtype).view(1, 1, h, 1).expand(b, 1, h, w)
        across = torch.arange(w, dtype=x.dtype).repeat(1, h, 1) / (w - 1) * 2 - 1
        across = across.repeat(b, 1, 1, 1).view(b, 1, h, w)
        return torch.cat([x, down, across], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(self.coordinates(F.relu(self.enter(x)))))
        return self.head(F.relu(self.after(self.coordinates(x))).mean((2, 3)))


MAPS = arguments(floats(3, 3, 20, 28))

ARCHITECTURES = (
    Architecture("botnet", "transformer", BoTNet, arguments(floats(3, 3, 9, 13))),
    Architecture("segment_anything", "transformer", SegmentAnything, MAPS),
    Architecture("coat", "transformer", CoaT, MAPS),
    Architecture("shifted_windows", "transformer", ShiftedWindows, arguments(floats(2, 3, 12, 24))),
    Architecture("deformable_detr", "transformer", DeformableDetr, MAPS),
    Architecture("spatial_transformer", "cnn", SpatialTransformer, MAPS),
    Architecture("coordinate_convolution", "cnn", CoordinateConvolution, MAPS),
)
