"""A training's whole state in one safetensors file, so that a kill at any moment loses seconds and changes no bit."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.run import files

_COST = 0.01  # the fraction of the time that may go into writing checkpoints
_LEAST_SECONDS = 1.0


def seconds_before(path: Path) -> float:
    """How long the training whose checkpoint lies at `path` has taken so far; 0 where there is none."""
    written = Checkpoint(path).read()
    return float(written[1].get("seconds", 0.0)) if written is not None else 0.0


class Checkpoint:
    """Groups of tensors and plain numbers at `path`; written so seldom that it costs 1 % of the time at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written_at = time.monotonic()
        self._pause = _LEAST_SECONDS

    @property
    def due(self) -> bool:
        return time.monotonic() - self._written_at >= self._pause

    def write(self, groups: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        begin = time.monotonic()
        tensors = {f"{group}/{name}": tensor for group, members in groups.items() for name, tensor in members.items()}
        files.write_tensors(self.path, tensors, {"numbers": json.dumps(numbers)})
        self._written_at = time.monotonic()
        self._pause = max(_LEAST_SECONDS, (self._written_at - begin) / _COST)

    def read(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """What was written last, or None."""
        if not self.path.is_file():
            return None
        tensors, metadata = files.read_tensors(self.path)
        if "numbers" not in metadata:
            raise UserError("E141", f"{self.path} is no checkpoint", "remove it to train this step again")
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = tensor
        return groups, json.loads(metadata["numbers"])
