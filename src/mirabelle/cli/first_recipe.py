"""The text of the recipe that `mirabelle init` prints."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirabelle.planning.look import Looked
    from mirabelle.training.settings import Training

START = Path(__file__).parent / "start.toml"
_WIDTH = 116
TRAIN_FIRST = """# The model is trained before it is compressed. If your function returns a trained model, delete this table.
# If trained weights are in a file, replace `train` by: weights = "trained.safetensors"
[baseline]
train = TRAINING"""
UNTRAINABLE = "# Nothing in the model can be trained, so there is no [baseline]."
TRAINED_ALREADY = "# The model already has trained weights, so there is no [baseline]."
_TRAINING = "{ epochs = 20, batch_size = 32, lr = 1e-3 }"
_PRUNE = """# Sets the least important weights to zero while the model is trained with its dense version as the teacher.
[[step]]
use = "prune.Weights"
sparsity = 0.8                       # fraction removed
scope = "layer"                      # rank weights within each layer; "global" ranks all together and may empty a small layer
schedule = "cubic"                   # prune gradually, quickly at first
train = TRAINING
"""
_FORMS = {
    "static": '# Quantizes weights and activations to 8-bit integers{why}.\n[[step]]\nuse = "quantize.Static"',
    "dynamic": "# Quantizes weights to 8-bit integers, and activations by the range that each input has{why}.\n"
    '[[step]]\nuse = "quantize.Dynamic"',
    "weights": "# Stores weights in 8 bits; they are computed in floating point, as fast as before{why}.\n"
    '[[step]]\nuse = "quantize.Weights"',
    "coded": "# Codes the weights with few bits in the packed file; computed in floating point, as fast as before{why}.\n"
    '[[step]]\nuse = "quantize.RateDistortion"\nsize = "{share:.1%}"                       # of the weights in float32',
}
_TABLES = """# Integers of layers leave tables of embeddings in floating point: here they get 8 bits.
[[step]]
use = "quantize.Weights\""""
_DROPS = {
    "1%": '"1%"                      # relative to the starting metric; or "0.5pt", percentage points',
    "5pt": '"5pt"                     # percentage points of the fidelity to the outputs of the given model; or "1%"',
}
_HALF = '[[step]]\nuse = "quantize.Half"'
_FURTHER = """
# For a goal that this does not meet, `mirabelle auto` measures what each layer can lose and plans for it:
#   mirabelle auto recipe.toml --max-drop 0.5pt --size 10%"""


def recipe_text(
    *, model: str, data: str, baseline: str, keywords: Sequence[str], arguments: Sequence[str], looked: Looked | None,
    dynamic: bool,
) -> str:  # fmt: skip
    """The text of a recipe with comments.

    Args:
        model: its name.
        data: its name.
        baseline: lines of the table `[baseline]`, or a comment in its place; empty if the model is trained first.
        keywords: lines on the arguments of the model.
        arguments: lines on those of the data.
        looked: what was found of model and data; None if nobody looked.
        dynamic: without a look: whether activations are quantized by the range of each input.
    """
    training = _TRAINING if looked is None or looked.training is None else _training(looked.training)
    values = {
        "FOUND": "" if looked is None else _found(looked),
        "MAX_DROP": _DROPS["1%" if looked is None else looked.max_drop],
        "MODEL": toml(model),
        "DATA": toml(data),
        "BASELINE": baseline or TRAIN_FIRST.replace("TRAINING", training + ("" if looked is None else _duration(looked))),
        "ARGUMENTS": "\n".join(arguments),
        "KEYWORDS": "\n".join(keywords),
        "STEPS": _unseen_steps(dynamic=dynamic) if looked is None else _steps(looked, training),
    }
    return re.sub("|".join(values), lambda match: values[match[0]], START.read_text("utf-8"))


def weights_before(weights: str) -> str:
    """The table of a model whose trained weights are in a file."""
    return f"[baseline]\nweights = {toml(weights)}"


def toml(value: Any) -> str:
    """A value in one line of TOML.

    Example:
        >>> print(toml({"labels": ["a", 'b "c"'], "size": 3}))
        { labels = ["a", "b \\"c\\""], size = 3 }
    """
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {toml(one)}' for key, one in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def inline(name: str, settings: Mapping[str, Any], remark: str = "") -> str:
    """A line with a table of settings.

    Example:
        >>> inline("arguments", {"features": 5})
        'arguments = { features = 5 }'
    """
    return f"{name} = {toml(settings)}{remark}"


def table(name: str, settings: Mapping[str, Any], remark: str) -> list[str]:
    """A table of settings, one in each line."""
    head = f"[{name}]".ljust(37)
    return ["", f"{head}# {remark}", *(f"{key} = {toml(value)}" for key, value in settings.items())]


def _found(looked: Looked) -> str:
    lines = ["#", "# Found in model and data:"]
    for sentence in looked.found:
        plain = "".join(letter for letter in sentence if letter.isprintable() or letter == "\n")
        lines += textwrap.wrap(" ".join(plain.split()), _WIDTH, initial_indent="# - ", subsequent_indent="#   ")
    return "\n".join(lines) + "\n"


def _training(training: Training) -> str:
    settings = {"epochs": training.epochs, "batch_size": training.batch_size, "lr": training.lr}
    return toml(settings | ({"group_by_length": True} if training.group_by_length else {}))


def _duration(looked: Looked) -> str:
    """How long the training takes, as a comment."""
    if looked.training is None:
        return ""
    minutes = looked.seconds / 60
    return (
        f"  # about {minutes:.0f} min on this machine" if minutes >= 1 else f"  # about {looked.seconds:.0f} s on this machine"
    )


def _steps(looked: Looked, training: str) -> str:
    parts = [_PRUNE.replace("TRAINING", training)] if looked.prunes else []
    if looked.form in _FORMS:
        parts.append(_FORMS[looked.form].format(why=f":\n# {looked.why}", share=looked.share))
        parts += [f"\n{_TABLES}"] if looked.embeds else []
    elif not parts:
        parts.append(f"# {looked.why[0].upper()}{looked.why[1:]}. So weights are only stored in 16 bits.\n{_HALF}")
    return "\n".join(parts) + "\n" + _FURTHER


def _unseen_steps(*, dynamic: bool) -> str:
    why = "" if dynamic else '. For transformers: use = "quantize.Dynamic"'
    quantize = _FORMS["dynamic" if dynamic else "static"].format(why=why)
    return f"{_PRUNE.replace('TRAINING', _TRAINING)}\n{quantize}"
