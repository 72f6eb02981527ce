"""How weights that stay are fitted after a cut."""

from __future__ import annotations

from typing import Literal

Recover = Literal["nothing", "batch-norm", "least-squares"]
