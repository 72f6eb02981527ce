"""The length of a Huffman code, for comparison: no codec of Mirabelle writes one."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


def huffman_bits(counts: Iterable[int]) -> int:
    """The bits that symbols take in an optimal code of whole bits for each symbol, without a table of the code.

    It is the sum of the counts of all inner nodes of the Huffman tree. A single kind of symbol takes one bit each, as in
    files that use such codes.

    Args:
        counts: how often each symbol occurs.

    Example:
        >>> huffman_bits([5, 9, 12, 13, 16, 45])
        224

    Source: Huffman 1952, "A method for the construction of minimum-redundancy codes".
    """
    heap = [count for count in counts if count]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        bits += joined
        heapq.heappush(heap, joined)
    return bits
