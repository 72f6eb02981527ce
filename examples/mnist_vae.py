"""MNIST pictures out of sixteen numbers: a variational autoencoder, and pictures that its decoder draws."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle import Task
from mirabelle.sources import task_from
from mirabelle.task import Samples
from mirabelle.task.preprocessing import Image

PIXELS, LATENT = 784, 16


class VAE(nn.Module):
    """images (batch, 1, 28, 28) → logits of the pixels, then means and log variances of the code, (batch, 784 + 16 + 16).

    While it learns, the decoder reads a code drawn around the mean (Kingma, Welling 2014, arXiv:1312.6114); else the mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PIXELS)
        )

    def forward(self, images: Tensor) -> Tensor:
        code = self.encoder(images)
        mean, log_variance = code[:, :LATENT], code[:, LATENT:]
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return torch.cat([self.decoder(drawn), code], 1)


def net() -> VAE:
    return VAE(512)


def small() -> VAE:
    return VAE(256)


def bound(outputs: Tensor, targets: Tensor) -> Tensor:
    """log p(image | code) − KL(code, N(0, 1)) of each sample in nats, (samples,): the higher the better."""
    outputs = outputs.float()
    logits, mean, log_variance = outputs[:, :PIXELS], outputs[:, PIXELS:-LATENT], outputs[:, -LATENT:]
    negative_log_likelihood = F.binary_cross_entropy_with_logits(logits, targets.flatten(1), reduction="none").sum(1)
    return -negative_log_likelihood - 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return -bound(outputs, targets).mean() / PIXELS


def reconstruction(outputs: Tensor, targets: Tensor) -> Tensor:
    """−mean((pixel − its probability)²) of each sample."""
    return -(outputs[:, :PIXELS].sigmoid() - targets.flatten(1)).square().mean(1)


def pictures(data_dir: Path) -> Task:
    """Images as they are, to be given back."""
    digits = task_from("mnist", {}, data_folder=data_dir, folder=Path())
    scale = digits.preprocessing

    def both(samples: Samples) -> tuple[Tensor, Tensor]:
        images = (samples.inputs * scale.deviation[0] + scale.mean[0]).clamp(0, 1)
        return images, images

    return Task(
        train=both(digits.train),
        validation=both(digits.validation),
        test=both(digits.test),
        loss=loss,
        metric=bound,
        extra_metrics=(reconstruction,),
        name="mnist pictures",
        preprocessing=Image(size=(28, 28), mode="L"),
    )
