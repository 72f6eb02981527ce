"""Files are packed anew in every test, since some change how that is done."""

from __future__ import annotations

import pytest

from mirabelle.artifact import mira


@pytest.fixture(autouse=True)
def _packed_anew() -> None:
    mira._packed.cache_clear()
