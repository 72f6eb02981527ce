"""Names of the calibration methods in settings; this module does not import torch."""

from typing import Literal

Calibration = Literal["min-max", "percentile", "entropy", "mse"]
