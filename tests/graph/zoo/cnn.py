"""Convolutional classifiers, from LeNet to networks without normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import Architecture, arguments, floats


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, unless it is None, an activation; size is kept at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        if activation is not None:
            self.act = activation()


class SqueezeExcite(nn.Module):
    """Scales channels by what the mean of each channel says."""

    def __init__(self, width: int, squeezed: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)
        self.gate = gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class Classifier(nn.Module):
    """Features, the mean over space, and a linear layer."""

    def __init__(self, features: nn.Module, width: int, classes: int = 10) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 5)
        self.conv2 = nn.Conv2d(12, 24, 5)
        self.fc1 = nn.Linear(24 * 4 * 5, 40)
        self.fc2 = nn.Linear(40, 20)
        self.fc3 = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 24 * 4 * 5)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class AlexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.ReLU(inplace=True),
            nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((2, 3)),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(24 * 6, 48), nn.ReLU(inplace=True), nn.Linear(48, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Vgg(nn.Module):
    def __init__(self, *, normalized: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (8, 16, 0, 24, 32, 0):
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(inputs, width, 3, padding=1))
            if normalized:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32 * 4 * 5, 48), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(48, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, width, stride=stride)
        self.second = ConvNorm(width, width, activation=None)
        self.shortcut = nn.Identity() if inputs == width else ConvNorm(inputs, width, 1, stride, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, width: int, stride: int, *, groups: int = 1, squeezed: int = 0) -> None:
        super().__init__()
        self.reduce = ConvNorm(inputs, inner, 1)
        self.spatial = ConvNorm(inner, inner, 3, stride, groups=groups)
        self.excite = SqueezeExcite(inner, squeezed) if squeezed else nn.Identity()
        self.expand = ConvNorm(inner, width, 1, activation=None)
        self.shortcut = (
            nn.Identity() if inputs == width and stride == 1 else ConvNorm(inputs, width, 1, stride, activation=None)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.expand(self.excite(self.spatial(self.reduce(x)))) + self.shortcut(x))


class OptionABlock(nn.Module):
    """The shortcut takes every second pixel and pads missing channels with zeros, half before and half after."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, 1 if inputs == width else 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.missing = width - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.missing:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing // 2, self.missing // 2))
        return F.relu(out + x)


class PreactivationBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, bias=False) if inputs != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, seen: list[torch.Tensor]) -> torch.Tensor:
        x = self.conv1(F.relu(self.bn1(torch.cat(seen, 1))))
        return self.conv2(F.relu(self.bn2(x)))


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + i * growth, growth) for i in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(seen))
        return torch.cat(seen, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = DenseBlock(16, 8, 3)
        self.transition = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2))
        self.block2 = DenseBlock(20, 8, 2)
        self.norm = nn.BatchNorm2d(36)
        self.head = nn.Linear(36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block2(self.transition(self.block1(self.stem(x))))
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class InceptionBlock(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.direct = ConvNorm(inputs, 8, 1)
        self.medium = nn.Sequential(ConvNorm(inputs, 10, 1), ConvNorm(10, 12))
        self.large = nn.Sequential(ConvNorm(inputs, 6, 1), ConvNorm(6, 14, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.direct(x), self.medium(x), self.large(x), self.pooled(x)], 1)


class Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.fire1 = Fire(16, 8, 12)
        self.fire2 = Fire(24, 8, 12)
        self.fire3 = Fire(24, 10, 16)
        self.classifier = nn.Conv2d(32, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, ceil_mode=True)
        x = self.fire1(x)
        x = self.fire3(x + self.fire2(x))
        return torch.flatten(F.adaptive_avg_pool2d(F.relu(self.classifier(x)), 1), 1)


class Res2Block(nn.Module):
    """The inner width is split into scales; each convolution also sees the result of the one before."""

    def __init__(self, width: int, inner: int, scales: int) -> None:
        super().__init__()
        self.share = inner // scales
        self.reduce = ConvNorm(width, inner, 1)
        self.branches = nn.ModuleList(ConvNorm(self.share, self.share) for _ in range(scales - 1))
        self.expand = ConvNorm(inner, width, 1, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(self.reduce(x), self.share, 1)
        results = [parts[0]]
        for i, branch in enumerate(self.branches):
            results.append(branch(parts[i + 1] if i == 0 else parts[i + 1] + results[-1]))
        return F.relu(self.expand(torch.cat(results, 1)) + x)


class StandardizedConv2d(nn.Conv2d):
    """Each filter has mean 0 and variance 1 / fan-in, times a learnt gain."""

    def __init__(self, inputs: int, outputs: int, size: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, size, padding=padding)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        scale = torch.rsqrt(torch.clamp(variance * self.weight[0].numel(), min=1e-4)) * self.gain
        return F.conv2d(x, (self.weight - mean) * scale, self.bias, self.stride, self.padding)


class NormalizerFreeBlock(nn.Module):
    def __init__(self, width: int, inner: int, beta: float) -> None:
        super().__init__()
        self.reduce = StandardizedConv2d(width, inner, 1)
        self.spatial = StandardizedConv2d(inner, inner, 3, 1)
        self.expand = StandardizedConv2d(inner, width, 1)
        self.skip_gain = nn.Parameter(torch.zeros(()))
        self.beta = beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.reduce(F.gelu(x) * self.beta)
        out = self.expand(F.gelu(self.spatial(F.gelu(out))))
        return x + 0.2 * self.skip_gain * out


class PolyBlock(nn.Module):
    """x + f(x) + f(f(x)), with one f."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.path = nn.Sequential(ConvNorm(width, inner), ConvNorm(inner, width, activation=None))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        once = self.path(x)
        return F.relu(x + once + self.path(F.relu(once)))


class SelectiveKernel(nn.Module):
    """Two receptive fields, mixed per channel by a softmax over the two."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.narrow = ConvNorm(width, width, 3, groups=4)
        self.wide = ConvNorm(width, width, 5, groups=4)
        self.squeeze = nn.Linear(width, squeezed)
        self.select = nn.ModuleList(nn.Linear(squeezed, width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fields = torch.stack([self.narrow(x), self.wide(x)], 1)
        squeezed = F.relu(self.squeeze(fields.sum(1).mean((2, 3))))
        weights = torch.softmax(torch.stack([select(squeezed) for select in self.select], 1), 1)
        return x + (fields * weights[:, :, :, None, None]).sum(1)


class ConvolutionalAttention(nn.Module):
    """CBAM: channels weighted by mean and maximum over space, then pixels by mean and maximum over channels."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, maximum = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * torch.sigmoid(self.shared(mean) + self.shared(maximum))
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(summary))


class DualPath(nn.Module):
    """One output is split: a part is added to the residual path, the rest grows a dense path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16)
        self.first = nn.Sequential(ConvNorm(16, 12), ConvNorm(12, 16 + 8))
        self.second = nn.Sequential(ConvNorm(24, 12), ConvNorm(12, 16 + 8))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.stem(x)
        out = self.first(residual)
        residual, dense = residual + out[:, :16], out[:, 16:]
        out = self.second(torch.cat([residual, dense], 1))
        residual, dense = residual + out[:, :16], torch.cat([dense, out[:, 16:]], 1)
        return self.head(torch.cat([residual, dense], 1).mean((2, 3)))


def resnet_basic() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 8), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1)), 16)


def resnet_bottleneck() -> nn.Module:
    blocks = (Bottleneck(16, 8, 32, 1), Bottleneck(32, 8, 32, 1), Bottleneck(32, 12, 48, 2))
    return Classifier(nn.Sequential(ConvNorm(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks), 48)


def resnet_option_a() -> nn.Module:
    blocks = (OptionABlock(8, 8), OptionABlock(8, 16), OptionABlock(16, 16))
    return Classifier(nn.Sequential(ConvNorm(3, 8), *blocks), 16)


def preactivation_resnet() -> nn.Module:
    blocks = (PreactivationBlock(12, 12), PreactivationBlock(12, 24))
    return Classifier(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *blocks, nn.BatchNorm2d(24), nn.ReLU()), 24)


