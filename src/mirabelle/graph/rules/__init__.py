"""The rules: how each operator ties the axes of its inputs and outputs. Operators without a rule freeze all their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from mirabelle.graph.call import Call
from mirabelle.graph.flow import Flow, Results
from mirabelle.graph.rules import (
    contraction,
    convolution,
    elementwise,
    indexing,
    joining,
    layout,
    normalization,
    recurrent,
    reduction,
    spatial,
)

Rule: TypeAlias = Callable[[Flow, Call], Results]

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
_BY_CHANNEL = (
    "batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm",
    "_batch_norm_no_update", "cudnn_batch_norm",
)  # fmt: skip
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(elementwise.NAMES, elementwise.elementwise),
    **dict.fromkeys(("_assert_tensor_metadata", "sym_size", "_assert_scalar", "_assert_async"), elementwise.nothing),
    "prelu": elementwise.prelu,
    "_prelu_kernel": elementwise.elementwise,
    "glu": elementwise.glu,
    "type_as": elementwise.first_alone,
    "native_dropout": elementwise.dropped,
    **dict.fromkeys(("triu", "tril"), elementwise.triangle),
    **dict.fromkeys(layout.NAMES, layout.layout),
    **dict.fromkeys(("split_with_sizes", "unsafe_split_with_sizes"), indexing.pieces),
    "one_hot": indexing.marked,
    "masked_scatter": indexing.masked_scatter,
    "im2col": layout.patches,
    "col2im": layout.put_together,
    "view_as_real": elementwise.as_real,
    "view_as_complex": elementwise.as_complex,
    "index_select": indexing.index_select,
    "index": indexing.index,
    "embedding": indexing.embedding,
    **dict.fromkeys(("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), indexing.bags),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), indexing.index_put),
    "gather": indexing.gather,
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), indexing.scatter),
    **dict.fromkeys(("index_add", "index_copy", "index_reduce"), indexing.index_add),
    "linear": contraction.linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), contraction.matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), contraction.addmm),
    "einsum": contraction.einsum,
    **dict.fromkeys(("_grouped_mm", "grouped_mm", "transformers.grouped_mm_fallback"), contraction.grouped),
    "bilinear": contraction.bilinear,
    "cosine_similarity": contraction.cosine,
    **dict.fromkeys(("cdist", "_cdist_forward"), contraction.distances),
    "scaled_dot_product_attention": contraction.attention,
    **dict.fromkeys(_CONVOLUTIONS, convolution.convolution),
    **dict.fromkeys(_BY_CHANNEL, normalization.by_channel),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), normalization.over_last),
    "group_norm": normalization.over_groups,
    **dict.fromkeys((*reduction.SUMS, *reduction.MEANS, *reduction.OTHERS), reduction.reduced),
    **dict.fromkeys(reduction.WHOLE, reduction.along),
    **dict.fromkeys(reduction.TRANSFORMS, reduction.transformed),
    **dict.fromkeys(spatial.NAMES, spatial.spatial),
    "grid_sampler": spatial.sampled,
    "affine_grid_generator": spatial.placed,
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), spatial.unpooled),
    **dict.fromkeys(("cat", "concat", "concatenate"), joining.cat),
    "stack": joining.stack,
    "slice_scatter": joining.slice_scatter,
    "select_scatter": joining.select_scatter,
    **dict.fromkeys(recurrent.NAMES, recurrent.recurrent),
    **dict.fromkeys((f"{name}_cell" for name in recurrent.NAMES), recurrent.cell),
}


def rule_for(call: Call) -> Rule | None:
    """The rule of an operator; None if there is none."""
    rule = RULES.get(call.name)
    if rule is None and elementwise.tagged(call.node):
        return elementwise.elementwise
    return rule
