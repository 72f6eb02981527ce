"""Axis groups derived by hand from the architectures, against which over-coupling and over-freezing show.

Exactness cannot see an engine that couples or freezes too much; these lists can. They are no complete lists: where it is not
certain that an axis can be cut exactly, it is absent, and a comment says so. Spatial, sequence, batch, vocabulary, input
and output axes are never cut and never listed.
"""

from __future__ import annotations

from .computed import COMPUTED
from .convolutional import CONVOLUTIONAL
from .moved import MOVED
from .notation import Group
from .others import OTHERS, RECURRENT
from .packaged import TRANSFORMERS
from .pitfalls import PITFALLS

EXPECTED: dict[str, tuple[Group, ...]] = PITFALLS | COMPUTED | RECURRENT | CONVOLUTIONAL | MOVED | OTHERS | TRANSFORMERS
