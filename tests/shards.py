"""Tar files with images, as WebDataset has them, for tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(level: int, seed: int, size: tuple[int, int] = (12, 12)) -> bytes:
    """A picture of noise around a level."""
    noise = np.random.default_rng(seed).normal(level, 20, (*size, 3))
    data = io.BytesIO()
    Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]] | Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file with these members, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def samples(first: int, count: int, **as_json: Any) -> list[tuple[str, bytes]]:
    """Members of samples of two classes, dark and bright: 0001.png and 0001.cls, or a field of 0001.json."""
    found: list[tuple[str, bytes]] = []
    for k in range(first, first + count):
        label = k % 2
        found.append((f"{k:04}.png", png(60 + 130 * label, k)))
        if as_json:
            field, names = next(iter(as_json.items()))
            found.append((f"{k:04}.json", json.dumps({"width": 12, field: names[label]}).encode()))
        else:
            found.append((f"{k:04}.cls", str(label).encode()))
    return found


def write_shards(folder: Path, count: int = 2, each: int = 20, **as_json: Any) -> Path:
    """A folder of shards, train-000000.tar and so on."""
    for k in range(count):
        write_tar(folder / f"train-{k:06}.tar", samples(k * each, each, **as_json))
    return folder
