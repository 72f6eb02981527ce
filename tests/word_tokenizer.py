"""A tokenizer of whole words, as transformers saves one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
