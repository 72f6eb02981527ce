"""More of the `transformers` package: latent attention, linear attention with states, experts, and attention on images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .architecture import Architecture, arguments, floats, integers
from .transformers import LARGE_IMAGES, VISION, Outputs, language, tiny


def detector(class_name: str, width: int = 24, **settings: Any) -> Callable[[], nn.Module]:
    """A detection transformer on a small ResNet of the same package."""

    def build() -> nn.Module:
        import transformers

        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 20], depths=[1, 1, 1], layer_type="basic", out_features=["stage2", "stage3"]
        )
        model_class = getattr(transformers, class_name)
        config = model_class.config_class(
            backbone_config=backbone,
            num_queries=9,
            d_model=width,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=40,
            decoder_ffn_dim=36,
            num_labels=5,
            **settings,
        )
        return Outputs(model_class(config), ("logits", "pred_boxes"))

    return build


ARCHITECTURES = (
    language(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        head_dim=4,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=12,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=20,
    ),
    language(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=6,
        layer_types=["linear_attention", "full_attention"],
    ),
    language("jetmoe", "JetMoeForCausalLM", kv_channels=6, num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2),
    language("gpt_oss", "GptOssForCausalLM", "eager", num_local_experts=4, num_experts_per_tok=2, sliding_window=5),
    language("granite_experts", "GraniteMoeForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    Architecture(
        "mamba2",
        "transformer",
        tiny(
            "Mamba2Model",
            "last_hidden_state",
            vocab_size=50,
            hidden_size=24,
            num_hidden_layers=2,
            state_size=5,
            conv_kernel=3,
            expand=2,
            num_heads=8,
            head_dim=6,
            n_groups=2,
            chunk_size=4,
        ),
        arguments(input_ids=integers(50, 3, 11)),
    ),
    Architecture(
        "sam_vision",
        "transformer",
        tiny(
            "SamVisionModel",
            "last_hidden_state",
            **(VISION | {"image_size": 20, "mlp_dim": 40, "output_channels": 18, "window_size": 3, "global_attn_indexes": [1]}),
        ),
        arguments(pixel_values=floats(3, 3, 20, 20)),
    ),
    Architecture("conditional_detr", "transformer", detector("ConditionalDetrForObjectDetection"), LARGE_IMAGES),
    Architecture(
        "deformable_detr_of_package",
        "transformer",
        detector("DeformableDetrForObjectDetection", 32, num_feature_levels=2, encoder_n_points=3, decoder_n_points=3),
        LARGE_IMAGES,
    ),
    Architecture(
        "florence_2",
        "transformer",
        tiny(
            "Florence2VisionBackbone",
            "last_hidden_state",
            embed_dim=[12, 24],
            num_heads=[2, 4],
            num_groups=[2, 4],
            depths=[1, 1],
            patch_size=[5, 3],
            patch_stride=[4, 2],
            patch_padding=[2, 1],
            patch_prenorm=[False, True],
            window_size=4,
            mlp_ratio=2.0,
            drop_path_rate=0.0,
        ),
        arguments(hidden_states=floats(3, 3, 68, 100)),
    ),
)
