"""Small well-known networks for recipes, examples and benchmarks."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.sources.datasets.rows import RowTransformer


def table_mlp(features: int, outputs: int, hidden: int = 64, dropout: float = 0.1) -> nn.Sequential:
    """A multilayer perceptron for the rows of a table: two hidden layers with ReLU and dropout.

    Args:
        features: number of inputs, (batch, features); `mirabelle init` and `mirabelle check` say how many a table gives.
        outputs: number of outputs: one for each class, or one number.
        hidden: units of the first hidden layer; the second has half of them.
        dropout: fraction of hidden units that are set to 0 while it learns.

    Example:
        >>> import torch
        >>> table_mlp(features=12, outputs=2)(torch.zeros(3, 12)).shape
        torch.Size([3, 2])
    """
    half = max(hidden // 2, 1)
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(features, hidden),
            relu1=nn.ReLU(),
            drop1=nn.Dropout(dropout),
            fc2=nn.Linear(hidden, half),
            relu2=nn.ReLU(),
            drop2=nn.Dropout(dropout),
            fc3=nn.Linear(half, outputs),
        )
    )


def lenet300(dropout: float = 0.0) -> nn.Sequential:
    """LeNet-300-100: a multilayer perceptron 784–300–100–10 with ReLU; 266,610 parameters, inputs (batch, 1, 28, 28).

    Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition".
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            drop1=nn.Dropout(dropout),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            drop2=nn.Dropout(dropout),
            fc3=nn.Linear(100, 10),
        )
    )


def lenet5(dropout: float = 0.0) -> nn.Sequential:
    """LeNet-5 in Caffe's version: two 5×5 convolutions with max pooling and without ReLU, and two dense layers.

    431,080 parameters, inputs (batch, 1, 28, 28).

    Source: Jia et al. 2014, Caffe, examples/mnist/lenet.prototxt; pruned by Han et al. 2015 and later papers.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            drop1=nn.Dropout(dropout),
            fc2=nn.Linear(500, 10),
        )
    )


def vgg6() -> nn.Sequential:
    """A VGG-like network of four 3×3 convolutions and two dense layers, with dropout; a good teacher for the LeNets on MNIST.

    329,962 parameters, inputs (batch, 1, 28, 28).

    Source: Simonyan & Zisserman 2015, arXiv:1409.1556 (architecture); Srivastava et al. 2014, "Dropout".
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 32, 3),
            relu2=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            drop1=nn.Dropout(0.25),
            conv3=nn.Conv2d(32, 64, 3),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(64, 64, 3),
            relu4=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            drop2=nn.Dropout(0.25),
            flatten=nn.Flatten(),
            fc1=nn.Linear(1024, 256),
            relu5=nn.ReLU(),
            drop3=nn.Dropout(0.5),
            fc2=nn.Linear(256, 10),
        )
    )


def digits_cnn() -> nn.Sequential:
    """Two convolutions and two dense layers for 8×8 digits; 70,576 parameters, inputs (batch, 1, 8, 8)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(1024, 50),
            relu3=nn.ReLU(),
            fc2=nn.Linear(50, 10),
        )
    )


def digits_mlp(hidden: int = 16) -> nn.Sequential:
    """One hidden layer for 8×8 digits, a student for `digits_cnn`; 75 · hidden + 10 parameters, inputs (batch, 1, 8, 8)."""
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(64, hidden), relu1=nn.ReLU(), fc2=nn.Linear(hidden, 10))
    )


def digits_transformer(width: int = 24, layers: int = 4, heads: int = 4) -> RowTransformer:
    """A transformer that reads 8×8 digits row by row; 20,194 parameters with the defaults, inputs (batch, 1, 8, 8)."""
    return RowTransformer(8, width, layers, heads)


def vgg8(classes: int = 10) -> nn.Sequential:
    """VGG-8: five 3×3 convolutions of 64 to 512 channels with batch norm and max pooling, and one dense layer.

    3,917,386 parameters, inputs (batch, 3, 32, 32). Often used as a student of residual networks.

    Source: Simonyan & Zisserman 2015, arXiv:1409.1556 (architecture); Tian, Krishnan, Isola 2020, arXiv:1910.10699 (as
    student).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    into = 3
    for k, out in enumerate((64, 128, 256, 512, 512), start=1):
        layers |= {
            f"conv{k}": nn.Conv2d(into, out, 3, padding=1, bias=False),
            f"norm{k}": nn.BatchNorm2d(out),
            f"relu{k}": nn.ReLU(),
        }
        if k < 5:  # noqa: PLR2004 (the last two are of one size)
            layers[f"pool{k}"] = nn.MaxPool2d(2)
        into = out
    layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(into, classes)}
    return nn.Sequential(layers)


def resnet20() -> ResNet:
    """ResNet-20 for CIFAR: three blocks in each stage; 269,722 parameters, inputs (batch, 3, 32, 32).

    Source: He, Zhang, Ren, Sun 2016, arXiv:1512.03385, section 4.2.
    """
    return ResNet(blocks=3)


def resnet56() -> ResNet:
    """ResNet-56 for CIFAR: nine blocks in each stage; 853,018 parameters, inputs (batch, 3, 32, 32).

    Source: He, Zhang, Ren, Sun 2016, arXiv:1512.03385, section 4.2.
    """
    return ResNet(blocks=9)


class ResNet(nn.Module):
    """The residual networks for CIFAR: a convolution, three stages of 16, 32 and 64 channels, average pooling, a linear layer.

    Shortcuts have no parameters: where a stage halves the image size, they take every second pixel and pad the channels with
    zeros on both sides. Tensors have the names of the common PyTorch implementations, so that published weights can be loaded.

    Args:
        blocks: number of blocks in each stage; the network has 6 · blocks + 2 layers.
        classes: number of outputs.

    Example:
        >>> import torch
        >>> resnet20()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source: He, Zhang, Ren, Sun 2016, arXiv:1512.03385, section 4.2, shortcuts of option A.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        outputs: Tensor = self.linear(features.mean((2, 3)))
        return outputs


class _Block(nn.Module):
    """A residual block: two 3×3 convolutions and a shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stride = width // channels  # a stage that doubles the channels halves the size
        self.added = (width - channels) // 2
        self.conv1 = nn.Conv2d(channels, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        if self.stride > 1:
            features = F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(inner + features)


def _stage(channels: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(channels, width), *(_Block(width, width) for _ in range(blocks - 1)))
