"""What the autoencoders of examples/mnist-vae.toml draw, before and after, as one picture: examples/mnist-vae.png.

    python benchmarks/vae_pictures.py --data-dir DATA [RUN]

Rows: images of the test set, what the first network makes of them, what the last one does; then codes drawn from N(0, 1), the same for
both, through the decoder of the first and of the last. RUN is the folder of the finished run, by default runs/examples/mnist-vae.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import mirabelle
from conditions import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from mnist_vae import LATENT, PIXELS, net, pictures, small

COLUMNS, GAP = 16, 2


def row(pixels: Tensor) -> Tensor:
    """(images, 784) in [0, 1] side by side, (28 + gap, images · (28 + gap))."""
    padded = torch.nn.functional.pad(pixels.reshape(-1, 28, 28), (0, GAP, 0, GAP), value=0.5)
    return torch.cat(list(padded), 1)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "examples" / "mnist-vae")
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    first = mirabelle.load(net, options.run / "steps" / "0-baseline").eval()
    last = mirabelle.load(small, options.run).eval()
    images = pictures(options.data_dir).test.first(COLUMNS).inputs
    codes = torch.randn(COLUMNS, LATENT, generator=torch.Generator().manual_seed(0))
    rows = [images.flatten(1)]
    rows += [model(images)[:, :PIXELS].sigmoid() for model in (first, last)]
    rows += [model.decoder(codes).sigmoid() for model in (first, last)]
    sheet = (255 * torch.cat([row(pixels) for pixels in rows])).round().byte().numpy()
    Image.fromarray(sheet).resize((2 * sheet.shape[1], 2 * sheet.shape[0]), Image.Resampling.NEAREST).save(
        ROOT / "examples" / "mnist-vae.png", optimize=True
    )


if __name__ == "__main__":
    main()
