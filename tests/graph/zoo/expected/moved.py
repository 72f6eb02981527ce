"""The groups of networks whose channels change places, and of some with attention on maps."""

from __future__ import annotations

from .notation import columns, cut, normed, read, rows

BLOCKS = ("blocks.0", "blocks.1")
# The stream is groups × channels of each, as every grouped layer reads and writes it. The groups of one layer are tied to those
# of the next: a group of the first is a place within each group of the next, and both stand in the stream.
SHUFFLED = (
    cut(
        16,
        normed("stem"),
        *(read(f"{block}.reduce") for block in BLOCKS),
        *(normed(f"{block}.expand") for block in BLOCKS),
        columns("head"),
    ),
    *(cut(4, normed(f"{block}.reduce {block}.depthwise"), read(f"{block}.expand")) for block in BLOCKS),
)

MOVED = {
    "shuffled_groups": SHUFFLED,
    "built_in_shuffle": SHUFFLED,
    "split_experts": (
        cut(24, rows("enter project.0 project.1 project.2"), columns("gate expand head")),
        *(cut(size, rows("expand"), columns(f"project.{i}")) for i, size in enumerate((12, 20, 8))),
    ),
    "sorted_tokens": (
        cut(28, "expand:1 project:2"),
        cut(20, columns("embed router head"), "expand:2 project:1", rows("norm")),
    ),
    "rolled_stream": (cut(32, rows("expand"), columns("project")),),  # the 20 of the stream hang together in one ring
    "auxiliary_head": (
        cut(16, normed("stem"), read("body")),
        cut(24, normed("body"), columns("head")),
    ),
    "coordinate_convolution": (
        cut(12, rows("enter"), columns("conv")),
        cut(16, rows("conv"), columns("after")),
        cut(20, rows("after"), columns("head")),
    ),
    "spatial_transformer": (
        cut(12, rows("look"), columns("place")),
        cut(16, rows("conv norm"), columns("after")),
        cut(20, rows("after"), columns("head")),
    ),
    "shifted_windows": tuple(
        group
        for i in range(2)
        for group in (
            cut(4, rows(f"windows.{i}.qkv"), f"windows.{i}.table:1", columns(f"windows.{i}.proj")),
            cut(6, rows(f"windows.{i}.qkv"), columns(f"windows.{i}.proj")),
            cut(40, rows(f"expand.{i}"), columns(f"project.{i}")),
        )
    ),
}
