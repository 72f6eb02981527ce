"""Small models as the literature has them, for recipes, examples and benchmarks."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def lenet300(dropout: float = 0.0) -> nn.Sequential:
    """LeNet-300-100: 784–300–100–10 with ReLU, 266,610 parameters; takes (batch, 1, 28, 28).

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
    """LeNet-5 as Caffe has it: two convolutions 5×5 with max pooling and no ReLU between, 431,080 parameters.

    Takes (batch, 1, 28, 28).

    Source: Jia et al. 2014, Caffe, examples/mnist/lenet.prototxt; the network that Han 2015 and its successors prune.
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
    """Four convolutions 3×3 in the manner of VGG and two dense layers, with dropout; 329,962 parameters.

    Takes (batch, 1, 28, 28). A strong teacher for the networks above.

    Source: Simonyan & Zisserman 2015, arXiv:1409.1556 (the manner); Srivastava et al. 2014, "Dropout".
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
    """Two convolutions and two dense layers for 8×8 digits, (batch, 1, 8, 8); 70,576 parameters."""
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
    """One hidden layer for 8×8 digits: a student for `digits_cnn`; 75 · hidden + 10 parameters."""
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(64, hidden), relu1=nn.ReLU(), fc2=nn.Linear(hidden, 10))
    )
