"""What each tensor takes in a .mira file, beside the entropy of its elements."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mirabelle.artifact.head import DICTIONARY, Entry, Head, as_varints, code_entry
from mirabelle.artifact.mira import PackedModel
from mirabelle.artifact.structure import Structure
from mirabelle.artifact.tensors import NARROW, OWN, Tensor
from mirabelle.artifact.wire import MODEL, bytes_of
from mirabelle.codecs.deflate import deflate
from mirabelle.codecs.mixing import Mixed, MixedLength
from mirabelle.numerics.huffman import huffman_bits

_CODECS = {
    0: "none", 1: "deflate", 2: "histogram", 3: "planes", 4: "sparse", 5: "sparse planes", 6: "contexts", 7: "palette",
    8: "elements, in the head", 9: "contexts, in the head", 10: "product of two", 11: "multiples, in the head",
    12: "interleaved", 13: "contexts of multiples, in the head",
}  # fmt: skip


@dataclass(frozen=True)
class TensorCost:
    """What a tensor takes in a .mira file.

    Args:
        name: of the tensor.
        kind: its type in ONNX.
        shape: its sizes.
        codec: how its data are coded.
        size_bytes: coded data, and its entry in the head, which may be less than a byte.
        entropy_bytes: Σ −log₂ p(element) / 8, where p is the share of equal elements in the tensor: no table of them included.
        huffman_bytes: of a Huffman code of the elements, which takes whole bits for each of them; no table included.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    codec: str
    size_bytes: float
    entropy_bytes: float
    huffman_bytes: float

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class FileCosts:
    """What a .mira file consists of.

    Args:
        size_bytes: of the file.
        graph_bytes: of its graph.
        tensors: in their order.
    """

    size_bytes: int
    graph_bytes: float
    tensors: tuple[TensorCost, ...]

    def to_data(self) -> dict[str, Any]:
        return {
            "size_bytes": self.size_bytes,
            "graph_bytes": self.graph_bytes,
            "tensors": [one.to_data() for one in self.tensors],
        }


def costs_of(packed: bytes) -> FileCosts:
    """What a .mira file consists of, in bytes: the head is coded again to count its bits.

    Raises:
        UserError: as `unpack`.

    Example:
        >>> import onnx
        >>> from mirabelle import pack
        >>> weight = onnx.helper.make_tensor("w", 3, [900], bytes(900), raw=True)
        >>> graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [], [weight])
        >>> costs = costs_of(pack(onnx.helper.make_model(graph).SerializeToString()))
        >>> costs.tensors[0].entropy_bytes, costs.tensors[0].size_bytes < 9
        (0.0, True)
    """
    model = PackedModel(packed)
    head = model.head
    count = _Recount(head, MixedLength())
    tensors = []
    for tensor, entry in zip(head.tensors, head.entries, strict=True):
        values = model.array(tensor.name)
        _, shares = np.unique(_bits(values), return_counts=True)
        entropy = float(-(shares * np.log2(shares / max(values.size, 1))).sum()) / 8
        number = entry.number - NARROW if entry.number not in (*_CODECS, OWN) else entry.number
        codec = entry.name if number == OWN else _CODECS[number]
        size = entry.length + count.entry(tensor, entry)
        huffman = huffman_bits(shares.tolist()) / 8
        tensors.append(TensorCost(tensor.name, tensor.kind_name, tensor.shape, codec, size, abs(entropy), huffman))
    return FileCosts(len(packed), count.graph, tuple(tensors))


class _Recount:
    """Counts again what a head takes, in bytes; the table of a deflated one as its length per tensor.

    Args:
        head: as it was read.
        length: counts.
    """

    def __init__(self, head: Head, length: MixedLength) -> None:
        self._length = length
        self._structure, self._values = Structure(length), Structure(length, Mixed())
        self._mixed = head.mixed
        if self._mixed:
            self._structure.fields(MODEL, head.fields)
            self._structure.number(int(head.sealed), "sealed", [()])
        self.graph = length.bits / 8 if self._mixed else float(len(deflate(bytes_of(head.fields), DICTIONARY)))

    def entry(self, tensor: Tensor, entry: Entry) -> float:
        """The bytes of the entry of a tensor, to be asked in their order."""
        if not self._mixed:
            return float(len(as_varints(entry)))
        before = self._length.bits
        code_entry(self._structure, self._values, tensor, entry)
        return (self._length.bits - before) / 8


def _bits(values: Any) -> Any:
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat if flat.dtype.kind in "iub" else flat.view(f"V{flat.dtype.itemsize}")
