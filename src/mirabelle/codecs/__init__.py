"""Lossless codecs for arrays; entropy coding uses the library constriction. Each codec has its own file."""

from mirabelle.codecs.codec import Codec
from mirabelle.codecs.contexts import Contexts
from mirabelle.codecs.deflate import Deflate
from mirabelle.codecs.histogram import Histogram
from mirabelle.codecs.interleaved import Interleaved
from mirabelle.codecs.palette import Palette
from mirabelle.codecs.planes import Planes
from mirabelle.codecs.sparse import Sparse

__all__ = ["Codec", "Contexts", "Deflate", "Histogram", "Interleaved", "Palette", "Planes", "Sparse"]
