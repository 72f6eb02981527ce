"""The artifacts of a run: a folder with the compressed model, and the packed file format .mira.

Names are imported when they are first used, so that a packed file is read without torch.
"""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.artifact.folder import load, save
    from mirabelle.artifact.mira import PackedModel, pack, unpack

__all__ = ["PackedModel", "load", "pack", "save", "unpack"]
__getattr__ = lazily("mirabelle.artifact", {"folder": ["load", "save"], "mira": ["PackedModel", "pack", "unpack"]})