def resnext() -> nn.Module:
    return Classifier(
        nn.Sequential(ConvNorm(3, 16), Bottleneck(16, 24, 32, 1, groups=4), Bottleneck(32, 24, 32, 1, groups=4)), 32
    )


def regnet() -> nn.Module:
    blocks = (Bottleneck(16, 24, 24, 2, groups=3, squeezed=6), Bottleneck(24, 24, 24, 1, groups=3, squeezed=6))
    return Classifier(nn.Sequential(ConvNorm(3, 16, 3, 2), *blocks), 24)


def inception() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 16), InceptionBlock(16), nn.MaxPool2d(2), InceptionBlock(42)), 42)


def res2net() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 16), Res2Block(16, 24, 4), Res2Block(16, 32, 4)), 16)


def normalizer_free() -> nn.Module:
    blocks = (NormalizerFreeBlock(16, 8, 0.9), NormalizerFreeBlock(16, 8, 0.8))
    return Classifier(nn.Sequential(StandardizedConv2d(3, 16, 3, 1), *blocks), 16)


def polynet() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 12), PolyBlock(12, 8), PolyBlock(12, 16)), 12)


def network_in_network() -> nn.Module:
    layers = (
        nn.Conv2d(3, 16, 5),
        nn.ReLU(),
        nn.Conv2d(16, 12, 1),
        nn.ReLU(),
        nn.AvgPool2d(3, 2),
        nn.Conv2d(12, 24, 3),
        nn.ReLU(),
    )
    return nn.Sequential(*layers, nn.Conv2d(24, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def selective_kernels() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 16), SelectiveKernel(16, 12), ConvNorm(16, 24)), 24)


def convolutional_attention() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 24), ConvolutionalAttention(24, 8), ConvNorm(24, 32)), 32)


IMAGES = arguments(floats(2, 3, 19, 23))

ARCHITECTURES = (
    Architecture("lenet", "cnn", LeNet, arguments(floats(2, 1, 29, 35))),
    Architecture("alexnet", "cnn", AlexNet, arguments(floats(2, 3, 37, 43))),
    Architecture("vgg", "cnn", lambda: Vgg(normalized=False), arguments(floats(2, 3, 17, 21))),
    Architecture("vgg_bn", "cnn", lambda: Vgg(normalized=True), arguments(floats(2, 3, 17, 21))),
    Architecture("resnet_basic", "cnn", resnet_basic, IMAGES),
    Architecture("resnet_bottleneck", "cnn", resnet_bottleneck, arguments(floats(2, 3, 37, 41))),
    Architecture("resnet_option_a", "cnn", resnet_option_a, IMAGES),
    Architecture("preactivation_resnet", "cnn", preactivation_resnet, IMAGES),
    Architecture("resnext", "cnn", resnext, IMAGES),
    Architecture("regnet", "cnn", regnet, IMAGES),
    Architecture("densenet", "cnn", DenseNet, IMAGES),
    Architecture("inception", "cnn", inception, IMAGES),
    Architecture("squeezenet", "cnn", SqueezeNet, arguments(floats(2, 3, 29, 37))),
    Architecture("res2net", "cnn", res2net, IMAGES),
    Architecture("normalizer_free", "cnn", normalizer_free, IMAGES),
    Architecture("polynet", "cnn", polynet, IMAGES),
    Architecture("network_in_network", "cnn", network_in_network, IMAGES),
    Architecture("selective_kernels", "cnn", selective_kernels, IMAGES),
    Architecture("convolutional_attention", "cnn", convolutional_attention, IMAGES),
    Architecture("dual_path", "cnn", DualPath, IMAGES),
)
