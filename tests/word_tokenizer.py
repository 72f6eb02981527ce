"""A tokenizer of whole words, as transformers saves one, and small models with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def save_word_tokenizer(folder: Path, words: Sequence[str]) -> int:
    """Save it in a folder; how many tokens it knows."""
    import tokenizers
    import transformers

    vocabulary = {word: k for k, word in enumerate([*SPECIAL, *words])}
    of_words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    of_words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    of_words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=of_words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder: Path, words: Sequence[str], kind: str, **settings: Any) -> Path:
    """A BERT of this class, two heads wide, drawn by seed 0, with the tokenizer, saved in a folder."""
    import torch
    import transformers

    tokens = save_word_tokenizer(folder, words)
    torch.manual_seed(0)
    widths = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 24}
    config = transformers.BertConfig(vocab_size=tokens, **widths, **settings)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder
