"""Tiny configurations of the `transformers` package, with random weights; nothing is downloaded.

Widths are 24 (hidden), 40 (feed-forward) and 4 heads of 6, two groups of keys and values where a model groups its queries.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .architecture import Architecture, Draw, arguments, floats, integers


class InDouble(TorchFunctionMode):
    """Whatever asks for float32 gets float64, so that norms and softmaxes hide no difference below 1e-7."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = torch.Tensor.double if function is torch.Tensor.float else function
        positional = [torch.float64 if argument is torch.float32 else argument for argument in args]
        named = {key: torch.float64 if argument is torch.float32 else argument for key, argument in (kwargs or {}).items()}
        return function(*positional, **named)


class Outputs(nn.Module):
    """A model of the package that gives only the named outputs; it computes in float64 throughout if its weights are."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *positional: torch.Tensor, **named: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        with InDouble() if next(self.parameters()).dtype == torch.float64 else nullcontext():
            outputs = self.model(*positional, **named)
        tensors = tuple(getattr(outputs, name) for name in self.names)
        return tensors[0] if len(tensors) == 1 else tensors


def tiny(class_name: str, outputs: str, attention: str | None = None, **settings: Any) -> Callable[[], nn.Module]:
    """Builds a class of the package from its own configuration; its attention is fused where it can be, unless told."""

    def build() -> nn.Module:
        import transformers

        model_class = getattr(transformers, class_name)
        config = model_class.config_class(**settings)
        config.use_cache = False
        if attention is not None:
            config._attn_implementation = attention
        config._experts_implementation = "batched_mm"  # the default, grouped_mm, knows no float64
        return Outputs(model_class(config), tuple(outputs.split()))

    return build


def ones(*shape: int) -> Draw:
    return lambda _: torch.ones(shape, dtype=torch.int64)


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
ENCODER = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
} | SPECIAL
DECODER = ENCODER | {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False}
SEQUENCE_PAIR = {
    "vocab_size": 50,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 36,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
} | SPECIAL
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": (20, 28),
    "patch_size": 4,
    "num_labels": 10,
}
T5 = {"vocab_size": 50, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1} | {
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
}
SPEECH = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": (16, 20),
    "conv_stride": (3, 2),
    "conv_kernel": (5, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 2,
    "apply_spec_augment": False,
} | SPECIAL

TOKENS = arguments(input_ids=integers(50, 3, 11), attention_mask=ones(3, 11))
UNMASKED = arguments(input_ids=integers(50, 3, 11))
TOKEN_PAIR = arguments(input_ids=integers(50, 3, 11), decoder_input_ids=integers(50, 3, 7))
IMAGES = arguments(pixel_values=floats(2, 3, 20, 28))
LARGE_IMAGES = arguments(pixel_values=floats(3, 3, 68, 100))
SOUND = arguments(input_values=floats(2, 301))


def text(name: str, class_name: str, attention: str | None = None, **settings: Any) -> Architecture:
    """An encoder that classifies a sequence of tokens."""
    return Architecture(
        name, "transformer", tiny(class_name, "logits", attention, **(ENCODER | {"num_labels": 5} | settings)), TOKENS
    )


def language(name: str, class_name: str, attention: str | None = None, **settings: Any) -> Architecture:
    """A causal language model."""
    return Architecture(name, "transformer", tiny(class_name, "logits", attention, **(DECODER | settings)), UNMASKED)


def image(name: str, class_name: str, outputs: str = "logits", attention: str | None = None, **settings: Any) -> Architecture:
    return Architecture(name, "transformer", tiny(class_name, outputs, attention, **(VISION | settings)), IMAGES)


def pyramid(name: str, class_name: str, outputs: str = "logits", family: str = "cnn", **settings: Any) -> Architecture:
    """A network on images that halves their size several times; all settings are its own."""
    return Architecture(name, family, tiny(class_name, outputs, num_labels=10, **settings), LARGE_IMAGES)


def translation(name: str, class_name: str, **settings: Any) -> Architecture:
    return Architecture(name, "transformer", tiny(class_name, "logits", **(SEQUENCE_PAIR | settings)), TOKEN_PAIR)


def speech(name: str, class_name: str, outputs: str = "logits", **settings: Any) -> Architecture:
    return Architecture(name, "transformer", tiny(class_name, outputs, **(SPEECH | settings)), SOUND)


def detection_transformer() -> nn.Module:
    """DETR on a small ResNet of the same package."""
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1], layer_type="basic", out_features=["stage3"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        num_queries=9,
        d_model=24,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=36,
        num_labels=5,
    )
    return Outputs(transformers.DetrForObjectDetection(config), ("logits", "pred_boxes"))


ARCHITECTURES = (
    text("bert", "BertForSequenceClassification"),
    text("bert_eager", "BertForSequenceClassification", "eager"),
    text("roberta", "RobertaForSequenceClassification", max_position_embeddings=34),
    text("xlm_roberta", "XLMRobertaForSequenceClassification", max_position_embeddings=34),
    text("electra", "ElectraForSequenceClassification", embedding_size=16),
    text("albert", "AlbertForSequenceClassification", embedding_size=16),
    text("distilbert", "DistilBertForSequenceClassification", dim=24, n_layers=2, n_heads=4, hidden_dim=40),
    text(
        "deberta",
        "DebertaForSequenceClassification",
        "eager",
        relative_attention=True,
        pos_att_type="c2p|p2c",
        position_biased_input=False,
    ),
    text("deberta_v2", "DebertaV2ForSequenceClassification", "eager", relative_attention=True, pos_att_type="c2p|p2c"),
    text(
        "mobilebert",
        "MobileBertForSequenceClassification",
        embedding_size=16,
        intra_bottleneck_size=20,
        num_feedforward_networks=2,
    ),
    text(
        "squeezebert",
        "SqueezeBertForSequenceClassification",
        embedding_size=24,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        post_attention_groups=1,
        intermediate_groups=4,
        output_groups=4,
    ),
    Architecture(
        "funnel",
        "transformer",
        tiny(
            "FunnelForSequenceClassification",
            "logits",
            vocab_size=50,
            d_model=24,
            n_head=4,
            d_head=6,
            d_inner=40,
            block_sizes=[1, 1],
        ),
        TOKENS,
    ),
    text("mpnet", "MPNetForSequenceClassification", max_position_embeddings=34),
    text("convbert", "ConvBertForSequenceClassification", embedding_size=24, head_ratio=2, conv_kernel_size=3),
    text("roformer", "RoFormerForSequenceClassification", embedding_size=24),
    text("rembert", "RemBertForSequenceClassification", input_embedding_size=16, output_embedding_size=20),
    text("megatron_bert", "MegatronBertForSequenceClassification"),
    text("modernbert", "ModernBertForSequenceClassification", hidden_size=24, cls_token_id=1, sep_token_id=1),
    text("xlm", "XLMForSequenceClassification", emb_dim=24, n_layers=2, n_heads=4),
    Architecture("fnet", "transformer", tiny("FNetForSequenceClassification", "logits", num_labels=5, **ENCODER), UNMASKED),
    language("gpt2", "GPT2LMHeadModel", n_embd=24, n_layer=2, n_head=4, n_positions=32, n_inner=40),
    language("gpt2_eager", "GPT2LMHeadModel", "eager", n_embd=24, n_layer=2, n_head=4, n_positions=32),
    language("openai_gpt", "OpenAIGPTLMHeadModel", n_embd=24, n_layer=2, n_head=4, n_positions=32),
    language(
        "gpt_neo",
        "GPTNeoForCausalLM",
        "eager",
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=5,
    ),
    language("gpt_neox", "GPTNeoXForCausalLM", hidden_size=32, head_dim=8),
    language("gptj", "GPTJForCausalLM", n_embd=24, n_layer=2, n_head=4, n_positions=32, rotary_dim=4),
    language("codegen", "CodeGenForCausalLM", n_embd=24, n_layer=2, n_head=4, n_positions=32, rotary_dim=4),
    language("gpt_bigcode", "GPTBigCodeForCausalLM", n_embd=24, n_layer=2, n_head=4, n_positions=32, n_inner=40),
    language("opt", "OPTForCausalLM", ffn_dim=40, word_embed_proj_dim=24),
    language("bloom", "BloomForCausalLM", n_layer=2, n_head=4),
    Architecture(
        "falcon",
        "transformer",
        tiny("FalconForCausalLM", "logits", num_kv_heads=2, new_decoder_architecture=True, **ENCODER),
        UNMASKED,
    ),
    language("mpt", "MptForCausalLM", "eager", d_model=24, n_heads=4, n_layers=2, max_seq_len=32),
    language("biogpt", "BioGptForCausalLM"),
    language("llama", "LlamaForCausalLM"),
    language("llama_eager", "LlamaForCausalLM", "eager", attention_bias=True, mlp_bias=True),
    language("mistral", "MistralForCausalLM", sliding_window=5),
    language("qwen2", "Qwen2ForCausalLM"),
    language("qwen3", "Qwen3ForCausalLM"),
    language("gemma", "GemmaForCausalLM", tie_word_embeddings=True),
    language("gemma2", "Gemma2ForCausalLM", "eager", sliding_window=5, query_pre_attn_scalar=6),
    language("gemma3", "Gemma3ForCausalLM", sliding_window=5),
    language("phi", "PhiForCausalLM", hidden_size=32, head_dim=8),
    language("phi3", "Phi3ForCausalLM"),
    language("starcoder2", "Starcoder2ForCausalLM"),
    language("stablelm", "StableLmForCausalLM", hidden_size=32, head_dim=8),
    language("olmo2", "Olmo2ForCausalLM"),
    language("cohere", "CohereForCausalLM"),
    language("granite", "GraniteForCausalLM"),
    language("glm", "GlmForCausalLM", hidden_size=32, head_dim=8),
    language("nemotron", "NemotronForCausalLM", hidden_size=32, head_dim=8),
    language("persimmon", "PersimmonForCausalLM", hidden_size=32, head_dim=8),
    language("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    language(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=32,
    ),
    language("olmoe", "OlmoeForCausalLM", num_experts=4, num_experts_per_tok=2),
    Architecture(
        "mamba",
        "transformer",
        tiny(
            "MambaModel",
            "last_hidden_state",
            vocab_size=50,
            hidden_size=24,
            num_hidden_layers=2,
            state_size=5,
            conv_kernel=3,
            time_step_rank=7,
            expand=2,
        ),
        UNMASKED,
    ),
    Architecture("t5", "transformer", tiny("T5ForConditionalGeneration", "logits", **T5), TOKEN_PAIR),
    Architecture(
        "t5_gated",
        "transformer",
        tiny("MT5ForConditionalGeneration", "logits", feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5),
        TOKEN_PAIR,
    ),
    translation("bart", "BartForConditionalGeneration"),
    translation("pegasus", "PegasusForConditionalGeneration"),
    translation("marian", "MarianMTModel"),
    translation("blenderbot", "BlenderbotForConditionalGeneration"),
    translation("mbart", "MBartForConditionalGeneration"),
    translation("m2m_100", "M2M100ForConditionalGeneration"),
    Architecture(
        "whisper",
        "transformer",
        tiny(
            "WhisperForConditionalGeneration",
            "logits",
            **(SEQUENCE_PAIR | {"num_mel_bins": 10, "max_source_positions": 13, "max_target_positions": 32}),
        ),
        arguments(input_features=floats(3, 10, 26), decoder_input_ids=integers(50, 3, 7)),
    ),
    speech("wav2vec2", "Wav2Vec2ForCTC"),
    speech(
        "wav2vec2_stable",
        "Wav2Vec2Model",
        "last_hidden_state",
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
    ),
    speech("hubert", "HubertForCTC"),
    speech("wavlm", "WavLMModel", "last_hidden_state", num_buckets=8, max_bucket_distance=16),
    speech("sew", "SEWModel", "last_hidden_state", squeeze_factor=2),
    Architecture(
        "audio_spectrogram",
        "transformer",
        tiny(
            "ASTForAudioClassification",
            "logits",
            **(
                {key: value for key, value in VISION.items() if key != "image_size"}
                | {"max_length": 26, "num_mel_bins": 18, "frequency_stride": 3, "time_stride": 3}
            ),
        ),
        arguments(input_values=floats(2, 26, 18)),
    ),
    image("vit", "ViTForImageClassification"),
    image("vit_eager", "ViTForImageClassification", attention="eager"),
    image("deit", "DeiTForImageClassificationWithTeacher", "logits cls_logits distillation_logits"),
    image("beit", "BeitForImageClassification", use_relative_position_bias=True, layer_scale_init_value=0.1),
    image("dinov2", "Dinov2ForImageClassification", mlp_ratio=2, image_size=20),
    image("dinov2_swiglu", "Dinov2Model", "last_hidden_state pooler_output", mlp_ratio=2, use_swiglu_ffn=True, image_size=20),
    Architecture(
        "siglip_vision",
        "transformer",
        tiny("SiglipVisionModel", "last_hidden_state pooler_output", **(VISION | {"image_size": 20})),
        arguments(pixel_values=floats(2, 3, 20, 20)),
    ),
    image("yolos", "YolosForObjectDetection", "logits pred_boxes", num_detection_tokens=9),
    pyramid(
        "swin",
        "SwinForImageClassification",
        family="transformer",
        image_size=(68, 100),
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=5,
        mlp_ratio=2.0,
    ),
    pyramid(
        "swin_v2",
        "Swinv2ForImageClassification",
        family="transformer",
        image_size=(68, 100),
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        mlp_ratio=2.0,
    ),
    pyramid(
        "segformer",
        "SegformerForSemanticSegmentation",
        family="transformer",
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 24],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        decoder_hidden_size=20,
    ),
    pyramid(
        "pvt_v2",
        "PvtV2ForImageClassification",
        family="transformer",
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 24],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
    ),
    pyramid(
        "poolformer",
        "PoolFormerForImageClassification",
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[16, 24],
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        mlp_ratio=2.0,
    ),
    pyramid(
        "mobilevit",
        "MobileViTForImageClassification",
        family="transformer",
        image_size=64,
        hidden_sizes=[16, 20, 24],
        neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 40],
        num_attention_heads=4,
        mlp_ratio=2.0,
    ),
    pyramid(
        "hf_resnet",
        "ResNetForImageClassification",
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[1, 2],
        layer_type="bottleneck",
    ),
    pyramid(
        "hf_regnet", "RegNetForImageClassification", embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], groups_width=8
    ),
    pyramid("hf_convnext", "ConvNextForImageClassification", num_stages=2, hidden_sizes=[12, 24], depths=[1, 1]),
    pyramid("hf_convnext_v2", "ConvNextV2ForImageClassification", num_stages=2, hidden_sizes=[12, 24], depths=[1, 1]),
    pyramid(
        "focalnet",
        "FocalNetForImageClassification",
        image_size=(68, 100),
        embed_dim=12,
        hidden_sizes=[12, 24],
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        mlp_ratio=2.0,
    ),
    Architecture(
        "levit",
        "transformer",
        tiny(
            "LevitForImageClassification",
            "logits",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            num_attention_heads=[2, 2, 4],
            depths=[1, 1, 1],
            key_dim=[6, 6, 6],
            attention_ratio=[2, 2, 2],
            mlp_ratio=[2, 2, 2],
            drop_path_rate=0,
        ),
        arguments(pixel_values=floats(3, 3, 64, 64)),
    ),
    Architecture(
        "clip",
        "transformer",
        tiny(
            "CLIPModel",
            "logits_per_image text_embeds image_embeds",
            text_config=ENCODER | {"eos_token_id": 2},
            vision_config=VISION | {"image_size": 20},
            projection_dim=18,
        ),
        arguments(input_ids=integers(50, 2, 11), pixel_values=floats(3, 3, 20, 20)),
    ),
    Architecture("detr", "transformer", detection_transformer, arguments(pixel_values=floats(3, 3, 68, 100))),
    Architecture(
        "videomae",
        "transformer",
        tiny("VideoMAEForVideoClassification", "logits", **(VISION | {"num_frames": 6, "tubelet_size": 2})),
        arguments(pixel_values=floats(2, 6, 3, 20, 28)),
    ),
    Architecture(
        "patchtst",
        "transformer",
        tiny(
            "PatchTSTForPrediction",
            "prediction_outputs",
            num_input_channels=3,
            context_length=33,
            patch_length=5,
            patch_stride=4,
            prediction_length=8,
            d_model=24,
            num_attention_heads=4,
            num_hidden_layers=2,
            ffn_dim=40,
        ),
        arguments(past_values=floats(2, 33, 3)),
    ),
)
