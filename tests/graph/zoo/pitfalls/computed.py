"""Weights that are computed, statistics of other axes than usual, and sizes that only the program knows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture, arguments, floats, integers

from .common import IMAGES, SEQUENCES, VECTORS, split_heads


class KernelsPerSample(nn.Module):
    """Kernels scaled for each sample: one convolution with as many groups as the batch has samples."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.style = nn.Conv2d(3, 12, 3), nn.Linear(9, 12)
        self.weight, self.head = nn.Parameter(torch.zeros(16, 12, 3, 3)), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        kernels = self.weight * self.style(style)[:, None, :, None, None]
        kernels = kernels * (kernels.pow(2).sum((2, 3, 4), keepdim=True) + 1e-6).rsqrt()
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), groups=x.shape[0])
        return self.head(F.relu(out.reshape(x.shape[0], 16, *out.shape[2:])))


class StandardizedByBatchNorm(nn.Module):
    """Kernels standardized with the operator that normalizes batches: a statistic over what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        weight = self.conv2.weight
        flat = F.batch_norm(weight.reshape(1, weight.shape[0], -1), None, None, training=True)
        return self.head(F.relu(F.conv2d(x, flat.reshape_as(weight), self.conv2.bias)))


class NormOverFeatures(nn.Module):
    """Each place is normalized over its features by an instance norm, then groups of places by a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.norm = nn.GroupNorm(2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.instance_norm(torch.tanh(self.fc1(x[:, :10])))
        return self.head(torch.tanh(self.norm(self.fc2(x))))


class ShiftedTime(nn.Module):
    """Each place meets the one before it: padded at one end of time and cropped at the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.mix = nn.Parameter(torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        before = F.pad(x, (0, 0, 1, -1))
        return self.head(torch.tanh(self.fc2(x * self.mix + before * (1 - self.mix))))


class BatchTimesHeads(nn.Module):
    """Samples and heads lie in one dimension, and a table is expanded to it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value, self.out = nn.Linear(20, 24), nn.Linear(20, 24), nn.Linear(20, 24), nn.Linear(24, 20)
        self.distance = nn.Parameter(torch.zeros(11, 11))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = (split_heads(layer(x), 4).flatten(0, 1) for layer in (self.query, self.key, self.value))
        scores = torch.baddbmm(self.distance.expand(query.shape[0], 11, 11), query, key.transpose(1, 2))
        mixed = (scores.softmax(-1) @ value).view(-1, 4, 11, 6)
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


class ShiftedChannels(nn.Module):
    """Some channels come from the frame before, some from the one after."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 20, 3), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = F.relu(self.conv1(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        out = torch.zeros_like(frames)
        out[:, :-1, :4] = frames[:, 1:, :4]
        out[:, 1:, 4:8] = frames[:, :-1, 4:8]
        out[:, :, 8:] = frames[:, :, 8:]
        return self.head(F.relu(self.conv2(out.flatten(0, 1))).mean((2, 3))).unflatten(0, x.shape[:2]).mean(1)


class Involution(nn.Module):
    """A kernel for each place, the same for the four channels of a group."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.reduce, self.kernel = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 6, 1), nn.Conv2d(6, 36, 1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        kernel = self.kernel(F.relu(self.reduce(x))).unflatten(1, (4, 1, 9))
        windows = F.unfold(x, 3, padding=1).view(x.shape[0], 4, 4, 9, *x.shape[2:])
        return self.head((kernel * windows).sum(3).flatten(1, 2))


class Spectrum(nn.Module):
    """A long convolution over time by Fourier transforms, a kernel for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.head = nn.Linear(9, 16), nn.Linear(16, 5)
        self.kernel = nn.Parameter(torch.zeros(16, 11))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x)).transpose(1, 2)
        mixed = torch.fft.irfft(torch.fft.rfft(x, n=22) * torch.fft.rfft(self.kernel, n=22), n=22)[..., :11]
        return self.head((x + mixed).transpose(1, 2))


class Distances(nn.Module):
    """What counts is how far units lie from prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.prototypes = nn.Linear(9, 20), nn.Linear(20, 16), nn.Parameter(torch.zeros(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))), self.prototypes)


