"""The groups of the tiny networks, one for each pitfall."""

from __future__ import annotations

from .notation import columns, cut, filters, gates, heads, may, rows

STREAM = cut(20, rows("enter out"), columns("query key value head"))
HEADS = heads("query", "key", "value", "out")
FUSED = (
    cut(20, rows("enter out"), columns("qkv head")),
    cut(4, rows("qkv"), columns("out")),
    cut(6, rows("qkv")),  # queries and keys
    cut(6, rows("qkv"), columns("out")),  # values
)

PITFALLS = {
    "view_constants": (STREAM, *HEADS),
    "attention_scale_in_python": (STREAM, *HEADS),
    "literal_widths": (cut(24, rows("conv1"), columns("conv2")), cut(16, rows("conv2"), columns("head"))),
    # (4, 6) and (6, 4) have no common factoring: the 24 are frozen, or refined by their common divisor
    "two_factorings": (cut(16, rows("fc2"), columns("head")),),
    "nested_factorings": (
        cut(2, rows("fc1"), columns("fc2"), "table4:0 table2:0"),
        cut(2, rows("fc1"), columns("fc2"), "table4:0"),
        cut(6, rows("fc1"), columns("fc2")),
        cut(16, rows("fc2"), columns("head")),
    ),
    "flatten_into_linear": (cut(12, rows("conv"), columns("fc")), cut(16, rows("fc"), columns("head"))),
    "flatten_channels_last": (cut(12, rows("conv"), columns("fc")), cut(16, rows("fc"), columns("head"))),
    "chunked_qkv": FUSED,
    # one tensor (3, heads, width) holds all three, so queries, keys and values have one width
    "unbound_qkv": (FUSED[0], FUSED[1], cut(6, rows("qkv"), columns("out"))),
    "interleaved_qkv": FUSED,
    "cat_of_cat": (
        cut(8, rows("conv1"), columns("inner head")),
        cut(12, rows("conv2"), columns("inner head")),
        cut(16, rows("conv3"), columns("head")),
        cut(24, rows("inner")),  # consumed by a sum
    ),
    "uneven_split": (
        cut(8, rows("fc"), columns("left")),
        cut(12, rows("fc"), columns("middle")),
        cut(10, rows("fc"), columns("right")),
    ),
    "shared_split": (
        cut(4, rows("first third"), columns("head")),
        cut(6, rows("second third"), columns("head")),
        may(8, rows("first")),  # nothing reads these
        may(10, rows("second")),
    ),
    "gated_linear_unit": (cut(24, rows("fc"), columns("out")), cut(16, rows("out"), columns("head"))),
    "stacked_branches": (cut(16, rows("branches.0 branches.1 branches.2"), columns("head")),),
    "borrowed_channels": (cut(16, rows("fc1"), columns("fc2")), cut(20, rows("fc2"), columns("head"))),
    "group_conv": (
        cut(4, rows("conv1 grouped"), columns("head")),
        cut(3, rows("conv1"), columns("grouped")),
        cut(6, rows("grouped"), columns("head")),
    ),
    "unpooled": (cut(12, rows("conv1 conv3"), columns("conv2 head")), cut(16, rows("conv2"), columns("conv3"))),
    "groups_of_groups": (cut(4, rows("grouped2"), columns("head")),),  # within each of six groups
    "transposed_group_conv": (
        cut(4, rows("conv1 grouped"), columns("head")),
        cut(4, rows("conv1"), filters("grouped")),
        cut(6, "grouped.weight:1 grouped.bias:0", columns("head")),
    ),
    # one permutation of 24; an engine that reads it as two factors finds groups of 3 and of 8 instead
    "channel_shuffle": (cut(24, rows("conv1"), columns("conv2")), cut(16, rows("conv2"), columns("head"))),
    "grouped_channel_shuffle": (
        cut(4, rows("conv grouped1"), columns("grouped2")),  # groups of the first, positions in the second
        cut(4, rows("conv"), columns("grouped1")),
        cut(4, rows("grouped1 grouped2"), columns("head")),  # positions in the first, groups of the second
        cut(6, rows("grouped2"), columns("head")),
    ),
    "pixel_shuffle": (cut(8, rows("conv1"), columns("conv2")), cut(12, rows("conv2"), columns("head"))),
    "pixel_unshuffle": (cut(8, rows("conv1"), columns("conv2")), cut(12, rows("conv2"), columns("head"))),
    "depthwise_multiplier": (cut(12, rows("conv1 depthwise"), columns("head")), cut(2, rows("depthwise"), columns("head"))),
    "square_groups": (cut(8, rows("conv1 grouped"), columns("head")), cut(3, rows("conv1"), columns("grouped"))),
    "single_output_channel": (cut(24, rows("conv1"), columns("map head")),),
    "conv_without_bias": (cut(16, filters("conv1"), columns("conv2")), cut(24, filters("conv2"), columns("head"))),
    "class_token": (
        cut(20, "token:2 position:2", rows("enter norm out"), columns("query key value head")),
        *HEADS,
    ),
    "layer_scale": (
        cut(20, "scale:0", rows("enter project"), columns("expand head")),
        cut(32, rows("expand"), columns("project")),
    ),
    "relative_position_table": (STREAM, *heads("query", "key", "value", "out", also="table:1")),
    "unused_parameters": (cut(16, rows("fc1"), columns("head")),),
    "buffer_on_channels": (cut(16, rows("fc1"), columns("head")),),  # and the buffer
    # traced before any forward; after one, the 16 meet a constant
    "cached_tensor": (cut(16, rows("fc1 project"), columns("fc2")), cut(24, rows("fc2"), columns("head"))),
    "prelu_per_channel": (cut(24, rows("conv1"), "act.weight:0", columns("head")),),
    "tied_autoencoder": (cut(16, rows("encode")),),
    "tied_layers": (
        cut(16, rows("enter middle"), columns("first")),
        cut(24, rows("first"), "second.bias:0", columns("middle head")),
    ),
    "tied_embedding": (
        cut(20, rows("norm project"), columns("embed expand")),
        cut(32, rows("expand"), columns("project")),
    ),
    "called_many_times": (cut(16, rows("enter step"), columns("step head")),),
    "weight_norm": (
        # exact, since each row is scaled by its own norm; simplest once the weight is made
        may(16, "fc1.parametrizations.weight.original0:0 fc1.parametrizations.weight.original1:0 fc1.bias:0", columns("fc2")),
        cut(24, rows("fc2"), columns("head")),
    ),
    # both dimensions of the spectrally normalized weight enter its singular value, and are not listed
    "spectral_norm": (cut(16, rows("fc1"), columns("fc2")),),
    # row i and column i of the symmetric weight are one parameter's triangle: not listed
    "symmetric_weight": (cut(24, rows("fc"), columns("head")),),
    "low_rank_update": (
        cut(16, rows("enter"), columns("base"), "down:1"),
        cut(24, rows("base"), "up:0", columns("head")),
        cut(8, "down:0 up:1"),
    ),
    "grouped_queries": (
        STREAM,
        cut(2, rows("query key value"), columns("out")),  # heads of keys and values with all their queries
        cut(2, rows("query"), columns("out")),  # queries within each
        *HEADS[1:],
    ),
    "built_in_grouped_queries": (
        STREAM,
        may(2, rows("query key value"), columns("out")),
        may(2, rows("query"), columns("out")),
        *HEADS[1:],
    ),
    "multi_query": (STREAM, cut(4, rows("query"), columns("out")), *HEADS[1:]),
    "rotary_halves": (STREAM, HEADS[0], may(3, rows("query key")), HEADS[2]),
    "rotary_pairs": (
        STREAM,
        HEADS[0],
        may(2, rows("query key")),  # pairs that are turned
        cut(2, rows("query key")),  # dimensions that are not
        HEADS[2],
    ),
    "dense_experts": (
        cut(20, rows("enter project.0 project.1 project.2"), columns("gate expand.0 expand.1 expand.2 head")),
        cut(16, rows("expand.0"), columns("project.0")),
        cut(24, rows("expand.1"), columns("project.1")),
        cut(32, rows("expand.2"), columns("project.2")),
    ),
    "stacked_experts": (
        cut(20, rows("enter"), "expand:1 project:2", columns("gate head")),
        cut(32, "expand:2 project:1"),
    ),
    # equal in number, since the states of all layers and directions lie in one tensor, but not tied unit by unit
    "bidirectional_stacked_lstm": (
        cut(16, gates("lstm"), "lstm.weight_ih_l1:1 lstm.weight_ih_l1_reverse:1"),
        cut(16, gates("lstm", "l0_reverse"), "lstm.weight_ih_l1:1 lstm.weight_ih_l1_reverse:1"),
        cut(16, gates("lstm", "l1"), columns("fc")),
        cut(16, gates("lstm", "l1_reverse"), columns("fc")),
        cut(24, rows("fc"), columns("head")),
    ),
    # the two states are rows of one tensor with one width
    "gru_states": (cut(16, gates("gru"), gates("gru", "l0_reverse"), columns("head")),),
    "given_state": (cut(16, gates("lstm"), "hidden:2 cell:2", columns("head")),),
    "projected_lstm": (
        cut(16, "lstm.weight_ih_l0:0 lstm.weight_hh_l0:0 lstm.bias_ih_l0:0 lstm.bias_hh_l0:0 lstm.weight_hr_l0:1"),
        cut(12, "lstm.weight_hr_l0:0 lstm.weight_hh_l0:1", columns("fc")),
        cut(24, rows("fc"), columns("head")),
    ),
    "group_norm": (cut(6, rows("conv1 norm"), columns("head")),),
    "one_group_norm": (cut(24, rows("conv1 norm"), columns("head")),),
    "instance_norm": (cut(24, rows("conv1 norm"), columns("head")),),
    "batch_norm_without_affine": (cut(24, rows("conv1"), columns("head")),),
    "root_mean_square_norm": (cut(16, rows("fc1"), "scale:0", columns("fc2")), cut(24, rows("fc2"), columns("head"))),
    "whole_image_norm": (may(16, rows("conv1 norm"), columns("head")),),
    "cosine_similarity": (may(16, rows("one other")), cut(24, rows("fc"), columns("head"))),
    "max_over_channels": (cut(16, rows("conv1"), columns("conv2")), cut(20, rows("fc"), columns("head"))),
    "softmax_over_channels": (cut(16, rows("conv1"), columns("conv2")),),
    "sum_over_channels": (cut(16, rows("summed")),),
    "chosen_channels": (cut(16, rows("fc1"), columns("fc2")),),
    "in_place": (cut(15, rows("conv1 conv2"), columns("conv2 head")),),  # all but the one that is doubled by its number
    "broadcast_residual": (cut(16, rows("conv1 context"), columns("context head")),),
    "product_of_branches": (cut(16, rows("one other")), cut(24, rows("values"), columns("head"))),
    "outer_product": (
        cut(8, rows("one"), columns("fc")),
        cut(12, rows("other"), columns("fc")),
        cut(16, rows("fc"), columns("head")),
    ),
    "gathered_channels": (cut(16, rows("fc1"), columns("fc2")),),
    "gathered_time": (may(16, rows("fc1"), columns("head")),),
    "reordered_channels": (cut(24, rows("conv1"), columns("conv2")), cut(16, rows("conv2"), columns("head"))),
    "mirrored_sum": (cut(8, rows("fc1"), columns("head")),),
    "rolled_channels": (cut(24, rows("fc2"), columns("head")),),  # the 16 hang together in one ring
    "repeated_channels": (
        cut(8, rows("fc1"), columns("fc2")),
        cut(10, rows("fc2"), columns("fc3")),
        cut(12, rows("fc3"), columns("head")),
        may(3, columns("fc2")),  # the repetitions themselves
        may(3, columns("fc3")),
    ),
    "padded_channels": (cut(12, rows("fc1 fc2"), columns("fc2 head")), cut(8, rows("fc2"), columns("head"))),
    "unfolded_patches": (cut(8, rows("conv1"), columns("fc")), cut(16, rows("fc"), columns("head"))),
    "chosen_by_condition": (cut(16, rows("one other test"), columns("head")),),
    "bilinear": (
        cut(8, rows("one"), "both.weight:1"),
        cut(12, rows("other"), "both.weight:2"),
        cut(16, rows("both"), columns("head")),
    ),
    "hypernetwork": (cut(16, rows("make"), columns("head")), cut(12, rows("make fc1"))),
    "two_outputs": (cut(16, rows("fc1"), columns("fc2")),),
    "input_residual": (cut(24, rows("expand"), columns("project")),),
    "embedding_bags": (cut(16, columns("bag fc")), cut(24, rows("fc"), columns("head"))),
}
