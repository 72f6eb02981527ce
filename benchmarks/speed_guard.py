"""No model is shipped slower: twenty networks of random weights, each quantized as a user would, with the guard on.

Speed does not depend on the values of weights, so nothing is trained. `--batch 32` asks for batches, `--only NAME` for one
network. The time of every network before and after is measured by the run itself, in alternation.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mirabelle
from conditions import write
from mirabelle import Task, quantize
from mirabelle.report import Report, read_report
from mirabelle.sources import zoo

CLASSES, SAMPLES, GAIN = 10, 64, 1.2


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(inputs, inputs, 3, stride, groups=inputs), conv(inputs, outputs, 1))


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


def plain(*widths: int) -> nn.Module:
    parts: list[nn.Module] = [conv(3, widths[0])]
    for before, width in itertools.pairwise(widths):
        parts += [conv(before, width), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, *head(widths[-1]))


def mobile(first: int, *widths: int) -> nn.Module:
    parts: list[nn.Module] = [conv(3, first, stride=2)]
    for k, (before, width) in enumerate(zip((first, *widths), widths, strict=False)):
        parts.append(separable(before, width, 1 + k % 2))
    return nn.Sequential(*parts, *head(widths[-1]))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, middle: int = 0, groups: int = 1) -> None:
        super().__init__()
        middle = middle or outputs
        spread = conv(inputs, middle, 1 if groups > 1 else 3, 1 if groups > 1 else stride)
        depth = conv(middle, middle, 3, stride, middle) if groups > 1 else nn.Identity()
        last = nn.Conv2d(middle, outputs, 1 if groups > 1 else 3, padding=0 if groups > 1 else 1, bias=False)
        self.body = nn.Sequential(spread, depth, last, nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet(blocks: int, *widths: int) -> nn.Module:
    parts: list[nn.Module] = [conv(3, widths[0])]
    before = widths[0]
    for k, width in enumerate(widths):
        for block in range(blocks):
            parts.append(Residual(before, width, 2 if k and not block else 1))
            before = width
    return nn.Sequential(*parts, *head(before))


def inverted(*widths: int) -> nn.Module:
    parts: list[nn.Module] = [conv(3, widths[0], stride=2)]
    for before, width in itertools.pairwise(widths):
        parts += [Residual(before, width, 2, 6 * before, groups=2), Residual(width, width, 1, 6 * width, groups=2)]
    return nn.Sequential(*parts, *head(widths[-1]))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = self.norm_1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm_2(x + self.down(F.gelu(self.up(x))))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, length: int = 32, *, causal: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(1000, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*[Block(width, heads, 4 * width, causal=causal) for _ in range(layers)])
        self.scores = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.scores(self.blocks(self.tokens(ids) + self.places).mean(1))


class Patches(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patches, self.blocks = (
            nn.Conv2d(3, width, 8, 8),
            nn.Sequential(*[Block(width, heads, 4 * width, causal=False) for _ in range(layers)]),
        )
        self.scores = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU], width: int) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(1000, 64), kind(64, width, batch_first=True)
        self.first, self.scores = nn.Linear(width, 4 * width), nn.Linear(4 * width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.scores(F.relu(self.first(self.layer(self.tokens(ids))[0][:, -1])))


def mlp(*widths: int) -> nn.Module:
    parts: list[nn.Module] = []
    for before, width in itertools.pairwise(widths):
        parts += [nn.Linear(before, width), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def images(size: int, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(SAMPLES, channels, size, size)


def tokens(length: int = 32) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 1000, (SAMPLES, length))


def rows(width: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(SAMPLES, width)


S, D = quantize.Static(), quantize.Dynamic()
Made = tuple[Callable[[], nn.Module], Callable[[], Tensor], Any]
NETWORKS: dict[str, Made] = {
    "digits CNN": (zoo.digits_cnn, images(8, 1), S),
    "LeNet-5": (lambda: nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 500),
        nn.ReLU(), nn.Linear(500, 10)), images(28, 1), S),
    "ResNet-8": (lambda: resnet(1, 16, 32, 64), images(32), S),
    "ResNet-20": (lambda: resnet(3, 16, 32, 64), images(32), S),
    "ResNet-56": (lambda: resnet(9, 16, 32, 64), images(32), S),
    "wide ResNet": (lambda: resnet(2, 64, 128, 256), images(32), S),
    "ResNet at 96 pixels": (lambda: resnet(2, 64, 128, 256, 512), images(96), S),
    "VGG-8": (lambda: plain(64, 128, 256, 512), images(32), S),
    "narrow CNN": (lambda: plain(8, 16, 32), images(32), S),
    "MobileNet, quarter width": (lambda: mobile(8, 16, 32, 32, 64, 64, 128, 128, 256), images(64), S),
    "MobileNet": (lambda: mobile(32, 64, 128, 128, 256, 256, 512, 512, 1024), images(96), S),
    "MobileNet v2": (lambda: inverted(16, 24, 32, 64, 96), images(96), S),
    "two-layer transformer": (lambda: Transformer(128, 2, 2), tokens(), D),
    "MiniLM's size": (lambda: Transformer(384, 6, 12), tokens(), D),
    "causal transformer": (lambda: Transformer(256, 4, 4, 64, causal=True), tokens(64), D),
    "vision transformer": (lambda: Patches(192, 6, 3), images(64), D),
    "LSTM": (lambda: Recurrent(nn.LSTM, 256), tokens(), D),
    "GRU": (lambda: Recurrent(nn.GRU, 64), tokens(), D),
    "LeNet-300-100": (lambda: mlp(784, 300, 100, 10), rows(784), S),
    "tiny MLP": (lambda: mlp(16, 32, 32, 10), rows(16), S),
}  # fmt: skip


def measured(name: str, goal: dict[str, Any], folder: Path) -> Report:
    torch.manual_seed(0)
    make, inputs, step = NETWORKS[name]
    x, y = inputs(), torch.arange(SAMPLES) % CLASSES
    task = Task(train=(x, y), test=(x, y), name=name)
    return read_report(mirabelle.compress(make().eval(), task, [step], goal, out=folder / name.replace(" ", "-")).folder)


def table(reports: dict[str, Report]) -> Iterator[str]:
    for name, report in reports.items():
        ratio, size = report.comparison.latency_ratio, report.end.size_bytes
        assert report.start.latency_ms
        assert report.end.latency_ms
        smaller = (report.start.size_bytes.onnx or 1) / (size.onnx or 1)
        yield (
            f"| {name} | {report.start.latency_ms.median:.3g} → {report.end.latency_ms.median:.3g} | {1 / ratio.median:.2f} "
            f"({1 / ratio.high:.2f} to {1 / ratio.low:.2f}) | {smaller:.1f} | "
            f"{'; '.join(speed.in_words() for speed in report.speeds) or 'nothing changes'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", default=[])
    asked = parser.parse_args()
    reports: dict[str, Report] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only or NETWORKS:
            begin = time.monotonic()
            reports[name] = measured(name, {"batch": asked.batch, "threads": asked.threads}, Path(folder))
            print(next(table({name: reports[name]})), f"{time.monotonic() - begin:.0f} s", flush=True)
    ratios = [report.comparison.latency_ratio for report in reports.values()]
    slower, gained = sum(ratio.slower for ratio in ratios), sum(1 / ratio.median >= GAIN for ratio in ratios)
    page = "\n".join(
        [
            "# No model is shipped slower", "",
            f"{len(reports)} networks, ONNX Runtime, batch {asked.batch}, {asked.threads} thread(s); the machine had a load of {load:.0f}.", "",
            "| | asked | reached |", "|---|--:|--:|",
            f"| shipped slower (the interval of the ratio lies above 1) | 0 | {slower} |",
            f"| at least {GAIN}× faster | ≥ 12 of 20 | {gained} of {len(reports)} |", "",
            "| network | ms | times faster (95 %) | times smaller ONNX file | step |", "|---|--:|--:|--:|---|",
            *table(reports),
        ]
    )  # fmt: skip
    rows_of = {
        name: {"ratio": report.comparison.latency_ratio.to_data(), "speeds": [s.to_data() for s in report.speeds]}
        for name, report in reports.items()
    }
    if not asked.only:
        suffix = "" if asked.batch == 1 else f"_batch_{asked.batch}"
        write(f"speed_guard{suffix}", {"slower": slower, "gained": gained, "load": load, "networks": rows_of}, page + "\n")


if __name__ == "__main__":
    main()
