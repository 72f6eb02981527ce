"""Lossless codecs for arrays; entropy coding uses the library constriction. Each codec has its own file."""

from mirabelle.artifact.codecs.codec import Codec
from mirabelle.artifact.codecs.contexts import Contexts
from mirabelle.artifact.codecs.deflate import Deflate
from mirabelle.artifact.codecs.histogram import Histogram
from mirabelle.artifact.codecs.palette import Palette
from mirabelle.artifact.codecs.planes import Planes
from mirabelle.artifact.codecs.sparse import Sparse

__all__ = ["Codec", "Contexts", "Deflate", "Histogram", "Palette", "Planes", "Sparse"]
