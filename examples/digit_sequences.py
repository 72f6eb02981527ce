"""Sequences of spoken digits without alignment: recordings one after the other, and a network that reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle import Task
from mirabelle.task.preprocessing import Sound, wav_samples

RATE, SECONDS, MOST = 8000, 3.5, 6  # samples a second, of a sequence, digits in it
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SPLITS = {"test": range(5), "validation": range(5, 10), "train": range(10, 50)}  # by the number that a recording's name ends in
COUNTS = {"train": 4000, "validation": 500, "test": 1000}


class Reader(nn.Module):
    """(batch, 1, 40, frames) to scores of nothing and ten digits every 40 ms, (batch, frames / 4, 11)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out, stride in ((1, width, 2), (width, width, 2), (width, 2 * width, (2, 1))):
            layers += [nn.Conv2d(into, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers.append(nn.Flatten(1, 2))
        for into, dilation in ((10 * width, 1), (4 * width, 2), (4 * width, 2)):
            layers += [nn.Conv1d(into, 4 * width, 5, padding=2 * dilation, dilation=dilation, bias=False)]
            layers += [nn.BatchNorm1d(4 * width), nn.ReLU(), nn.Dropout(0.1)]
        self.layers = nn.Sequential(*layers, nn.Conv1d(4 * width, 11, 1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores.transpose(1, 2)


def reader(width: int = 32) -> Reader:
    return Reader(width)


def task(data_dir: Path) -> Task:
    """Sequences of up to six digits of one speaker; no recording is in two of the splits."""
    sound = Sound(rate=RATE, seconds=SECONDS)
    drawn = {split: sequences(data_dir / "recordings", split, sound) for split in SPLITS}
    levels = drawn["train"][0]
    scaled = dataclasses.replace(sound, mean=(float(levels.mean()),), deviation=(float(levels.std()),))
    parts = {split: (torch.from_numpy(scaled.scaled(x)), torch.from_numpy(y)) for split, (x, y) in drawn.items()}
    return Task(
        **parts,
        loss="ctc",
        metric="character_accuracy",
        labels=("", *"0123456789"),
        name="digit sequences",
        preprocessing=scaled,
    )


def sequences(folder: Path, split: str, sound: Sound) -> tuple[np.ndarray, np.ndarray]:
    """(log-mel features, digits + 1 padded with -100): recordings of a drawn speaker with drawn pauses, as many as fit."""
    generator = np.random.default_rng(list(SPLITS).index(split))
    recordings = {
        (speaker, digit): [wav_samples(folder / f"{digit}_{speaker}_{k}.wav", RATE) for k in SPLITS[split]]
        for speaker in SPEAKERS
        for digit in range(10)
    }
    features, targets = [], np.full((COUNTS[split], MOST), -100)
    for target in targets:
        speaker, pieces, digits = generator.choice(SPEAKERS), [], generator.integers(0, 10, generator.integers(2, MOST + 1))
        for place, digit in enumerate(digits):
            takes = recordings[speaker, digit]
            piece = [np.zeros(generator.integers(0, RATE // 4), np.float32), takes[generator.integers(len(takes))]]
            if sum(map(len, [*pieces, *piece])) > SECONDS * RATE:
                break
            pieces += piece
            target[place] = digit + 1
        features.append(sound.features(np.concatenate(pieces)))
    return np.stack(features), targets
