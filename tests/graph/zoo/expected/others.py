"""The groups of recurrent networks, mixers, attention from torch, recommenders."""

from __future__ import annotations

from .notation import Group, columns, cut, gates, rows

RECURRENT = {
    "lstm": (cut(12, columns("embed"), "lstm.weight_ih_l0:1"), cut(16, gates("lstm"), columns("head"))),
    "gru": (cut(12, columns("embed"), "gru.weight_ih_l0:1"), cut(16, gates("gru"), columns("head"))),
    "bidirectional_lstm": (
        cut(12, columns("embed"), "lstm.weight_ih_l0:1 lstm.weight_ih_l0_reverse:1"),
        cut(16, gates("lstm"), columns("head")),
        cut(16, gates("lstm", "l0_reverse"), columns("head")),
    ),
    # the states of both layers are rows of one tensor with one width, which is read
    "stacked_gru": (
        cut(12, rows("reduce"), "gru.weight_ih_l0:1"),
        cut(16, gates("gru"), gates("gru", "l1"), "gru.weight_ih_l1:1", columns("head")),
    ),
    "lstm_encoder_decoder": (
        cut(12, columns("source"), "encoder.weight_ih_l0:1"),
        cut(14, columns("target"), "decoder.weight_ih_l0:1"),
        cut(16, gates("encoder"), gates("decoder"), columns("head")),
    ),
    "elman_network": (cut(16, gates("rnn"), columns("head")),),
    "unrolled_gru_cell": (
        cut(16, "cell.weight_ih:0 cell.weight_hh:0 cell.weight_hh:1 cell.bias_ih:0 cell.bias_hh:0", columns("head")),
    ),
}


def packed(attention: str) -> tuple[Group, ...]:
    """nn.MultiheadAttention of four heads of six; one tensor (3, ...) holds queries, keys and values, of one width."""
    inputs, out = f"{attention}.in_proj_weight:0 {attention}.in_proj_bias:0", columns(f"{attention}.out_proj")
    return cut(4, inputs, out), cut(6, inputs, out)


ENCODER_LAYERS = [f"encoder.layers.{i}" for i in range(2)]

OTHERS = {
    "text_cnn": (
        cut(16, columns("embed convs.0 convs.1 convs.2")),
        *(cut(12, rows(f"convs.{i}"), columns("head")) for i in range(3)),
    ),
    "autoencoder": (
        cut(32, rows("encoder.0"), columns("encoder.2")),
        cut(12, rows("encoder.2"), columns("decoder.0")),
        cut(28, rows("decoder.0"), columns("decoder.2")),
    ),
    "two_tower": (
        cut(16, columns("user user_tower.0")),
        cut(12, columns("item item_tower.0")),
        cut(32, rows("user_tower.0"), columns("user_tower.2")),
        cut(28, rows("item_tower.0"), columns("item_tower.2")),
        cut(20, rows("user_tower.2 item_tower.2")),
    ),
    "wide_and_deep": (
        cut(12, columns("embeddings.0 deep.0")),
        cut(8, columns("embeddings.1 deep.0")),
        cut(32, rows("deep.0"), columns("deep.2")),
        cut(16, rows("deep.2"), columns("deep.4")),
    ),
    "mlp_mixer": (
        cut(
            24,
            rows("patch norm"),
            *(rows(f"blocks.{i}.norm1 blocks.{i}.norm2 blocks.{i}.channels_out") for i in range(2)),
            columns("blocks.0.channels_in blocks.1.channels_in head"),
        ),
        *(cut(28, rows(f"blocks.{i}.tokens_in"), columns(f"blocks.{i}.tokens_out")) for i in range(2)),
        *(cut(32, rows(f"blocks.{i}.channels_in"), columns(f"blocks.{i}.channels_out")) for i in range(2)),
    ),
    "einsum_attention": (
        cut(20, columns("embed head"), "query:1 key:1 value:1 out:2"),
        cut(4, "query:0 key:0 value:0 out:0"),
        cut(6, "query:2 key:2"),
        cut(6, "value:2 out:1"),
    ),
    "torch_attention": (
        cut(24, columns("embed head"), "attention.in_proj_weight:1", rows("attention.out_proj norm")),
        *packed("attention"),
    ),
    "torch_encoder": (
        cut(
            24,
            rows("encoder.norm"),
            *(rows(f"{x}.norm1 {x}.norm2 {x}.linear2 {x}.self_attn.out_proj") for x in ENCODER_LAYERS),
            *(f"{x}.self_attn.in_proj_weight:1 {columns(f'{x}.linear1')}" for x in ENCODER_LAYERS),
            columns("embed head"),
        ),
        *(group for x in ENCODER_LAYERS for group in packed(f"{x}.self_attn")),
        *(cut(40, rows(f"{x}.linear1"), columns(f"{x}.linear2")) for x in ENCODER_LAYERS),
    ),
}
