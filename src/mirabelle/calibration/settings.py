"""How ranges of activations are found, as settings name it; read without torch."""

from typing import Literal

Calibration = Literal["min-max", "percentile", "entropy"]