class Capsules(nn.Module):
    """Capsules vote for classes, and votes that agree are weighed more, three times over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.primary = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 24, 3, 2)
        self.votes = nn.Parameter(torch.zeros(5, 4, 6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        capsules = self.primary(F.relu(self.conv1(x))).unflatten(1, (4, 6)).flatten(3).permute(0, 3, 1, 2)
        votes = torch.einsum("bptd,ctdo->bcpto", capsules, self.votes)
        agreement = votes.new_zeros(votes.shape[:-1])
        for _ in range(3):
            outputs = (agreement.softmax(1)[..., None] * votes).sum((2, 3))
            squared = outputs.pow(2).sum(-1, keepdim=True)
            outputs = outputs * squared.sqrt() / (1 + squared)
            agreement = agreement + (votes * outputs[:, :, None, None]).sum(-1)
        return outputs.norm(dim=-1)


class DottedEinsum(nn.Module):
    """Attention by einsum with dots, and a product whose result is left unsaid."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(9, 24), nn.Linear(9, 24), nn.Linear(9, 24)
        self.mix, self.head = nn.Parameter(torch.zeros(24, 16)), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (split_heads(layer(x), 4) for layer in (self.query, self.key, self.value))
        weights = torch.einsum("...id,...jd->...ij", query, key).softmax(-1)
        read = torch.einsum("...ij,...jd->...id", weights, value)
        return self.head(torch.einsum("...c, co", read.transpose(1, 2).flatten(2), self.mix))


class LargerOfTwo(nn.Module):
    """The larger of two halves, element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 24), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.fc1(x).chunk(2, -1)
        return self.head(F.relu(self.fc2(torch.max(one, other))))


class ChosenByTruth(nn.Module):
    """What is below zero becomes one number, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 12), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x).clone()
        x[x < 0] = 0.1
        x = self.fc2(x)
        x[x.sum(-1) < 0] = 0.2  # whole samples
        return self.head(x)


class Messages(nn.Module):
    """A graph given by its edges: features of nodes are sent along them and added up."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 12), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        start, end = edges[0], edges[1]
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(torch.zeros_like(x).index_add(0, end, x[start])))
        sent = torch.zeros_like(x).scatter_reduce(0, end[:, None].expand(-1, 16), x[start], "amax")
        return self.head(x + sent + torch.zeros_like(x).scatter_add(0, end[:, None].expand(-1, 16), x[start]))


class AngleToPrototypes(nn.Module):
    """The cosine of the angle to each of five prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.prototypes = nn.Linear(9, 20), nn.Linear(20, 16), nn.Parameter(torch.zeros(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(self.fc2(F.relu(self.fc1(x)))[..., None, :], self.prototypes, dim=-1)


VIDEO = arguments(floats(2, 3, 3, 13, 11))

ARCHITECTURES = (
    Architecture("kernels_per_sample", "pitfall", KernelsPerSample, arguments(floats(2, 3, 11, 13), floats(2, 9))),
    Architecture("standardized_by_batch_norm", "pitfall", StandardizedByBatchNorm, IMAGES),
    Architecture("norm_over_features", "pitfall", NormOverFeatures, SEQUENCES),
    Architecture("shifted_time", "pitfall", ShiftedTime, SEQUENCES),
    Architecture("batch_times_heads", "pitfall", BatchTimesHeads, SEQUENCES),
    Architecture("shifted_channels", "pitfall", ShiftedChannels, VIDEO),
    Architecture("involution", "pitfall", Involution, IMAGES),
    Architecture("spectrum", "pitfall", Spectrum, SEQUENCES),
    Architecture("distances", "pitfall", Distances, SEQUENCES),
    Architecture("capsules", "pitfall", Capsules, IMAGES),
    Architecture("dotted_einsum", "pitfall", DottedEinsum, SEQUENCES),
    Architecture("larger_of_two", "pitfall", LargerOfTwo, VECTORS),
    Architecture("chosen_by_truth", "pitfall", ChosenByTruth, VECTORS),
    Architecture("messages", "pitfall", Messages, arguments(floats(13, 9), integers(13, 2, 29))),
    Architecture("angle_to_prototypes", "pitfall", AngleToPrototypes, SEQUENCES),
)
