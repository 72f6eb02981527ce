"""Convolutional networks whose output is an image, a map or boxes, and those that fuse several resolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import Architecture, arguments, floats
from .cnn import BasicBlock, ConvNorm


def resized(x: torch.Tensor, like: torch.Tensor, mode: str = "nearest") -> torch.Tensor:
    return F.interpolate(x, like.shape[2:], mode=mode)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(ConvNorm(3, 8), ConvNorm(8, 8))
        self.down2 = nn.Sequential(ConvNorm(8, 16), ConvNorm(16, 16))
        self.bottom = nn.Sequential(ConvNorm(16, 24), ConvNorm(24, 24))
        self.up2 = nn.ConvTranspose2d(24, 16, 2, 2)
        self.merge2 = nn.Sequential(ConvNorm(32, 16), ConvNorm(16, 16))
        self.up1 = nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge1 = nn.Sequential(ConvNorm(16, 12), ConvNorm(12, 12))
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        x = self.bottom(F.max_pool2d(coarse, 2))
        x = self.merge2(torch.cat([coarse, self.up2(x)], 1))
        x = self.merge1(torch.cat([fine, self.up1(x)], 1))
        return self.head(x)


class Espcn(nn.Module):
    """Super-resolution: all work at low resolution, then channels become pixels."""

    def __init__(self, factor: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 5, padding=2)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.conv3(torch.tanh(self.conv2(torch.tanh(self.conv1(x))))))


class Edsr(nn.Module):
    """Super-resolution: scaled residual blocks without norms; pixels are shuffled in the middle of the net."""

    def __init__(self, width: int = 16, inner: int = 20) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.4]).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.expand = nn.ModuleList(nn.Conv2d(width, inner, 3, padding=1) for _ in range(2))
        self.project = nn.ModuleList(nn.Conv2d(inner, width, 3, padding=1) for _ in range(2))
        self.up = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x - self.mean)
        body = stem
        for expand, project in zip(self.expand, self.project, strict=True):
            body = body + 0.1 * project(F.relu(expand(body)))
        return self.tail(F.pixel_shuffle(self.up(body + stem), 2)) + self.mean


class Generator(nn.Module):
    """DCGAN: noise becomes an image through transposed convolutions."""

    def __init__(self, noise: int = 18) -> None:
        super().__init__()
        self.project = nn.ConvTranspose2d(noise, 32, (3, 5), bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.up1 = nn.ConvTranspose2d(32, 24, 4, 2, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(24)
        self.up2 = nn.ConvTranspose2d(24, 12, 4, 2, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(12)
        self.image = nn.ConvTranspose2d(12, 3, 3, 1, 1)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.project(noise[:, :, None, None])))
        x = F.relu(self.norm2(self.up1(x)))
        return torch.tanh(self.image(F.relu(self.norm3(self.up2(x)))))


class LinearGenerator(nn.Module):
    """Noise, a linear layer, and its outputs read as channels and pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(18, 24 * 3 * 5)
        self.conv1 = nn.Conv2d(24, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        x = self.fc(noise).view(-1, 24, 3, 5)
        x = F.leaky_relu(self.conv1(F.interpolate(x, scale_factor=2)), 0.2)
        return torch.sigmoid(self.conv2(F.interpolate(x, scale_factor=2)))


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 4, 2, 1)
        self.conv2 = nn.Conv2d(12, 24, 4, 2, 1)
        self.norm2 = nn.InstanceNorm2d(24, affine=True)
        self.judge = nn.Conv2d(24, 1, (4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.conv1(x), 0.2)
        return self.judge(F.leaky_relu(self.norm2(self.conv2(x)), 0.2)).view(-1)


class ConvAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ELU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ELU())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(24, 12, 3, 2, 1, output_padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(12, 3, 3, 2, 1, output_padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class HighResolution(nn.Module):
    """HRNet: branches of two resolutions that exchange their features by sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 12)
        self.split = nn.ModuleList([ConvNorm(12, 8), ConvNorm(12, 16, stride=2)])
        self.high = BasicBlock(8, 8, 1)
        self.low = BasicBlock(16, 16, 1)
        self.raise_low = ConvNorm(16, 8, 1, activation=None)
        self.lower_high = ConvNorm(8, 16, 3, 2, activation=None)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        high, low = self.high(self.split[0](x)), self.low(self.split[1](x))
        high, low = F.relu(high + resized(self.raise_low(low), high)), F.relu(low + self.lower_high(high))
        return self.head(torch.cat([high, resized(low, high)], 1))


class DeepLayerAggregation(nn.Module):
    """DLA: the outputs of the blocks, and of a smaller tree, meet in 1×1 roots."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 12)
        self.block1, self.block2 = BasicBlock(12, 16, 1), BasicBlock(16, 16, 1)
        self.root1 = ConvNorm(32, 16, 1)
        self.block3, self.block4 = BasicBlock(16, 16, 1), BasicBlock(16, 16, 1)
        self.root2 = ConvNorm(48, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.block1(self.stem(x))
        second = self.block2(first)
        tree = self.root1(torch.cat([second, first], 1))
        third = self.block3(tree)
        fourth = self.block4(third)
        return self.head(self.root2(torch.cat([fourth, third, tree], 1)).mean((2, 3)))


class FeaturePyramid(nn.Module):
    """FPN with one head that is called on every level."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = ConvNorm(3, 12, 3, 2), ConvNorm(12, 16, 3, 2), ConvNorm(16, 32, 3, 2)
        self.lateral = nn.ModuleList(nn.Conv2d(width, 20, 1) for width in (12, 16, 32))
        self.smooth = nn.ModuleList(nn.Conv2d(20, 20, 3, padding=1) for _ in range(3))
        self.tower = nn.Conv2d(20, 24, 3, padding=1)
        self.classes = nn.Conv2d(24, 5, 3, padding=1)
        self.boxes = nn.Conv2d(24, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.stage1(x)
        middle = self.stage2(fine)
        levels = [lateral(x) for lateral, x in zip(self.lateral, (fine, middle, self.stage3(middle)), strict=True)]
        levels[1] = levels[1] + resized(levels[2], levels[1])
        levels[0] = levels[0] + resized(levels[1], levels[0])
        towers = [F.relu(self.tower(smooth(level))) for smooth, level in zip(self.smooth, levels, strict=True)]
        classes = torch.cat([self.classes(tower).flatten(2) for tower in towers], 2)
        boxes = torch.cat([self.boxes(tower).flatten(2) for tower in towers], 2)
        return classes.transpose(1, 2), boxes.transpose(1, 2)


class PyramidPooling(nn.Module):
    """DeepLab: dilated branches and the mean over the image, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, 2)
        self.point = ConvNorm(16, 12, 1)
        self.dilated = nn.ModuleList(nn.Conv2d(16, 12, 3, padding=rate, dilation=rate, bias=False) for rate in (2, 3))
        self.pooled = nn.Conv2d(16, 12, 1)
        self.project = ConvNorm(48, 20, 1)
        self.head = nn.Conv2d(20, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x)
        pooled = F.relu(self.pooled(F.adaptive_avg_pool2d(stem, 1))).expand(-1, -1, *stem.shape[2:])
        branches = [self.point(stem), *(F.relu(conv(stem)) for conv in self.dilated), pooled]
        return resized(self.head(self.project(torch.cat(branches, 1))), x, "bilinear")


class PassthroughDetector(nn.Module):
    """YOLOv2: pixels of a fine map become channels beside the coarse map."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = ConvNorm(3, 12, activation=nn.LeakyReLU)
        self.coarse = ConvNorm(12, 24, 3, 2, activation=nn.LeakyReLU)
        self.narrow = ConvNorm(12, 8, 1, activation=nn.LeakyReLU)
        self.merge = ConvNorm(24 + 32, 32, 1, activation=nn.LeakyReLU)
        self.detect = nn.Conv2d(32, 3 * (5 + 4), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        passed = F.pixel_unshuffle(self.narrow(fine), 2)
        out = self.detect(self.merge(torch.cat([passed, self.coarse(fine)], 1)))
        batch, _, height, width = out.shape
        return out.view(batch, 3, 9, height, width).permute(0, 1, 3, 4, 2)


class Hourglass(nn.Module):
    """Two stacked down-and-up passes; the maps of the first are fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16)
        self.inner = nn.ModuleList(nn.Sequential(ConvNorm(16, 24), ConvNorm(24, 16)) for _ in range(2))
        self.skip = nn.ModuleList(ConvNorm(16, 16, 1) for _ in range(2))
        self.maps = nn.ModuleList(nn.Conv2d(16, 5, 1) for _ in range(2))
        self.back = nn.Conv2d(5, 16, 1)

    def passed(self, x: torch.Tensor, index: int) -> torch.Tensor:
        inner = self.inner[index](F.max_pool2d(x, 2))
        return self.skip[index](x) + resized(inner, x)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        first = self.passed(x, 0)
        maps = self.maps[0](first)
        return maps, self.maps[1](self.passed(x + first + self.back(maps), 1))


ARCHITECTURES = (
    Architecture("unet", "dense", UNet, arguments(floats(2, 3, 20, 28))),
    Architecture("espcn", "dense", Espcn, arguments(floats(2, 1, 11, 13))),
    Architecture("edsr", "dense", Edsr, arguments(floats(2, 3, 11, 13))),
    Architecture("gan_generator", "dense", Generator, arguments(floats(2, 18))),
    Architecture("linear_gan_generator", "dense", LinearGenerator, arguments(floats(2, 18))),
    Architecture("gan_discriminator", "dense", Discriminator, arguments(floats(2, 3, 19, 23))),
    Architecture("conv_autoencoder", "dense", ConvAutoencoder, arguments(floats(2, 3, 20, 28))),
    Architecture("high_resolution", "dense", HighResolution, arguments(floats(2, 3, 19, 23))),
    Architecture("deep_layer_aggregation", "dense", DeepLayerAggregation, arguments(floats(2, 3, 13, 19))),
    Architecture("feature_pyramid", "dense", FeaturePyramid, arguments(floats(2, 3, 37, 43))),
    Architecture("pyramid_pooling", "dense", PyramidPooling, arguments(floats(2, 3, 37, 43))),
    Architecture("passthrough_detector", "dense", PassthroughDetector, arguments(floats(2, 3, 22, 26))),
    Architecture("hourglass", "dense", Hourglass, arguments(floats(2, 3, 19, 23))),
)
