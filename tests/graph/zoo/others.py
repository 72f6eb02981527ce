"""Recommenders, autoencoders, and networks for text, sound, points, volumes and graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import Architecture, arguments, floats, integers


class TextCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.convs = nn.ModuleList(nn.Conv1d(16, 12, size) for size in (2, 3, 4))
        self.head = nn.Linear(36, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(1, 2)
        return self.head(torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(21, 32), nn.ReLU(), nn.Linear(32, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 28), nn.ReLU(), nn.Linear(28, 21))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class VariationalAutoencoder(nn.Module):
    """Gives the reconstruction at the mean, and mean and log-variance as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(21, 32)
        self.mean, self.log_variance = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 28), nn.Softplus(), nn.Linear(28, 21))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.encoder(x))
        mean = self.mean(hidden)
        return self.decoder(mean), mean, self.log_variance(hidden)


class WideAndDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(7, 1)
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in ((50, 12), (60, 8)))
        self.deep = nn.Sequential(nn.Linear(7 + 20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        embedded = [embedding(categories[:, i]) for i, embedding in enumerate(self.embeddings)]
        deep = self.deep(torch.cat([numbers, *embedded], 1))
        return torch.sigmoid(self.wide(numbers) + deep).squeeze(1)


class DeepAndCross(nn.Module):
    """Cross layers x0 · (w x) + b + x beside a deep network."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.cross = nn.ModuleList(nn.Linear(19, 1, bias=False) for _ in range(2))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(19)) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(19, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(19 + 16, 2)

    def forward(self, numbers: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        start = torch.cat([numbers, self.embedding(category)], 1)
        x = start
        for layer, shift in zip(self.cross, self.shifts, strict=True):
            x = start * layer(x) + shift + x
        return self.head(torch.cat([x, self.deep(start)], 1))


class FactorizationMachine(nn.Module):
    """DeepFM: pairwise products through (Σv)² − Σv², beside a deep network on the same embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Embedding(50, 1)
        self.embedding = nn.Embedding(50, 12)
        self.deep = nn.Sequential(nn.Linear(5 * 12, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        vectors = self.embedding(fields)
        pairs = 0.5 * (vectors.sum(1).pow(2) - vectors.pow(2).sum(1)).sum(1, keepdim=True)
        return self.linear(fields).sum(1) + pairs + self.deep(vectors.flatten(1))


class TwoTower(nn.Module):
    """User and item vectors of one width, compared by their dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 16), nn.Embedding(60, 12)
        self.user_tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 20))
        self.item_tower = nn.Sequential(nn.Linear(12, 28), nn.ReLU(), nn.Linear(28, 20))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return (self.user_tower(self.user(user)) * self.item_tower(self.item(item))).sum(-1)


class TemporalBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=self.padding, dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=self.padding, dilation=dilation)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.conv1(x)[:, :, : -self.padding])
        out = F.relu(self.conv2(out)[:, :, : -self.padding])
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class TemporalConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(TemporalBlock(5, 16, 1), TemporalBlock(16, 24, 2), TemporalBlock(24, 24, 4))
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x)[:, :, -1])


class GatedConvLayer(nn.Module):
    def __init__(self, residual: int, hidden: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.padding = dilation
        self.filter = nn.Conv1d(residual, hidden, 2, dilation=dilation)
        self.gate = nn.Conv1d(residual, hidden, 2, dilation=dilation)
        self.residual = nn.Conv1d(hidden, residual, 1)
        self.skip = nn.Conv1d(hidden, skip, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        padded = F.pad(x, (self.padding, 0))
        hidden = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.residual(hidden), self.skip(hidden)


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(GatedConvLayer(16, 12, 20, 2**i) for i in range(3))
        self.end1, self.end2 = nn.Conv1d(20, 24, 1), nn.Conv1d(24, 50, 1)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        x = self.embed(samples).transpose(1, 2)
        total = x.new_zeros(())
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.end2(F.relu(self.end1(F.relu(total))))


class PointNet(nn.Module):
    """A layer per point, a learnt 3×3 alignment, the maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        self.align_conv, self.align_fc = nn.Conv1d(3, 16, 1), nn.Linear(16, 9)
        self.conv1, self.norm1 = nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16)
        self.conv2, self.norm2 = nn.Conv1d(16, 32, 1), nn.BatchNorm1d(32)
        self.local, self.segment = nn.Conv1d(16 + 32, 24, 1), nn.Conv1d(24, 5, 1)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        align = self.align_fc(F.relu(self.align_conv(points)).amax(2)).view(-1, 3, 3)
        x = torch.bmm(points.transpose(1, 2), align).transpose(1, 2)
        local = F.relu(self.norm1(self.conv1(x)))
        whole = self.norm2(self.conv2(local)).amax(2, keepdim=True)
        x = torch.cat([local, whole.expand(-1, -1, local.shape[2])], 1)
        return self.segment(F.relu(self.local(x)))


class Siamese(nn.Module):
    """One tower called on both images; the absolute difference decides."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(1, 12, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 20, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.vector = nn.Linear(20, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.head((self.vector(self.tower(one)) - self.vector(self.tower(other))).abs())


class Volume(nn.Module):
    """3D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(1, 12, 3, padding=1), nn.BatchNorm3d(12)
        self.conv2, self.norm2 = nn.Conv3d(12, 16, 3, 2, 1), nn.BatchNorm3d(16)
        self.shortcut = nn.Conv3d(12, 16, 1, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool3d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.norm2(self.conv2(x)) + self.shortcut(x))
        return self.head(x.mean((2, 3, 4)))


class GraphConvolution(nn.Module):
    """Two layers over a dense adjacency that is given with the features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 20), nn.Linear(20, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, features: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        x = F.relu(torch.bmm(adjacency, self.first(features)))
        return self.head(F.relu(torch.bmm(adjacency, self.second(x))))


class KolmogorovArnold(nn.Module):
    """Radial functions of every input, mixed by one weight per function, input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(-2, 2, 5))
        self.first = nn.Parameter(torch.randn(16, 9, 5))
        self.second = nn.Parameter(torch.randn(4, 16, 5))

    def functions(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-((x[..., None] - self.centers) ** 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("bif,oif->bo", self.functions(x), self.first)
        return torch.einsum("bif,oif->bo", self.functions(hidden), self.second)


TOKENS = arguments(integers(50, 2, 11))

ARCHITECTURES = (
    Architecture("text_cnn", "text", TextCnn, TOKENS),
    Architecture("autoencoder", "mlp", Autoencoder, arguments(floats(3, 21))),
    Architecture("variational_autoencoder", "mlp", VariationalAutoencoder, arguments(floats(3, 21))),
    Architecture("wide_and_deep", "recommender", WideAndDeep, arguments(floats(3, 7), integers(50, 3, 2))),
    Architecture("deep_and_cross", "recommender", DeepAndCross, arguments(floats(3, 7), integers(50, 3))),
    Architecture("factorization_machine", "recommender", FactorizationMachine, arguments(integers(50, 3, 5))),
    Architecture("two_tower", "recommender", TwoTower, arguments(integers(50, 3), integers(60, 3))),
    Architecture("temporal_conv_net", "sequence", TemporalConvNet, arguments(floats(2, 5, 27))),
    Architecture("wavenet", "sequence", WaveNet, arguments(integers(50, 2, 27))),
    Architecture("point_net", "points", PointNet, arguments(floats(2, 3, 27))),
    Architecture("siamese", "cnn", Siamese, arguments(floats(2, 1, 17, 21), floats(2, 1, 17, 21))),
    Architecture("volume", "cnn", Volume, arguments(floats(2, 1, 7, 9, 11))),
    Architecture("graph_convolution", "graph", GraphConvolution, arguments(floats(2, 7, 9), floats(2, 7, 7))),
    Architecture("kolmogorov_arnold", "mlp", KolmogorovArnold, arguments(floats(3, 9))),
)
