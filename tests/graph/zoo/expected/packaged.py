"""The groups of networks from the `transformers` package."""

from __future__ import annotations

from .notation import Group, columns, cut, filters, heads, may, rows


def bert() -> tuple[Group, ...]:
    layers = [f"model.bert.encoder.layer.{i}" for i in range(2)]
    queries = [tuple(f"{x}.attention.self.{name}" for name in ("query", "key", "value")) for x in layers]
    return (
        cut(
            24,
            *(f"model.bert.embeddings.{name}_embeddings.weight:1" for name in ("word", "position", "token_type")),
            rows("model.bert.embeddings.LayerNorm"),
            *(
                rows(f"{x}.attention.output.dense {x}.attention.output.LayerNorm {x}.output.dense {x}.output.LayerNorm")
                for x in layers
            ),
            *(columns(" ".join(names)) for names in queries),
            *(columns(f"{x}.intermediate.dense") for x in layers),
            columns("model.bert.pooler.dense"),
        ),
        *(group for x, names in zip(layers, queries, strict=True) for group in heads(*names, f"{x}.attention.output.dense")),
        *(cut(40, rows(f"{x}.intermediate.dense"), columns(f"{x}.output.dense")) for x in layers),
        cut(24, rows("model.bert.pooler.dense"), columns("model.classifier")),
    )


def gpt2() -> tuple[Group, ...]:
    """Weights lie as (inputs, outputs)."""
    layers = [f"model.transformer.h.{i}" for i in range(2)]

    def outputs(module: str) -> str:
        return f"{module}.weight:1 {module}.bias:0"

    return (
        cut(
            24,
            columns("model.transformer.wte model.transformer.wpe model.lm_head"),
            *(rows(f"{x}.ln_1 {x}.ln_2") for x in layers),
            *(f"{outputs(f'{x}.attn.c_proj')} {outputs(f'{x}.mlp.c_proj')}" for x in layers),
            *(filters(f"{x}.attn.c_attn {x}.mlp.c_fc") for x in layers),
            rows("model.transformer.ln_f"),
        ),
        *(cut(4, outputs(f"{x}.attn.c_attn"), filters(f"{x}.attn.c_proj")) for x in layers),
        *(cut(6, outputs(f"{x}.attn.c_attn")) for x in layers),
        *(cut(6, outputs(f"{x}.attn.c_attn"), filters(f"{x}.attn.c_proj")) for x in layers),
        *(cut(40, outputs(f"{x}.mlp.c_fc"), filters(f"{x}.mlp.c_proj")) for x in layers),
    )


def llama(norms: str = "") -> tuple[Group, ...]:
    """Four query heads on two of keys and values, rotary pairs (i, i + 3), RMS norms; `norms` are those within a head."""
    layers = [f"model.model.layers.{i}" for i in range(2)]
    attention = [f"{x}.self_attn" for x in layers]
    return (
        cut(
            24,
            columns("model.model.embed_tokens model.lm_head"),
            filters("model.model.norm"),
            *(
                filters(f"{x}.input_layernorm {x}.post_attention_layernorm {x}.self_attn.o_proj {x}.mlp.down_proj")
                for x in layers
            ),
            *(columns(f"{x}.self_attn.q_proj {x}.self_attn.k_proj {x}.self_attn.v_proj") for x in layers),
            *(columns(f"{x}.mlp.gate_proj {x}.mlp.up_proj") for x in layers),
        ),
        *(cut(2, filters(f"{x}.q_proj {x}.k_proj {x}.v_proj"), columns(f"{x}.o_proj")) for x in attention),
        *(cut(2, filters(f"{x}.q_proj"), columns(f"{x}.o_proj")) for x in attention),
        *(may(3, filters(f"{x}.q_proj {x}.k_proj {' '.join(f'{x}.{norm}' for norm in norms.split())}")) for x in attention),
        *(cut(6, filters(f"{x}.v_proj"), columns(f"{x}.o_proj")) for x in attention),
        *(cut(40, filters(f"{x}.mlp.gate_proj {x}.mlp.up_proj"), columns(f"{x}.mlp.down_proj")) for x in layers),
    )


