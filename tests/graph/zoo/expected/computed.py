"""Of the pitfalls in which weights are computed, statistics lie elsewhere, or sizes are the program's own."""

from __future__ import annotations

from .notation import Group, columns, cut, heads, may, rows

COMPUTED: dict[str, tuple[Group, ...]] = {
    "kernels_per_sample": (
        cut(12, rows("enter style"), "weight:1"),
        cut(16, "weight:0", columns("head")),
    ),
    "standardized_by_batch_norm": (may(16, rows("conv1"), columns("conv2")), cut(24, rows("conv2"), columns("head"))),
    "norm_over_features": (may(16, rows("fc1"), columns("fc2")), may(24, rows("fc2"), columns("head"))),
    "shifted_time": (cut(16, rows("fc1"), "mix:0", columns("fc2")), cut(16, rows("fc2"), columns("head"))),
    "batch_times_heads": (*heads("query", "key", "value", "out"), cut(20, rows("enter out"), columns("query key value head"))),
    "shifted_channels": (cut(16, rows("conv1"), columns("conv2")), cut(20, rows("conv2"), columns("head"))),
    "involution": (
        cut(4, rows("conv1 kernel"), columns("reduce head")),
        cut(4, rows("conv1"), columns("reduce head")),
        cut(6, rows("reduce"), columns("kernel")),
    ),
    "spectrum": (cut(16, rows("fc1"), "kernel:0", columns("head")),),
    "distances": (cut(20, rows("fc1"), columns("fc2")), cut(16, rows("fc2"), "prototypes:1")),
    "capsules": (
        cut(16, rows("conv1"), columns("primary")),
        cut(4, rows("primary"), "votes:1"),
        cut(6, rows("primary"), "votes:2"),
        cut(8, "votes:3"),
    ),
    "dotted_einsum": (
        cut(4, rows("query key value"), "mix:0"),
        cut(6, rows("query key")),
        cut(6, rows("value"), "mix:0"),
        cut(16, "mix:1", columns("head")),
    ),
    "larger_of_two": (cut(12, rows("fc1"), columns("fc2")), cut(16, rows("fc2"), columns("head"))),
    "chosen_by_truth": (cut(12, rows("fc1"), columns("fc2")), cut(16, rows("fc2"), columns("head"))),
    "messages": (cut(12, rows("fc1"), columns("fc2")), cut(16, rows("fc2"), columns("head"))),
    "angle_to_prototypes": (cut(20, rows("fc1"), columns("fc2")), cut(16, rows("fc2"), "prototypes:1")),
}
