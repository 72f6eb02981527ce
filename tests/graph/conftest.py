"""Makes the package `zoo` beside this file importable in the tests of this folder, and keeps `transformers` off the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