def vit() -> tuple[Group, ...]:
    layers = [f"model.vit.layers.{i}" for i in range(2)]
    queries = [tuple(f"{x}.attention.{name}_proj" for name in "qkv") for x in layers]
    return (
        cut(
            24,
            "model.vit.embeddings.cls_token:2 model.vit.embeddings.position_embeddings:2",
            rows("model.vit.embeddings.patch_embeddings.projection model.vit.layernorm"),
            *(rows(f"{x}.layernorm_before {x}.layernorm_after {x}.attention.o_proj {x}.mlp.fc2") for x in layers),
            *(columns(" ".join(names)) for names in queries),
            *(columns(f"{x}.mlp.fc1") for x in layers),
            columns("model.classifier"),
        ),
        *(group for x, names in zip(layers, queries, strict=True) for group in heads(*names, f"{x}.attention.o_proj")),
        *(cut(40, rows(f"{x}.mlp.fc1"), columns(f"{x}.mlp.fc2")) for x in layers),
    )


def opt() -> tuple[Group, ...]:
    decoder = "model.model.decoder"
    layers = [f"{decoder}.layers.{i}" for i in range(2)]
    queries = [tuple(f"{x}.self_attn.{name}_proj" for name in "qkv") for x in layers]
    return (
        cut(
            24,
            columns(f"{decoder}.embed_tokens {decoder}.embed_positions model.lm_head"),
            rows(f"{decoder}.final_layer_norm"),
            *(rows(f"{x}.self_attn_layer_norm {x}.final_layer_norm {x}.self_attn.out_proj {x}.fc2") for x in layers),
            *(columns(" ".join(names)) for names in queries),
            *(columns(f"{x}.fc1") for x in layers),
        ),
        *(group for x, names in zip(layers, queries, strict=True) for group in heads(*names, f"{x}.self_attn.out_proj")),
        *(cut(40, rows(f"{x}.fc1"), columns(f"{x}.fc2")) for x in layers),
    )


def t5() -> tuple[Group, ...]:
    """One width everywhere, since the embedding is shared; the table of a first block ties the heads of its whole stack."""
    encoder, decoder = ([f"model.{stack}.block.{i}.layer" for i in range(2)] for stack in ("encoder", "decoder"))
    encoder_own, decoder_own, crossed = (
        [f"{x}.{name}" for x in blocks]
        for blocks, name in ((encoder, "0.SelfAttention"), (decoder, "0.SelfAttention"), (decoder, "1.EncDecAttention"))
    )
    attentions = encoder_own + decoder_own + crossed
    feeds = [f"{x}.1" for x in encoder] + [f"{x}.2" for x in decoder]
    norms = [f"{x}.{i}.layer_norm" for x in encoder for i in range(2)] + [
        f"{x}.{i}.layer_norm" for x in decoder for i in range(3)
    ]

    def whole(blocks: list[str]) -> str:
        return " ".join(f"{filters(f'{x}.q {x}.k {x}.v')} {columns(f'{x}.o')}" for x in blocks)

    return (
        cut(
            24,
            columns("model.shared"),
            filters("model.encoder.final_layer_norm model.decoder.final_layer_norm"),
            filters(" ".join(norms)),
            *(f"{columns(f'{x}.q {x}.k {x}.v')} {filters(f'{x}.o')}" for x in attentions),
            *(f"{columns(f'{x}.DenseReluDense.wi')} {filters(f'{x}.DenseReluDense.wo')}" for x in feeds),
        ),
        cut(4, whole(encoder_own), columns(f"{encoder_own[0]}.relative_attention_bias")),
        cut(4, whole(decoder_own), columns(f"{decoder_own[0]}.relative_attention_bias")),
        *(cut(4, whole([x])) for x in crossed),
        *(cut(6, filters(f"{x}.q {x}.k")) for x in attentions),
        *(cut(6, filters(f"{x}.v"), columns(f"{x}.o")) for x in attentions),
        *(cut(40, filters(f"{x}.DenseReluDense.wi"), columns(f"{x}.DenseReluDense.wo")) for x in feeds),
    )


TRANSFORMERS = {
    "bert": bert(),
    "bert_eager": bert(),
    "gpt2": gpt2(),
    "llama": llama(),
    "mistral": llama(),
    "qwen3": llama("q_norm k_norm"),
    "vit": vit(),
    "vit_eager": vit(),
    "opt": opt(),
    "t5": t5(),
}
