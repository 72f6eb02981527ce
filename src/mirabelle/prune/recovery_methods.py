"""Names of the methods that correct the kept weights after pruning, without labels."""

from __future__ import annotations

from typing import Literal

Recover = Literal["nothing", "batch-norm", "least-squares"]
